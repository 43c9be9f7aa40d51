"""Pictures with prompts, for methods that learn from given images."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Generator, Tensor

from alignbench.config import ConfigError, MissingAsset
from alignbench.datasets.decode import inside, square
from alignbench.datasets.files import read
from alignbench.ranges import Count, Text

LISTINGS = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class Pictures(Protocol):
    datasets: tuple[str, ...]  # names of data, to tell which judges learned from the same; "unknown": nobody has said

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, list[str]]:
        """`count` pictures [count,3,H,W] in [0,1], with replacement, and their prompts."""


class ImageFolder:
    """A folder with metadata.jsonl, .csv or .parquet, a row a picture, as the Hub's image folders have it."""

    datasets = ("unknown",)

    def __init__(self, *, path: Text, size: Count, image: Text = "file_name", text: Text = "text"):
        """size: pixels; pictures are cropped to a square around their centre and resized. image, text: the columns, as the Hub calls them.

        Raises MissingAsset where there is no such folder or listing, ConfigError with the row for one that is wrong; a damaged picture
        only when it is drawn.
        """
        folder, self.size = Path(path), size
        there = [name for name in LISTINGS if (folder / name).is_file()]
        if not there:
            raise MissingAsset(f"method.pictures.path={path}: none of {', '.join(LISTINGS)} there; one lists the pictures, a row each")
        if len(there) > 1:
            raise ConfigError(f"method.pictures.path={path}: {' and '.join(there)} are both there; keep the one that lists the pictures")
        self.called = f"method.pictures.path={folder / there[0]}"
        table = read(folder / there[0], self.called, (image, text))
        names, self.texts = table.words(image), table.words(text)
        self.files = [inside(folder, name, f"{self.called}, row {number}") for number, name in enumerate(names, 1)]

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, list[str]]:
        rows = torch.randint(len(self.files), (count,), generator=generator).tolist()
        return torch.stack([self._picture(row) for row in rows]), [self.texts[row] for row in rows]

    def _picture(self, row: int) -> Tensor:
        return square(self.files[row], self.size, f"{self.called}, row {row + 1}: {self.files[row].name}")
