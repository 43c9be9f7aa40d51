"""What has been measured on images that would be the same again: kept under everything that they and the measure depend on."""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from alignbench.report.record import write_atomically

Columns = dict[str, np.ndarray]


class Memo:
    """A folder of files, one for each pair of images and measure. A damaged file is as none."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, images: dict[str, Any], measure: dict[str, Any]) -> Path:
        """images: weights, sampler, prompts and noise that they come from; measure: who or what looked at them."""
        return self.folder / _key(images)[:24] / f"{_key(measure)[:24]}.npz"

    def recall(self, path: Path) -> Columns | None:
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def keep(self, path: Path, columns: Columns) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())


def _key(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()
