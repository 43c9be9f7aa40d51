"""The table as LaTeX: as many cells as columns, every brace closed, no character that LaTeX would take for its own."""

import re
from typing import Any

import pytest
from made_runs import make_run

from alignbench.evaluation.crossed import Bootstrap
from alignbench.report.comparison import shown
from alignbench.report.latex import escaped, latex, number
from alignbench.table import compared, found_in

HOSTILE = '50% & more_$x$ #1 {a} \\input{/etc/passwd} ~ ^ <b> | "q" [opt] * †\n\x00\u2028end'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    for method in ("ddpo", "d3po"):
        for seed in range(2):
            make_run(folder, method, seed, ["one", "two", "three", "four"])
    found = compared(list(found_in([folder])), "", Bootstrap(replicates=100, level=0.9, seed=0), 0.8)
    (one,) = found["comparisons"]
    one["model"] = one["rows"][0]["label"] = HOSTILE
    one["rows"][0]["failed"] = [3]
    for each in one["contrasts"]:
        each["a"] = HOSTILE
    return found


def unescaped(text: str) -> str:
    """The text without what is escaped in it."""
    return re.sub(r"\\[&%$#_{}\\]|\\text\w+\{\}|\{\\ttfamily\\char34\}|\\dag\{\}", "", text)


def test_tables_are_whole(made: dict[str, Any]) -> None:
    text = latex(made)
    tables = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.DOTALL)
    assert len(tables) == 2
    assert text.count(r"\begin") == text.count(r"\end") == 4
    for table in tables:
        (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", table)
        lines = [line for line in table.split("\n") if line.endswith(r" \\")]
        assert len(lines) == 4  # a head, and the reference with two methods, or three differences
        assert {len(re.split(r"(?<!\\)&", line)) for line in lines} == {len(columns)}
        assert [table.count(f"\\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 1, 1]
        plain = unescaped(table)
        assert plain.count("{") == plain.count("}")
        assert plain.count("$") % 2 == 0
        assert not re.search(r"[%#~\x00]|\\input", plain)


def test_numbers_are_the_tables(made: dict[str, Any]) -> None:
    text = latex(made)
    (one,) = made["comparisons"]
    for row in one["rows"]:
        for name in ("scene_judge", "exact_judge", "colour"):
            told = shown(row["metrics"][name]["change"])
            assert told.replace(" [", r"\ [").replace(", ", ",\\ ") in text
    assert "2, 1 failed" in text
    assert text.count(r"$^{\dagger}$") == 2 + 1  # each row's trained reward, and what it means
    assert r"90\,\% interval" in text


def test_an_interval_off_zero_is_bold_where_it_is_evidence() -> None:
    ends = {"value": 1234.5, "low": 1200.0, "high": 1269.0}
    assert number(ends) == r"$+1{,}234\ [+1{,}200,\ +1{,}269]$"
    assert number(ends, bold=True) == r"$\mathbf{+1{,}234\ [+1{,}200,\ +1{,}269]}$"
    assert number(None) == "--"


def test_any_text_is_text() -> None:
    text = escaped(HOSTILE)
    assert text.startswith(r"50\% \& more\_\$x\$ \#1 \{a\} \textbackslash{}input\{/etc/passwd\}")
    assert text.endswith(r"\dag{} end")
    assert not re.search(r"[&%$#_{}\\~^<>|\"†\n]", re.sub(r"\{[\[\]*]\}", "", unescaped(text)))
