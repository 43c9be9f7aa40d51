"""HPDv2's layout (2306.09341): a JSON list of prompts, each with two or more images and what people made of them.

As the README of tgxs002/HPSv2 at 866735e and the card of ymhao/HPDv2 have it: train.json has prompt, file_path and human_preference (1 for
the preferred image), test.json prompt, image_path and rank, for which hpsv2/evaluation.py counts the best image as 0. The data themselves
were not at hand.
"""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from alignbench.config import ConfigError
from alignbench.datasets.decode import inside
from alignbench.datasets.files import read
from alignbench.datasets.pairs import Choice, GivenPairs, Ties
from alignbench.datasets.table import short
from alignbench.ranges import Count, Text

NAMES, OPINIONS = ("file_path", "image_path"), {"human_preference": 1, "rank": -1}  # the sign of better


class HPDv2(GivenPairs):
    """Of each prompt's images every two; those with one preference, or one rank, are tied."""

    datasets = ("HPD v2",)

    def __init__(self, *, path: Text, folder: Text, size: Count, ties: Ties):
        """path: train.json or test.json; folder: of the images; size, ties: as `PairTable`'s. Raises ConfigError with the row for one that
        is wrong; a damaged image only when it is drawn.
        """
        called = f"method.pairs.path={path}"
        table = read(Path(path), called)
        rows = zip(table.rows, table.words("prompt"), strict=True)
        choices = [each for number, (row, prompt) in enumerate(rows, 1) for each in _of(row, prompt, folder, f"{called}, row {number}")]
        super().__init__(choices, size, ties, called)


def _of(row: dict[str, Any], prompt: str, folder: str, where: str) -> Iterator[Choice]:
    names, opinions = _one(row, NAMES, where), _one(row, tuple(OPINIONS), where)
    images, values = row[names], row[opinions]
    if not isinstance(images, list) or not all(isinstance(each, str) for each in images) or len(images) < 2:
        raise ConfigError(f"{where}: {names} is {short(images)}; a list of two or more images is wanted")
    if not isinstance(values, list) or len(values) != len(images) or not all(type(each) in (int, float) for each in values):
        raise ConfigError(f"{where}: {opinions} is {short(values)}; a number for each of the {len(images)} images is wanted")
    found = [inside(Path(folder), name, where) for name in images]
    for first, second in combinations(range(len(found)), 2):
        ahead = OPINIONS[opinions] * (values[first] - values[second])
        win, lose = (second, first) if ahead < 0 else (first, second)
        yield Choice(found[win], found[lose], prompt, ahead == 0, where)


def _one(row: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    """The one of two columns that a row has."""
    there = [name for name in names if row.get(name) is not None]
    if len(there) != 1:
        raise ConfigError(f"{where}: {' and '.join(there) or 'none'} of {' and '.join(names)} given; one is wanted")
    return there[0]
