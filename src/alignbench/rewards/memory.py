"""Scores that were once paid for: by image, prompt and judge, in a file that runs beside each other share."""

import hashlib
import json
import sqlite3
import threading
import warnings
from pathlib import Path

import torch
from torch import Tensor

from alignbench import __version__

AT_A_TIME = 500  # keys a query; SQLite takes 999 at least


def fingerprints(images: Tensor, prompts: list[str], identity: dict[str, str]) -> list[bytes]:
    """A key an image: a hash of its pixels bit for bit, its prompt, who judges and this version, whose framing the score depends on."""
    judge = json.dumps([__version__, identity], sort_keys=True).encode()
    keys = []
    for image, prompt in zip(images.detach().cpu().contiguous(), prompts, strict=True):
        head = f"{image.dtype} {tuple(image.shape)} {len(prompt)} {prompt}\0".encode()
        keys.append(hashlib.blake2b(judge + head + image.view(torch.uint8).numpy().tobytes(), digest_size=20).digest())
    return keys


class Memory:
    """A key-value file. It never fails a run: where the file cannot be read or written, that is said once and scores are made anew."""

    def __init__(self, path: Path):
        self.path, self._lock = path, threading.Lock()
        self._file: sqlite3.Connection | None = None
        self._broken = False

    def recall(self, keys: list[bytes]) -> Tensor:
        """Scores [B] in fp32, NaN where none is known."""
        found: dict[bytes, float] = {}
        with self._lock:
            try:
                for start in range(0, len(keys), AT_A_TIME):
                    part = keys[start : start + AT_A_TIME]
                    marks = ",".join("?" * len(part))
                    found |= dict(self._opened().execute(f"SELECT key, score FROM scores WHERE key IN ({marks})", part))
            except (sqlite3.Error, OSError) as error:
                self._said(error)
        return torch.tensor([found.get(key, torch.nan) for key in keys], dtype=torch.float32)

    def keep(self, keys: list[bytes], scores: Tensor) -> None:
        """Remember scores; those that are NaN are not."""
        rows = [(key, score) for key, score in zip(keys, scores.tolist(), strict=True) if score == score]
        with self._lock:
            try:
                with self._opened() as file:
                    file.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", rows)
            except (sqlite3.Error, OSError) as error:
                self._said(error)

    def _opened(self) -> sqlite3.Connection:
        if self._broken:
            raise sqlite3.OperationalError("given up")
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
            file.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID")
            self._file = file
        return self._file

    def _said(self, error: Exception) -> None:
        if not self._broken:
            self._broken = True
            warnings.warn(f"{self.path}: scores are not remembered ({error}); move that file away", stacklevel=3)
