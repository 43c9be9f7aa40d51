"""Images that a judge could not score, kept aside: a PNG, and a line that says where it came from and what went wrong."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Quarantine:
    """A folder with <hash>.png and quarantine.jsonl. The hash is of the picture's 8-bit pixels; a picture is kept once a judge."""

    def __init__(self, folder: Path, told: Mapping[str, Any]):
        """told: what else each line says: the run's seed, the epoch."""
        self.folder, self.told = folder, told

    def keep(self, image: Tensor, prompt: str, judge: str, why: str) -> None:
        """image [3,H,W]; what is not a number is shown black."""
        from PIL import Image

        pixels = (
            (image.detach().float().nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().contiguous().numpy()
        )
        name = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.folder / f"{name}.png")
        line = {"image": name, "prompt": prompt, "judge": judge, "why": why, "finite": bool(image.isfinite().all()), **self.told}
        text, file = json.dumps(line, sort_keys=True) + "\n", self.folder / "quarantine.jsonl"
        if not file.exists() or text not in file.read_text(encoding="utf-8").splitlines(keepends=True):  # a resumed run meets it again
            with file.open("a", encoding="utf-8") as lines:
                lines.write(text)
