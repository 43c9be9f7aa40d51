"""Pairs of images of which one is preferred: what a method draws, and what the readers of such pairs in files share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Generator, Tensor

from alignbench.config import ConfigError
from alignbench.datasets.decode import square

Ties = Literal["left_out", "weigh_nothing"]


class Pairs(Protocol):
    datasets: tuple[str, ...]  # names of data, to tell which judges learned from the same; "unknown": nobody has said
    decided: float  # share of the pairs there are, in which one image is preferred

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, Tensor, list[str], Tensor]:
        """With replacement: preferred images [count,3,H,W] in [0,1], the others, their prompts, and weights [count], 0 for ties."""


class Groups:
    """Row groups of parquet files, of which no less can be read: the last one is kept, for both images of a pair."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns, self._at, self._table = list(columns), (Path(), -1), None

    def read(self, file: Path, group: int) -> Any:
        import pyarrow.parquet

        if self._at != (file, group):
            try:
                with pyarrow.parquet.ParquetFile(file) as parquet:
                    self._table = parquet.read_row_group(group, columns=self.columns)
            except (OSError, pyarrow.ArrowException) as error:
                raise ConfigError(f"{file}: damaged in row group {group} ({str(error).splitlines()[0].rstrip('.')})") from None
            self._at = (file, group)
        return self._table


@dataclass(frozen=True, slots=True)
class Cell:
    """An image's bytes in a parquet file, which are read when they are drawn."""

    groups: Groups
    file: Path
    group: int
    row: int  # in that group
    name: str  # of the column

    def read(self, where: str) -> bytes:
        """Raises ConfigError, which begins with `where`, where there are none."""
        data = self.groups.read(self.file, self.group).column(self.name)[self.row].as_py()
        if not isinstance(data, bytes) or not data:
            raise ConfigError(f"{where}: no bytes of an image; give it one, or take the row out")
        return data


@dataclass(frozen=True, slots=True)
class Choice:
    """Two images of a prompt, the preferred one first; of a tie, either."""

    win: Path | Cell
    lose: Path | Cell
    prompt: str
    tied: bool
    where: str  # file and row


class GivenPairs:
    """Pairs from files. Readers find the choices; images are decoded when they are drawn."""

    datasets: tuple[str, ...] = ("unknown",)

    def __init__(self, choices: Sequence[Choice], size: int, ties: Ties, called: str):
        """Raises ConfigError where nothing is decided, or an image is in a pair with itself."""
        decided = [each for each in choices if not each.tied]
        if not decided:
            raise ConfigError(f"{called}: none of its {len(choices)} pairs is decided, so there is nothing to learn from")
        if same := next((each for each in choices if each.win == each.lose), None):
            raise ConfigError(f"{same.where}: {same.win.name} is both images of the pair; a pair has two")
        self.decided, self.size = len(decided) / len(choices), size
        self.choices = decided if ties == "left_out" else list(choices)

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, Tensor, list[str], Tensor]:
        picked = [self.choices[index] for index in torch.randint(len(self.choices), (count,), generator=generator).tolist()]
        pairs = [self._pair(each) for each in picked]
        win, lose = (torch.stack([pair[side] for pair in pairs]) for side in range(2))
        return win, lose, [each.prompt for each in picked], torch.tensor([float(not each.tied) for each in picked])

    def _pair(self, choice: Choice) -> list[Tensor]:
        images = []
        for source in (choice.win, choice.lose):
            where = f"{choice.where}: {source.name}"
            images.append(square(source.read(where) if isinstance(source, Cell) else source, self.size, where))
        if torch.equal(*images):
            raise ConfigError(f"{choice.where}: {choice.win.name} and {choice.lose.name} are the same image; take the pair out")
        return images
