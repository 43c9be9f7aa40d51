"""What stands by hand in the folders of papers' tables: numbers as their source has them, words that compose, sixty trainings at most."""

import csv
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from alignbench.compose import Composed, compose
from alignbench.config import arguments
from alignbench.datasets.prompts import PromptFile
from alignbench.papers import TIERS, PaperTable, row_of, tables

ROOT = Path(__file__).parents[1] / "experiments"
SOURCE = Path(__file__).parents[2] / "shared" / "paper_numbers.csv"
TABLES = tables(ROOT)
WANTED = {
    *("ddpo_table1", "ddpo_curves", "d3po_table1", "dpok_table1", "dpok_value", "pso", "pxpo", "large_scale_rl_table1"),
    *(f"di_star_{name}" for name in ("table1", "table2", "table3", "headline")),
}
BLANK = {"ddpo_curves", "pxpo"}  # of which no digit is known


@cache
def made(*words: str) -> Composed:
    return compose(words)


def test_every_table_is_there() -> None:
    assert {table.name for table in TABLES} == WANTED
    for table in TABLES:
        assert (table.folder / "README.md").is_file()
        assert any(line.value for line in table.printed) == (table.name not in BLANK)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_number_is_as_its_source_has_it(table: PaperTable) -> None:
    """Against the source where it is at hand; without it, that each number is one and says where it was printed."""
    printed = [line for line in table.printed if line.value]
    assert all(line.paper and line.arxiv and line.table and float(line.tolerance) > 0 for line in printed)
    if not SOURCE.is_file():
        return
    with SOURCE.open(newline="", encoding="utf-8") as file:
        known = {(each["model"], each["metric"], each["benchmark"], each["arxiv"]): each for each in csv.DictReader(file)}
    for line in printed:
        source = known[line.row, line.metric, line.benchmark, line.arxiv]
        assert (line.value, line.tag, line.table, line.paper) == (source["value"], source["tag"], source["table"], source["source"])


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_row_composes(table: PaperTable) -> None:
    for tier in TIERS:
        for words, seeds in table.rows(tier).values():
            assert made(*words, f"seed={seeds[0]}").config["seed"] == seeds[0]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_tolerances_tell_a_column_apart(table: PaperTable) -> None:
    """A number of the column's other end is outside, or every verdict of that column would be the same."""
    columns = defaultdict(list)
    for line in table.printed:
        if line.value:
            columns[line.table, line.metric, line.benchmark].append(line)
    for lines in columns.values():
        last = max(10.0 ** -len(line.value.partition(".")[2]) for line in lines)
        low, high = (pick(lines, key=lambda line: float(line.value)) for pick in (min, max))
        if float(high.value) - float(low.value) > last:
            assert not low.within(float(high.value)) and not high.within(float(low.value))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_row_of_the_paper_tier_is_printed_or_claimed(table: PaperTable) -> None:
    printed = {row_of(line, table.runs.paper.rows) for line in table.printed}
    claimed = {name for claim in table.claims("paper") for side in claim.rows for name in side}
    assert set(table.runs.paper.rows) <= printed | claimed
    assert all(claim.says and claim.source for tier in TIERS for claim in table.claims(tier))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_shipped_prompts_are_as_many_as_a_row_is_judged_by(table: PaperTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT.parent)
    for words, _ in table.rows("paper").values():
        config = made(*words, "seed=0").config
        named = arguments("dataset", config["dataset"])
        if named.pop("_target_").endswith(".PromptFile"):
            there = PromptFile(**named)
            assert len(there.test) >= config["eval"]["prompts"] >= 2
            assert there.train or not config["epochs"]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_its_page_says_how_it_is_run_and_what_is_not_known(table: PaperTable) -> None:
    text = (table.folder / "README.md").read_text(encoding="utf-8")
    for said in (f"make reproduce TABLE={table.name} ", f"make reproduce TIER=paper TABLE={table.name} ", table.runs.arxiv):
        assert said in text
    for said in ("It can say", "It cannot say", "The paper's protocol", "Cost", "Known", "Not known"):
        assert f"**{said}**" in text
    hours = table.runs.paper.gpu_hours
    assert "not known" in text if hours is None else f"{hours:,.0f} GPU-hours" in text


def test_the_sandbox_tier_trains_at_most_sixty_runs() -> None:
    trained = set()
    for table in TABLES:
        for words, seeds in table.rows("sandbox").values():
            if (composed := made(*words, "seed=0")).config["epochs"]:
                trained |= {(composed.cell, seed) for seed in seeds}
    assert 3 * 10 <= len(trained) <= 60
    assert len({cell for cell, _ in trained}) * 3 == len(trained)  # three seeds each
