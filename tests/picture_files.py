"""Small image files that every layout holds alike, and a run that is over at once."""

import io
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from torch import Tensor

from alignbench.rng import generator

SHAPES = [(24, 40), (40, 24), (24, 24), (30, 26)]  # height, width
TEXTS = ["a red circle", "a blue square", "a ring, green", "größer ⬛"]
NAMES = [f"{index}.png" for index in range(len(SHAPES))]
TINY = [
    *("model=gaussian", "reward=brightness", "eval=plain", "eval.prompts=2", "eval.images=2", "eval.validation_prompts=1"),
    *("sampler.steps=2", "epochs=1", "output=outputs"),
]


def pixels(index: int) -> Tensor:
    """[H,W,3] of 8 bits, noise."""
    return (torch.rand(*SHAPES[index], 3, generator=generator(0, "file", 0, index)) * 255).byte()


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(index).numpy()).save(file, "png")
    return file.getvalue()


def images(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(NAMES):
        (folder / name).write_bytes(png(index))
    return folder


def tar(file: Path, members: list[tuple[str, bytes]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file


def pick_a_pic(file: Path) -> None:
    """One decided pair, as Pick-a-Pic has it."""
    row = {"jpg_0": [png(0)], "jpg_1": [png(1)], "label_0": [1.0], "label_1": [0.0], "caption": ["a cat"]}
    pyarrow.parquet.write_table(pyarrow.table(row), file)


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it has side x side pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
