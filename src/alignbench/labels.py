"""What a person says of a run's images: the labels folder, the journal of preferences, heat maps.

items.json  images/*.png  rollouts.safetensors  preferences.jsonl  heat/*.png
The first three are there before labelling begins. A heat map has the name and the size of its image. The journal is only ever appended
to, one JSON object a line: {"group": 3, "best": 1}, {"group": 3, "best": null} for a tie, {"undo": true} takes back the last line in
force. A line without its newline does not count.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.config import MissingAsset

if TYPE_CHECKING:
    from torch import Tensor


class Stale(ValueError):
    """The labels have moved on since they were last looked at: another tab, or an answer that got lost."""


@dataclass(frozen=True)
class Group:
    prompt: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Items:
    run: str
    groups: tuple[Group, ...]
    next_step: str
    mark: str  # tells this set of images from every other


def read_items(folder: Path | str) -> Items:
    """What is to be labelled; ValueError where items.json is damaged or an image is missing."""
    folder = Path(folder)
    path = folder / "items.json"
    remedy = f"move {folder} away, and `python -m alignbench label` makes it anew"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: `python -m alignbench label outputs/<run>` makes it") from None
    try:
        items = json.loads(data)
        if items["format"] != 1:
            raise ValueError(f"format {items['format']!r}, this version reads 1")
        groups = tuple(Group(group["prompt"], tuple(group["images"])) for group in items["groups"])
        run, next_step = items["run"], items.get("next_step", "")
        names = [name for group in groups for name in group.images]
        if not all(isinstance(text, str) for text in (run, next_step, *names, *(group.prompt for group in groups))):
            raise ValueError("a run, prompt, image or next_step that is not a string")
        if not groups or min(len(set(group.images)) for group in groups) < 2:
            raise ValueError("a group has two or more different images, and there is at least one group")
        if wrong := [name for name in names if Path(name).name != name or not name.endswith(".png") or "\0" in name]:
            raise ValueError(f"{wrong[0]!r} is not the name of an image")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: damaged ({said}); {remedy}") from None
    if missing := [name for name in names if not (folder / "images" / name).is_file()]:
        raise ValueError(f"{folder / 'images' / missing[0]} is missing ({len(missing)} of {len(names)} are): bring it back, or {remedy}")
    return Items(run, groups, next_step, hashlib.sha256(data).hexdigest()[:16])


def preferences(folder: Path | str) -> list[tuple[int, int | None]]:
    """The labels in force, by group: its index and that of the chosen image, or None for a tie."""
    path = Path(folder) / "preferences.jsonl"
    in_force, _ = _replay(path, _sizes(read_items(folder)))
    return sorted(in_force.items(), key=lambda label: label[0])


def trajectories(folder: Path | str, sampler: dict[str, Any], shape: tuple[int, ...]) -> "Tensor":
    """States [images,T+1,C,h,w] on the way to the labelled images, in the order of items.json.

    sampler: its numbers by name; shape: [T+1,C,h,w], as model and sampler here make them. Raises MissingAsset where there are no labels,
    ValueError for a set of another sampler or model.
    """
    from safetensors import safe_open

    path = Path(folder) / "rollouts.safetensors"
    if not path.is_file():
        raise MissingAsset(f"{path}: not there; `alignbench label <run folder>` makes a labels folder")
    with safe_open(path, "pt") as file:
        x, made = file.get_tensor("x"), json.loads(file.metadata()["sampler"])
    if wrong := [f"{key}={value}" for key, value in made.items() if sampler.get(key) != value]:
        raise ValueError(f"{folder}: labelled images were sampled with {', '.join(wrong)}; set sampler and guidance so")
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"{folder}: labelled trajectories are {list(x.shape[1:])}, model and sampler here make {list(shape)}")
    return x


def painted(path: Path) -> "Tensor":
    """A picture as a heat map [H,W]: 1 where white (good), -1 where black (bad), 0 where grey (128) or clear. Raises ValueError for a file
    that is none.
    """
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            colours = file.convert("RGBA")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: not an image ({error})") from None
    seen = Image.alpha_composite(Image.new("RGBA", colours.size, (128, 128, 128, 255)), colours).convert("L")
    levels = torch.frombuffer(bytearray(seen.tobytes()), dtype=torch.uint8).view(seen.height, seen.width)
    return ((levels.float() - 128) / 127).clamp(min=-1)


def heat(folder: Path | str) -> "dict[int, Tensor]":
    """A person's heat maps [H,W] by image, counted as in items.json and read as in `painted`."""
    maps, named = {}, [name for group in read_items(folder).groups for name in group.images]
    for path in sorted((Path(folder) / "heat").glob("*.png")):
        if path.name not in named:
            raise ValueError(f"{path}: a heat map has the name of its image in {Path(folder) / 'images'}; there is none of this name")
        own, image = painted(path), painted(Path(folder) / "images" / path.name)
        if own.shape != image.shape:
            sizes = [f"{each.shape[1]}x{each.shape[0]}" for each in (own, image)]
            raise ValueError(f"{path}: {sizes[0]} pixels, and its image has {sizes[1]}")
        maps[named.index(path.name)] = own
    return maps


