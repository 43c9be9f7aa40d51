"""Preference pairs from scores: a folder's images with the table that `alignbench score` wrote of them."""

import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Literal

from alignbench.config import ConfigError
from alignbench.datasets.decode import inside
from alignbench.datasets.files import read
from alignbench.datasets.pairs import Choice, GivenPairs, Ties
from alignbench.datasets.table import Table, short
from alignbench.ranges import Count, NonNegative, Text

OURS = ("image", "prompt")  # columns beside the judge's


class ScoredPairs(GivenPairs):
    """Each prompt's best image against its worst, or all its pairs; scores that differ by no more than the margin tie."""

    def __init__(
        self,
        *,
        path: Text,
        folder: Text,
        size: Count,
        ties: Ties,
        pairs: Literal["best_worst", "all"],
        margin: NonNegative,
        score: Text | None = None,
    ):
        """path: the .parquet; folder: of the images; size, ties: as `PairTable`'s; margin: in the judge's unit; score: the judge's
        column, null for the only one. An image without a score is in no pair. Raises ConfigError with the row for one that is wrong.
        """
        called = f"method.pairs.path={path}"
        table = read(Path(path), called)
        names, prompts = (table.words(column) for column in OURS)
        judge = score or _only(table)
        self.datasets = (judge, "unknown")  # it taught what it had learned, which the table does not say
        scores = _scores(table, judge)
        images = [inside(Path(folder), name, f"{called}, row {number}") for number, name in enumerate(names, 1)]
        rows: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            if row in scores:
                rows.setdefault(prompt, []).append(row)
        choices = []
        for prompt, own in rows.items():
            for first, second in _compared(own, scores, pairs):
                ahead = scores[first] - scores[second]
                win, lose = (first, second) if ahead >= 0 else (second, first)
                where = f"{called}, rows {first + 1} and {second + 1}"
                choices.append(Choice(images[win], images[lose], prompt, abs(ahead) <= margin, where))
        super().__init__(choices, size, ties, called)


def _compared(rows: list[int], scores: dict[int, float], pairs: str) -> Iterator[tuple[int, int]]:
    if pairs == "all":
        yield from combinations(rows, 2)
    elif len(rows) > 1:  # max and min take the first of equals: two different rows even where all are equal
        yield max(rows, key=scores.__getitem__), min(reversed(rows), key=scores.__getitem__)


def _only(table: Table) -> str:
    others = [name for name in table.columns if name not in OURS]
    if len(others) != 1:
        there = ", ".join(map(short, others)) or "no column"
        raise ConfigError(f"{table.called}: {there} beside {' and '.join(OURS)}; set method.pairs.score")
    return others[0]


def _scores(table: Table, column: str) -> dict[int, float]:
    """By row, of the images that have one."""
    table.need(column)
    found = {}
    for number, row in enumerate(table.rows, 1):
        value = row.get(column)
        if value is not None and type(value) not in (int, float):
            raise table.wrong(number, f"{column} is a number, not {short(value)}")
        if value is not None and math.isinf(value):
            raise table.wrong(number, f"{column} is {value}, which no score is; score that image again")
        if value is not None and value == value:
            found[number - 1] = float(value)
    return found
