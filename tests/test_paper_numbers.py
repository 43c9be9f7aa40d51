"""What stands by hand in the folders of papers' tables: numbers as their source has them, words that compose, sixty trainings at most."""

import csv
from pathlib import Path

import pytest

from alignbench.compose import compose
from alignbench.papers import TIERS, PaperTable, tables

ROOT = Path(__file__).parents[1] / "experiments"
SOURCE = Path(__file__).parents[2] / "shared" / "paper_numbers.csv"
TABLES = tables(ROOT)
WANTED = {
    *("ddpo_table1", "ddpo_curves", "d3po_table1", "dpok_table1", "dpok_value", "pso", "pxpo", "large_scale_rl_table1"),
    *(f"di_star_{name}" for name in ("table1", "table2", "table3", "headline")),
}
BLANK = {"ddpo_curves", "pxpo"}  # of which no digit is known


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
            assert compose([*words, f"seed={seeds[0]}"]).config["seed"] == seeds[0]


def test_the_sandbox_tier_trains_at_most_sixty_runs() -> None:
    trained = set()
    for table in TABLES:
        for words, seeds in table.rows("sandbox").values():
            if (composed := compose([*words, "seed=0"])).config["epochs"]:
                trained |= {(composed.cell, seed) for seed in seeds}
    assert 3 * 10 <= len(trained) <= 60
    assert len({cell for cell, _ in trained}) * 3 == len(trained)  # three seeds each
