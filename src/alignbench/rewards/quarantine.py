"""Images that a judge could not score, kept aside: a PNG, and a file that says where it came from and what went wrong."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Quarantine:
    """A folder with <hash>.png and <hash>-<judge>.json. The hash is of the picture's 8-bit pixels; a picture is kept once a judge."""

    def __init__(self, folder: Path, told: Mapping[str, Any]):
        """told: what else each file says: the run's seed, the epoch."""
        self.folder, self.told = folder, told

    def keep(self, image: Tensor, prompt: str, judge: str, why: str) -> None:
        """image [3,H,W]; what is not a number is shown black."""
        from PIL import Image

        pixels = (
            (image.detach().float().nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().contiguous().numpy()
        )
        name = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {"image": name, "prompt": prompt, "judge": judge, "why": why, "finite": bool(image.isfinite().all()), **self.told}
        with suppress(FileExistsError), (self.folder / f"{name}-{judge}.json").open("x", encoding="utf-8") as file:
            Image.fromarray(pixels).save(self.folder / f"{name}.png")
            json.dump(line, file, sort_keys=True)
