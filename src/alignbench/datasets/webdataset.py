"""WebDataset shards: tar files whose members, grouped by the name before its first dot, are a picture and its caption.

The layout is that of the WebDataset library and of img2dataset's output. Nothing is unpacked: an index of where each picture lies is made
once, and a picture is read from there when it is drawn.
"""

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Generator, Tensor

from alignbench.config import ConfigError
from alignbench.datasets.decode import caption, said, square
from alignbench.datasets.shards import files_of
from alignbench.ranges import Count, Text

IMAGES = ("jpg", "jpeg", "png", "webp")
UNREAD = ("gif", "bmp", "tif", "tiff", "avif", "heic", "jxl")  # endings of pictures that would be passed over in silence
CAPTIONS = ("txt", "json")  # where both are there, .txt is the caption and .json says where it is from, as img2dataset writes them
LARGEST = 1_000_000  # bytes of a caption's file, ours


@dataclass(frozen=True, slots=True)
class Member:
    """A picture in a shard."""

    shard: Path
    name: str
    start: int  # where its bytes begin
    size: int
    text: str


class WebDataset:
    """Pictures in .tar files: .jpg, .jpeg, .png or .webp, each with a .txt or .json of the same key."""

    datasets = ("unknown",)

    def __init__(self, *, path: Text, size: Count, text: Text = "caption"):
        """path: a .tar file, a folder of them, or a pattern such as shards/{000..012}.tar; size: pixels, as `ImageFolder`'s; text: where a
        .json has its caption. Raises MissingAsset where there is no such file, ConfigError with shard and member for what is wrong; a
        damaged picture only when it is drawn.
        """
        self.size, called = size, f"method.pictures.path={path}"
        self.members = [member for shard in files_of(path, ".tar", called) for member in _indexed(shard, text)]
        if not self.members:
            raise ConfigError(f"{called}: no picture in it; {', '.join(IMAGES)} are read")

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, list[str]]:
        picked = [self.members[index] for index in torch.randint(len(self.members), (count,), generator=generator).tolist()]
        return torch.stack([self._picture(member) for member in picked]), [member.text for member in picked]

    def _picture(self, member: Member) -> Tensor:
        where = f"{member.shard}, member {member.name}"
        try:
            with member.shard.open("rb") as file:
                file.seek(member.start)
                data = file.read(member.size)
        except OSError as error:
            raise ConfigError(f"{where}: cannot be read ({error.strerror or error})") from None
        return square(data, self.size, where)


def _indexed(shard: Path, column: str) -> list[Member]:
    """The shard's pictures in its order."""
    samples: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for entry in tar:
                _sorted_in(samples, shard, tar, entry, column)
            end = tar.offset
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ConfigError(f"{shard}: no plain .tar file, or cut short ({error})") from None
    with shard.open("rb") as file:  # tarfile takes a damaged header for the end
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise ConfigError(f"{shard}: cut short or damaged after {len(samples)} samples; its end mark is not there")
    return [_paired(shard, key, parts) for key, parts in samples.items()]


def _sorted_in(samples: dict[str, dict[str, Member]], shard: Path, tar: tarfile.TarFile, entry: tarfile.TarInfo, column: str) -> None:
    """Put a member with the others of its key; captions are read at once."""
    if entry.isdir():
        return
    where, path = f"{shard}, member {entry.name}", PurePosixPath(entry.name)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"{where}: its name leads out of the archive; members are named from its root")
    if not entry.isreg() or entry.issparse():
        raise ConfigError(f"{where}: a link, a device or a sparse file; plain files alone are read")
    stem, _, kind = path.name.partition(".")
    kind = kind.lower()
    if kind in UNREAD:
        raise ConfigError(f"{where}: a picture that is not read; {', '.join(IMAGES)} are")
    if not stem or kind not in (*IMAGES, *CAPTIONS):
        return
    text = ""
    if kind in CAPTIONS:
        if entry.size > LARGEST:
            raise ConfigError(f"{where}: {entry.size:,} bytes of caption; at most {LARGEST:,} are read")
        file = tar.extractfile(entry)
        data = file.read() if file else b""
        text = caption(data, where) if kind == "txt" else _in_json(data, column, where)
    parts = samples.setdefault(str(path.parent / stem), {})
    if kind in parts:
        raise ConfigError(f"{where}: its name is there twice")
    parts[kind] = Member(shard, entry.name, entry.offset_data, entry.size, text)


def _in_json(data: bytes, column: str, where: str) -> str:
    """The caption in a .json; empty where the object has none, which is no fault beside a .txt."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where}: not JSON") from None
    if not isinstance(found, dict):
        raise ConfigError(f'{where}: an object with {column} is wanted; write {{"{column}": ...}}')
    return said(found[column], where) if found.get(column) is not None else ""


def _paired(shard: Path, key: str, parts: dict[str, Member]) -> Member:
    images = [parts[kind] for kind in IMAGES if kind in parts]
    if not images:
        raise ConfigError(f"{shard}, member {next(iter(parts.values())).name}: a caption without its picture")
    if len(images) > 1:
        raise ConfigError(f"{shard}, member {images[1].name}: a second picture of {key}; keys are names up to the first dot")
    text = next((parts[kind].text for kind in CAPTIONS if kind in parts and parts[kind].text), "")
    if not text:
        raise ConfigError(f"{shard}, member {images[0].name}: a picture without a caption; put {key}.txt beside it")
    return Member(shard, images[0].name, images[0].start, images[0].size, text)
