"""Checkpoints that survive kills, full disks and bit rot: written aside, synced, renamed, checksummed, the previous generation kept."""

import hashlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import CheckpointIO

_MAGIC = b"alignbench-checkpoint-1\n"


class Damaged(Exception):
    """A checkpoint file that is not what was written, or that is another run's."""


class AtomicCheckpointIO(CheckpointIO):
    """One file a generation: magic, sha256 of the payload, payload. `run` is the run's hash: another run's file is refused."""

    def __init__(self, run: str):
        self.run = run

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save({"run": self.run, "checkpoint": checkpoint}, buffer)
        payload = buffer.getvalue()
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(payload).digest() + payload)
            file.flush()
            os.fsync(file.fileno())
        if previous(path).is_dir():
            _set_aside(previous(path))
        if path.exists():
            os.replace(path, previous(path))
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Raises Damaged. Nothing is ever unpickled: `weights_only` is always on."""
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Damaged(f"{path.name}: {error.strerror}") from error
        head = len(_MAGIC) + 32
        payload = data[head:]
        if not data.startswith(_MAGIC) or hashlib.sha256(payload).digest() != data[len(_MAGIC) : head]:
            raise Damaged(f"{path.name}: damaged (its checksum does not match)")
        try:
            saved = torch.load(io.BytesIO(payload), map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # whatever the bytes lead torch to: it refuses gadgets with UnpicklingError, other rubbish variously
            raise Damaged(f"{path.name}: cannot be read ({type(error).__name__})") from error
        match saved:
            case {"run": self.run, "checkpoint": dict(checkpoint)}:
                return checkpoint
            case {"run": str(run), "checkpoint": dict()}:
                raise Damaged(f"{path.name}: belongs to another run ({run[:10]})")
        raise Damaged(f"{path.name}: cannot be read (no run, or no checkpoint, in it)")

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def previous(path: Path) -> Path:
    """Where the generation before `path` is kept."""
    return path.with_name(path.stem + ".prev" + path.suffix)


def of_peak(folder: Path, epoch: int) -> Path:
    """Where the weights of a run's best validation are kept; folder: of its checkpoints."""
    return folder / f"peak-{epoch:06d}.ckpt"


def newest(path: Path, run: str, say: Callable[[str], None]) -> Path | None:
    """The newest generation that is whole, or None where nothing was ever saved. Damaged ones are moved aside and reported through `say`.

    Moved, not left: the next save would otherwise push a damaged file over the good previous generation. Raises Damaged where files exist
    but none of them can be trusted; then nothing is moved.
    """
    candidates = [candidate for candidate in (path, previous(path)) if candidate.exists()]
    reader, damaged = AtomicCheckpointIO(run), []
    for candidate in candidates:
        try:
            reader.load_checkpoint(candidate)
        except Damaged as damage:
            damaged.append((candidate, damage))
            continue
        for other, why in damaged:
            say(f"{why}; continuing from {candidate.name}")
            _set_aside(other)
        return candidate
    if damaged:
        raise Damaged(f"no usable checkpoint in {path.parent} ({'; '.join(str(why) for _, why in damaged)}); remove them to start over")
    return None


def _set_aside(path: Path) -> None:
    """Out of the way, under a name that nothing reads."""
    aside = path.with_name(path.name + ".damaged")
    shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)
    os.replace(path, aside)
