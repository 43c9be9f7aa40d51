"""Checkpoints after kills, bit rot and malice (R5, R13): the previous generation, said; or an error; never a wrong resume."""

import hashlib
import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignbench.checkpoint import AtomicCheckpointIO, Damaged, newest, previous

RUN, OTHER = "a" * 64, "b" * 64
MAGIC = b"alignbench-checkpoint-1\n"


def state(generation: int) -> dict[str, Any]:
    return {
        "epoch": generation,
        "state_dict": {"gain": torch.full((3,), float(generation)), "_extra_state": {"a red ring": [0.1, 0.2]}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}],
    }


def save(generation: int, path: Path, run: str = RUN) -> None:
    AtomicCheckpointIO(run).save_checkpoint(state(generation), path)


def generation(path: Path) -> int:
    """Which of the saved states a file holds, all of it."""
    loaded = AtomicCheckpointIO(RUN).load_checkpoint(path)
    torch.testing.assert_close(loaded, state(loaded["epoch"]), rtol=0, atol=0)
    return loaded["epoch"]


def found(path: Path) -> tuple[Path | None, list[str]]:
    said: list[str] = []
    return newest(path, RUN, said.append), said


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """last.ckpt of generation 2, beside generation 1."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    save(1, path)
    save(2, path)
    return path


def sealed(content: object) -> bytes:
    """A file whose magic and checksum are right, around anything that pickle can write."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return enveloped(buffer.getvalue())


def enveloped(payload: bytes) -> bytes:
    return MAGIC + hashlib.sha256(payload).digest() + payload


# --- what is kept


def test_nothing_saved_is_a_fresh_start(tmp_path: Path) -> None:
    assert found(tmp_path / "checkpoints" / "last.ckpt") == (None, [])


def test_two_generations_are_kept(path: Path) -> None:
    assert found(path) == (path, [])
    assert (generation(path), generation(previous(path))) == (2, 1)
    save(3, path)
    assert (generation(path), generation(previous(path))) == (3, 2)
    assert names(path) == ["last.ckpt", "last.prev.ckpt"]


def test_the_bytes_are_on_disk_before_they_get_their_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def logged(name: str) -> Callable[..., None]:
        real = getattr(os, name)
        return lambda *args: (calls.append(name), real(*args))[1]

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, logged(name))
    save(3, path)
    assert calls == ["fsync", "replace", "replace", "fsync"]


@pytest.mark.parametrize("before", [0, 1, 2], ids=["first", "second", "third"])
@pytest.mark.parametrize("call", range(4))
def test_a_save_cut_short_leaves_a_whole_generation(call: int, before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kill or a full disk would: each system call of a save fails in turn."""
    path = tmp_path / "last.ckpt"
    for number in range(before):
        save(number, path)
    steps = iter(range(100))

    def failing(real: Callable[..., None]) -> Callable[..., None]:
        def called(*args: object) -> None:
            if next(steps) == call:
                raise OSError(28, "No space left on device")
            real(*args)

        return called

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace"):
            patch.setattr(os, name, failing(getattr(os, name)))
        if before or call < 3:  # the first save has nothing to move away, so it makes three calls
            with pytest.raises(OSError, match="No space"):
                save(before, path)
        else:
            save(before, path)
    there, said = found(path)
    assert said == []
    assert (None if there is None else generation(there)) in ({None, 0} if before == 0 else {before - 1, before})
    save(before + 1, path)  # over whatever temporary file is left
    assert generation(path) == before + 1
    assert not path.with_suffix(".tmp").exists()


def test_a_stale_temporary_file_is_written_over(path: Path) -> None:
    path.with_suffix(".tmp").write_bytes(b"half a checkpoint" * 10_000)
    assert found(path) == (path, [])
    save(3, path)
    assert generation(path) == 3
    assert names(path) == ["last.ckpt", "last.prev.ckpt"]


# --- what is damaged

LENGTHS = range(50)
FLIPS = range(200)


def falls_back(path: Path, why: str) -> None:
    """The previous generation is used and said, and outlives the next two saves' renames."""
    there, said = found(path)
    assert there == previous(path)
    assert generation(there) == 1
    (line,) = said
    assert line.startswith("last.ckpt: ") and why in line and line.endswith("; continuing from last.prev.ckpt") and "\n" not in line
    assert names(path) == ["last.ckpt.damaged", "last.prev.ckpt"]
    save(3, path)
    assert (generation(path), generation(previous(path))) == (3, 1)
    assert found(path) == (path, [])


def test_truncated(path: Path) -> None:
    whole = path.read_bytes()
    lengths = sorted({0, 1, len(MAGIC), len(MAGIC) + 31, len(MAGIC) + 32, len(whole) - 1, *(n * len(whole) // 44 for n in range(44))})
    assert len(lengths) >= 49
    for length in lengths:
        save(1, previous(path))
        path.write_bytes(whole[:length])
        falls_back(path, "damaged")


def test_a_flipped_byte(path: Path) -> None:
    whole, rng = path.read_bytes(), random.Random(0)
    for n in range(200):
        where = n if n < len(MAGIC) + 32 else rng.randrange(len(whole))  # every byte of the head, then anywhere
        save(1, previous(path))
        path.write_bytes(whole[:where] + bytes([whole[where] ^ rng.randrange(1, 256)]) + whole[where + 1 :])
        falls_back(path, "damaged")
