"""Checkpoints after kills, bit rot and malice (R5, R13): the previous generation, said; or an error; never a wrong resume."""

import hashlib
import io
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alignbench.checkpoint import AtomicCheckpointIO, Damaged, newest, previous
from alignbench.config import Stopped

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


def truncated(whole: bytes) -> Iterator[bytes]:
    head = len(MAGIC) + 32
    edges = {0, 1, len(MAGIC), head - 1, head, len(whole) - 1}
    yield from (whole[:length] for length in sorted(edges | {head + n * (len(whole) - head) // 45 for n in range(1, 45)}))


def flipped(whole: bytes) -> Iterator[bytes]:
    """Every byte of the head, then bytes anywhere."""
    rng = random.Random(0)
    for n in range(200):
        where = n if n < len(MAGIC) + 32 else rng.randrange(len(whole))
        yield whole[:where] + bytes([whole[where] ^ rng.randrange(1, 256)]) + whole[where + 1 :]


def zeroed(whole: bytes) -> Iterator[bytes]:
    yield bytes(len(whole))
    yield whole[:1000] + bytes(len(whole) - 1000)


def lengthened(whole: bytes) -> Iterator[bytes]:
    yield whole + b"\0"
    yield whole + whole


DAMAGES = {"truncated": (truncated, 50), "flipped": (flipped, 200), "zeroed": (zeroed, 2), "lengthened": (lengthened, 2)}


def falls_back(path: Path, why: str) -> None:
    """Generation 1 is used and said, and no later save writes over it before there is a newer one."""
    there, said = found(path)
    assert there == previous(path)
    assert generation(there) == 1
    (line,) = said
    assert line.startswith("last.ckpt: ") and why in line and line.endswith("; continuing from last.prev.ckpt") and "\n" not in line
    assert names(path) == ["last.ckpt.damaged", "last.prev.ckpt"]
    save(3, path)
    assert (generation(path), generation(previous(path))) == (3, 1)
    assert found(path) == (path, [])


def ends(path: Path, *why: str) -> None:
    """No generation is whole: one line that names each file, and nothing is touched."""
    before = {each.name: each.is_dir() or each.read_bytes() for each in path.parent.iterdir()}
    with pytest.raises(Damaged, match="no usable checkpoint") as caught:
        newest(path, RUN, pytest.fail)
    assert all(each in str(caught.value) for each in (str(path.parent), *why)) and "\n" not in str(caught.value)
    assert {each.name: each.is_dir() or each.read_bytes() for each in path.parent.iterdir()} == before


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_previous_generation_stands_in_for_a_damaged_one(kind: str, path: Path) -> None:
    second, first = path.read_bytes(), previous(path).read_bytes()
    damage, count = DAMAGES[kind]
    damaged = list(damage(second))
    assert len(damaged) == count and second not in damaged
    for each in damaged:
        shutil.rmtree(path.parent)
        path.parent.mkdir()
        path.write_bytes(each)
        previous(path).write_bytes(first)
        falls_back(path, "damaged")


@pytest.mark.parametrize("kind", DAMAGES)
def test_no_whole_generation_is_an_error(kind: str, path: Path) -> None:
    pairs = list(zip(*(DAMAGES[kind][0](each.read_bytes()) for each in (path, previous(path))), strict=True))
    for last, before in pairs:
        path.write_bytes(last)
        previous(path).write_bytes(before)
        ends(path, "last.ckpt: damaged", "last.prev.ckpt: damaged")
    previous(path).unlink()
    ends(path, "last.ckpt: damaged")


def test_another_runs_checkpoint_is_refused(path: Path, tmp_path: Path) -> None:
    save(9, tmp_path / "other" / "last.ckpt", OTHER)
    shutil.copy(tmp_path / "other" / "last.ckpt", path)
    falls_back(path, f"another run ({OTHER[:10]})")
    for each in (path, previous(path)):
        shutil.copy(tmp_path / "other" / "last.ckpt", each)
    ends(path, "last.ckpt: belongs to another run", "last.prev.ckpt: belongs to another run")


def test_a_folder_in_its_place(path: Path) -> None:
    for _ in range(2):  # the second time, another one lies where the first was moved
        path.unlink()
        (path / "archive").mkdir(parents=True)
        there, _ = found(path)
        assert there == previous(path)
        assert names(path) == ["last.ckpt.damaged", "last.prev.ckpt"]
        save(2, path)
    assert generation(previous(path)) == 1
    for each in (path, previous(path)):
        each.unlink()
        each.mkdir()
    ends(path, "last.ckpt: Is a directory", "last.prev.ckpt: Is a directory")


def test_a_folder_where_the_previous_generation_belongs(path: Path) -> None:
    previous(path).unlink()
    (previous(path) / "archive").mkdir(parents=True)
    assert found(path)[0] == path
    save(3, path)
    assert (generation(path), generation(previous(path))) == (3, 2)


def test_a_damaged_previous_generation_is_replaced_by_the_next_save(path: Path) -> None:
    previous(path).write_bytes(b"")
    assert found(path)[0] == path
    save(3, path)
    assert (generation(path), generation(previous(path))) == (3, 2)


# --- files whose checksum is right


class Gadget:
    """Unpickled, it touches a file."""

    def __init__(self, sentinel: Path):
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.sentinel,)


def enveloped(payload: bytes) -> bytes:
    return MAGIC + hashlib.sha256(payload).digest() + payload


def torch_saved(content: object, **format: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **format)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("where", ["whole", "state", "beside"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_no_pickle_is_executed(form: str, where: str, path: Path, tmp_path: Path) -> None:
    gadget = Gadget(tmp_path / "sentinel")
    content = {
        "whole": gadget,
        "state": {"run": RUN, "checkpoint": state(2) | {"callbacks": {"x": gadget}}},
        "beside": {"run": RUN, "checkpoint": state(2), "extra": gadget},
    }[where]
    saved = {
        "zip": lambda: torch_saved(content),
        "legacy": lambda: torch_saved(content, _use_new_zipfile_serialization=False),
        "pickle": lambda: pickle.dumps(content),
    }[form]()
    path.write_bytes(enveloped(saved))
    falls_back(path, "cannot be read")
    for each in (path, previous(path)):
        each.write_bytes(enveloped(saved))
    ends(path, "last.ckpt: cannot be read", "last.prev.ckpt: cannot be read")
    assert not gadget.sentinel.exists()
    (pickle.loads if form == "pickle" else lambda data: torch.load(io.BytesIO(data), weights_only=False))(saved)
    assert gadget.sentinel.exists()  # it was live


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not what torch writes",
        torch_saved({"run": RUN, "checkpoint": state(2)})[:-40],
        torch_saved(state(2)),
        torch_saved({"checkpoint": state(2)}),
        torch_saved({"run": RUN}),
        torch_saved({"run": RUN, "checkpoint": None}),
        torch_saved([RUN, state(2)]),
        torch_saved(torch.zeros(3)),
        torch_saved(None),
    ],
    ids=["empty", "text", "cut", "bare", "no run", "no checkpoint", "null", "list", "tensor", "none"],
)
def test_a_right_checksum_around_something_else(payload: bytes, path: Path) -> None:
    path.write_bytes(enveloped(payload))
    falls_back(path, "cannot be read")


@pytest.mark.parametrize("run", [None, 3, ["a"], torch.zeros(3)])
def test_a_run_that_is_no_hash(run: object, path: Path) -> None:
    path.write_bytes(enveloped(torch_saved({"run": run, "checkpoint": state(2)})))
    falls_back(path, "cannot be read")


def test_a_signal_while_reading_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise Stopped(15)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", interrupted)
        with pytest.raises(Stopped):
            found(path)
    assert names(path) == ["last.ckpt", "last.prev.ckpt"]
    assert generation(path) == 2
