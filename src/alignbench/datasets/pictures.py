"""Pictures with prompts, for methods that learn from given images."""

import json
from pathlib import Path
from typing import Protocol

import torch
from torch import Generator, Tensor

from alignbench.config import MissingAsset
from alignbench.ranges import Count, Text


class Pictures(Protocol):
    def draw(self, count: int, generator: Generator) -> tuple[Tensor, list[str]]:
        """`count` pictures [count,3,H,W] in [0,1], with replacement, and their prompts."""


class ImageFolder:
    """A folder with metadata.jsonl, one {"file_name": ..., "text": ...} a line, as the Hub's image folders have it."""

    def __init__(self, *, path: Text, size: Count):
        """size: pixels; pictures are cropped to a square around their centre and resized. Raises MissingAsset where there are none."""
        self.folder, self.size = Path(path), size
        listing = self.folder / "metadata.jsonl"
        if not listing.is_file():
            raise MissingAsset(f"pictures.path={path}: no metadata.jsonl there; it lists the pictures, a line each: file_name and text")
        self.rows = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
        wrong = next((row for row in self.rows if not isinstance(row, dict) or not {"file_name", "text"} <= row.keys()), None)
        if not self.rows or wrong is not None:
            raise ValueError(f"pictures.path={path}: metadata.jsonl needs file_name and text in each line; got {wrong or 'no line'}")

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, list[str]]:
        rows = [self.rows[index] for index in torch.randint(len(self.rows), (count,), generator=generator).tolist()]
        return torch.stack([self._picture(row["file_name"]) for row in rows]), [row["text"] for row in rows]

    def _picture(self, name: str) -> Tensor:
        import numpy
        from PIL import Image, ImageOps

        with Image.open(self.folder / name) as image:
            square = ImageOps.fit(image.convert("RGB"), (self.size, self.size))
        return torch.from_numpy(numpy.array(square)).permute(2, 0, 1).float() / 255