class Journal:
    """preferences.jsonl, open for labelling by this process alone. A choice is on the disk when `choose` returns, or it raised."""

    def __init__(self, folder: Path | str, items: Items) -> None:
        self.path, self.sizes = Path(folder) / "preferences.jsonl", _sizes(items)
        self._lock = threading.Lock()
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise ValueError(f"{self.path}: {error.strerror}; labels are written there") from None
        try:
            self._hold()
            self._in_force, self._end = _replay(self.path, self.sizes)
            _sync_folder(self.path.parent)
        except BaseException:
            self.close()
            raise

    @property
    def in_force(self) -> dict[int, int | None]:
        """Group -> best, in the order in which they were chosen."""
        with self._lock:
            return dict(self._in_force)

    def choose(self, group: int, best: int | None) -> None:
        if type(group) is not int or not 0 <= group < len(self.sizes):
            raise ValueError(f"group {group!r}: a number from 0 to {len(self.sizes) - 1} is wanted")
        if best is not None and (type(best) is not int or not 0 <= best < self.sizes[group]):
            raise ValueError(f"best {best!r}: a number from 0 to {self.sizes[group] - 1} is wanted, or null for a tie")
        with self._lock:
            if group in self._in_force:
                raise Stale(f"group {group} is already labelled")
            self._append({"group": group, "best": best})
            self._in_force[group] = best

    def undo(self, group: int | None = None) -> None:
        """Take back the last choice in force; Stale where there is none, or where `group` is given and it is of another."""
        with self._lock:
            last = next(reversed(self._in_force), None)
            if last is None or group not in (None, last):
                raise Stale("there is nothing to undo" if last is None else f"the last choice is of group {last}, not of {group}")
            self._append({"undo": True})
            del self._in_force[last]

    def close(self) -> None:
        with self._lock:
            file, self._file = self._file, -1
            if file >= 0:
                os.close(file)

    def _hold(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process, however that ends
        except BlockingIOError:
            raise ValueError(f"{self.path} is being labelled by another process: use its page, or stop it with Ctrl-C first") from None
        except OSError:  # a file system without locks
            pass

    def _append(self, entry: dict[str, Any]) -> None:
        if os.fstat(self._file).st_size > self._end:  # what a kill or a full disk left of a line
            os.ftruncate(self._file, self._end)
        line = (json.dumps(entry) + "\n").encode()
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(f"{self.path}: no room for a line")
            os.fsync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)


def _replay(path: Path, sizes: Sequence[int]) -> tuple[dict[int, int | None], int]:
    """The labels in force in order of choice, and where the last whole line ends."""
    in_force: dict[int, int | None] = {}
    *lines, _torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for n, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        match entry:
            case {"undo": True} if in_force and len(entry) == 1:
                in_force.popitem()
            case {"group": int(group), "best": int() | None as best} if len(entry) == 2 and bool not in map(type, entry.values()):
                if not 0 <= group < len(sizes) or (best is not None and not 0 <= best < sizes[group]):
                    raise ValueError(f"{path}, line {n}: labels another set of images than items.json: move {path.name} away to begin anew")
                if group in in_force:
                    raise ValueError(f"{path}, line {n}: group {group} is labelled twice: take one of the lines out")
                in_force[group] = best
            case _:
                raise ValueError(f"{path}, line {n}: damaged: take that line out, or move the file away to begin anew")
    return in_force, sum(len(line) + 1 for line in lines)


def _sizes(items: Items) -> list[int]:
    return [len(group.images) for group in items.groups]


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
