"""The pictures of a page that stands by itself: each distinct one once, all of one size, within a bound on their bytes together."""

import base64
import hashlib
import io
from pathlib import Path

from PIL import Image

BOUND = 6_000_000  # characters of all pictures' addresses together: a page is under 8 MB
SMALL = 64  # pixels: pictures up to here stay as they are, and are shown enlarged and sharp
FIRST = (
    85  # WebP's quality at full size; ours, as are the smaller sizes (longer side in pixels, quality) that follow where that is too much
)
STEPS = ((1024, 85), (768, 80), (512, 75), (384, 75), (320, 70), (256, 65), (192, 60), (160, 50), (128, 40), (96, 30), (64, 20))


class Album:
    """Pictures by their content."""

    def __init__(self) -> None:
        self.paths: dict[str, Path] = {}  # by digest, in the order of adding
        self.numbers: dict[str, int] = {}

    def add(self, path: Path) -> int | None:
        """The number of this picture; None where the file is not there."""
        if not path.is_file():
            return None
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        self.paths.setdefault(found, path)
        return self.numbers.setdefault(found, len(self.numbers))

    def addresses(self) -> tuple[list[str], int]:
        """Of each picture its data: address, by number; and the pixels of the longer side that none is above.

        One size and one quality for all: a method whose pictures are harder to compress must not look the blurrier for it.
        """
        paths = list(self.paths.values())
        widest = max((max(_size(path)) for path in paths), default=0)
        if widest <= SMALL:
            kept = [f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" for path in paths]
            if sum(map(len, kept)) <= BOUND:
                return kept, widest
        for side, quality in [(widest, FIRST), *(step for step in STEPS if step[0] <= widest)]:
            found, fits = _encoded(paths, side, quality)
            if fits:
                return found, side
        raise ValueError(f"{len(paths)} pictures do not fit on one page; make it of fewer runs")


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def _encoded(paths: list[Path], side: int, quality: int) -> tuple[list[str], bool]:
    found, total = [], 0
    for path in paths:
        with Image.open(path) as picture:
            drawn = picture.convert("RGB")
        drawn.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        drawn.save(buffer, "WEBP", quality=quality, method=4)
        found.append(f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}")
        total += len(found[-1])
        if total > BOUND:
            return found, False
    return found, True
