"""Given pictures: folders and shards hold the same, draws are the key's alone, and what is wrong ends in one line that names it."""

import json
import os
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import FULL
from methods_zoo import Hill
from picture_files import NAMES, TEXTS, TINY, bomb, images, pixels, png, tar
from PIL import Image

from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.config import ConfigError, MissingAsset
from alignbench.datasets.pictures import ImageFolder, Pictures
from alignbench.datasets.shards import expanded
from alignbench.datasets.webdataset import WebDataset
from alignbench.methods.pso_offline import PSOOffline
from alignbench.models.gaussian_world import GaussianWorld
from alignbench.policy import Policy
from alignbench.rewards.judge import Judge
from alignbench.rng import Draws, generator
from alignbench.samplers.few_step import FewStep

ROWS = list(zip(NAMES, TEXTS, strict=True))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- the layouts


def jsonl(rows: list[tuple[Any, Any]] = ROWS, image: str = "file_name", text: str = "text") -> str:
    """A folder `data` with these rows."""
    listing = images(Path("data")) / "metadata.jsonl"
    listing.write_text("".join(json.dumps({image: name, text: said}, ensure_ascii=False) + "\n" for name, said in rows), encoding="utf-8")
    return "data"


def csv(rows: list[tuple[str, str]] = ROWS) -> str:
    lines = ["file_name,text", *(f'{name},"{said}"' for name, said in rows)]
    (images(Path("data")) / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return "data"


def parquet() -> str:
    pyarrow.parquet.write_table(pyarrow.table({"file_name": NAMES, "text": TEXTS}), images(Path("data")) / "metadata.parquet")
    return "data"


def members(kind: str = "txt", rows: range = range(4)) -> list[tuple[str, bytes]]:
    """Captions before their picture or after it: the order in a shard does not matter."""
    found = []
    for index in rows:
        text = TEXTS[index].encode() if kind == "txt" else json.dumps({"caption": TEXTS[index], "width": 9}).encode()
        pair = [(f"./some/{index}.png", png(index)), (f"./some/{index}.{kind}", text), (f"./some/{index}.cls", b"7")]
        found += pair if index % 2 else pair[::-1]
    return found


def one_shard(kind: str) -> str:
    return str(tar(Path("shards/0.tar"), members(kind)))


def two_shards(path: str) -> str:
    tar(Path("shards/08.tar"), members("txt", range(3)))
    tar(Path("shards/09.tar"), members("json", range(3, 4)))
    Path("shards/notes.md").write_text("no shard")
    return path


LAYOUTS: dict[str, tuple[type, Callable[[], str]]] = {
    "jsonl": (ImageFolder, jsonl),
    "csv": (ImageFolder, csv),
    "parquet": (ImageFolder, parquet),
    "tar, txt": (WebDataset, partial(one_shard, "txt")),
    "tar, json": (WebDataset, partial(one_shard, "json")),
    "a folder of shards": (WebDataset, partial(two_shards, "shards")),
    "a glob": (WebDataset, partial(two_shards, "shards/*.tar")),
    "braces": (WebDataset, partial(two_shards, "shards/{08..09}.tar")),
    "a list in braces": (WebDataset, partial(two_shards, "{shards}/{08,09}.tar")),
}


def drawn(pictures: Pictures, epoch: int = 0, count: int = 12) -> tuple[torch.Tensor, list[str]]:
    return pictures.draw(count, Draws(0, epoch).one("pictures"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same(layout: str) -> None:
    kind, write = LAYOUTS[layout]
    pictures, texts = drawn(kind(path=write(), size=24))
    order = torch.randint(4, (12,), generator=Draws(0, 0).one("pictures")).tolist()
    assert set(order) == {0, 1, 2, 3}
    assert texts == [TEXTS[index] for index in order]
    for picture, index in zip(pictures, order, strict=True):
        assert picture.shape == (3, 24, 24) and picture.dtype == torch.float32
        if index < 3:  # of the first three the square around the centre has 24 pixels: nothing is resized
            height, width = pixels(index).shape[:2]
            top, left = (height - 24) // 2, (width - 24) // 2
            assert torch.equal(picture * 255, pixels(index)[top : top + 24, left : left + 24].permute(2, 0, 1).float())


def test_draws_are_the_keys_alone() -> None:
    folder = ImageFolder(path=jsonl(), size=8)
    first = drawn(folder)
    drawn(folder, 1)
    assert torch.equal(drawn(folder)[0], first[0]) and drawn(folder)[1] == first[1]
    assert drawn(ImageFolder(path="data", size=8))[1] == first[1] != drawn(folder, 1)[1]


def test_columns_have_the_names_that_are_given() -> None:
    folder = ImageFolder(path=jsonl(image="file", text="said"), size=8, image="file", text="said")
    tar(Path("a.tar"), [("0.png", png(0)), ("0.json", b'{"alt": "a cat"}')])
    assert drawn(folder)[1] == drawn(WebDataset(path=one_shard("txt"), size=8))[1]
    assert WebDataset(path="a.tar", size=8, text="alt").draw(1, generator(0, "one"))[1] == ["a cat"]


def test_a_picture_is_turned_as_its_exif_says() -> None:
    folder = images(Path("data"))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    Image.fromarray(pixels(0).numpy()).save(folder / "0.png", exif=exif)
    (folder / "metadata.csv").write_text("file_name,text\n0.png,a")
    picture = ImageFolder(path="data", size=24).draw(1, generator(0, "one"))[0][0]
    upright = pixels(0)[:, 8:32].permute(2, 0, 1).float() / 255
    assert torch.equal(picture, upright.rot90(-1, (1, 2)))


def test_braces_count_with_their_zeros_and_list() -> None:
    assert expanded("a/{08..11}-{x,y}.tar", "here") == [f"a/{n:02d}-{x}.tar" for n in range(8, 12) for x in "xy"]
    assert expanded("{8..10}", "here") == ["8", "9", "10"]
    assert expanded("plain.tar", "here") == ["plain.tar"]


def test_a_caption_stands_before_what_is_said_of_its_origin() -> None:
    """As img2dataset writes them: .txt is the caption, .json the rest, which may have none."""
    tar(Path("a.tar"), [("0.jpg", png(0)), ("0.json", b'{"caption": null, "url": "x"}'), ("0.txt", b"\xef\xbb\xbf a cat \n")])
    assert WebDataset(path="a.tar", size=8).draw(1, generator(0, "one"))[1] == ["a cat"]


# --- who learns from them


def test_sft_learns_from_either_layout_alike() -> None:
    words = ["method=sft", *TINY, "method.images=6", "method.images_per_prompt=1", "method.batch=4", "method.steps=2"]
    jsonl()
    two_shards("")
    kinds = {"pictures.ImageFolder": "data", "webdataset.WebDataset": "'shards/{08..09}.tar'"}
    rows = []
    for kind, path in kinds.items():
        assert main([*words, f"method.pictures={{_target_: alignbench.datasets.{kind}, path: {path}, size: 2}}"]) == 0
        (folder,) = [each for each in Path("outputs").glob("sft-*") if each.name not in {row for row, _ in rows}]
        rows.append((folder.name, (folder / "metrics.jsonl").read_text()))
    assert "eps_error" in rows[0][1]
    assert rows[0][1] == rows[1][1]


def test_offline_pso_learns_from_shards() -> None:
    two_shards("")
    world = GaussianWorld(shape=(1, 2, 2), mean=0.5, std=0.7)
    world.grow("policy", FULL)
    policy = Policy(world, FewStep(times=[999, 749, 499, 249], kernel="euler_ancestral", guidance=1.0), "policy", chunk=8)
    numbers: dict[str, Any] = {"images": 6, "batch": 4, "steps": 1, "form": "preference", "beta": 5.0, "neg_defactor": 0.1}
    numbers |= {"prior_weight": 0.5, "micro_batch": 4, "processes": 1}
    pictures = WebDataset(path="shards", size=2)
    method = PSOOffline(policy=policy, judge=Judge(Hill(), world.meters), pictures=pictures, **numbers)
    (batch,) = method.collect([], Draws(0, 0))
    given = pictures.draw(6, Draws(0, 0).one("pictures"))[0]
    assert all(any(torch.equal(x0, each[:1]) for each in given) for x0 in batch.win.x0)
    assert method.loss(batch)[0].isfinite()


def test_other_pictures_are_another_run() -> None:
    """Listings and shards by what is in them, the pictures that a listing names by name and size; what runs write there is none of them."""
    words = ["method=sft", *TINY, "method.pictures={_target_: alignbench.datasets.pictures.ImageFolder, path: ., size: 2}"]
    jsonl()
    os.rename("data/metadata.jsonl", "metadata.jsonl")
    seen = [compose(words).hash]
    for change in (
        lambda: Path("metadata.jsonl").write_text(Path("metadata.jsonl").read_text().replace("red", "raw"), encoding="utf-8"),
        lambda: Path("data/0.png").write_bytes(png(1)),
        lambda: Path("data/4.png").write_bytes(png(1)),
    ):
        change()
        seen.append(again(words))
    assert len(set(seen)) == len(seen)
    Path("outputs/a run").mkdir(parents=True)
    Path("outputs/a run/0.png").write_bytes(png(0))
    assert again(words) == seen[-1]
    shards = [
        *words[:-1],
        f"method.pictures={{_target_: alignbench.datasets.webdataset.WebDataset, path: '{two_shards('shards/0*.tar')}', size: 2}}",
    ]
    before = again(shards)
    tar(Path("shards/010.tar"), members("txt", range(1)))
    assert again(shards) != before


def again(words: list[str]) -> str:
    from alignbench.compose import _digest

    _digest.cache_clear()
    return compose(words).hash


# --- what is wrong, and what the one line names


def listed(text: str, name: str = "metadata.csv") -> Callable[[], str]:
    def write() -> str:
        (images(Path("data")) / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        return "data"

    return write


def in_shard(*entries: tuple[str, bytes]) -> Callable[[], str]:
    return lambda: str(tar(Path("a.tar"), [*members("txt", range(1)), *entries]))


def cut(keep: Callable[[int, int], int]) -> Callable[[], str]:
    """keep: from the size of a shard and where its last member ends, how much of it is left."""

    def write() -> str:
        file = tar(Path("a.tar"), members())
        with tarfile.open(file) as archive:
            last = archive.getmembers()[-1]
        end = last.offset_data + -(-last.size // 512) * 512
        file.write_bytes(file.read_bytes()[: keep(file.stat().st_size, end)])
        return "a.tar"

    return write


def linked() -> str:
    Path("secret.png").write_bytes(png(0))
    images(Path("data"))
    Path("data/link.png").symlink_to(Path("secret.png").resolve())
    return listed("file_name,text\n0.png,a\nlink.png,b")()


def link_in_shard() -> str:
    with tarfile.open("a.tar", "w") as archive:
        entry = tarfile.TarInfo("0.jpg")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    return "a.tar"


def packed() -> str:
    with tarfile.open("a.tar", "w:gz") as archive:
        archive.add(images(Path("data")), "data")
    return "a.tar"


def damaged_header() -> str:
    """tarfile itself takes it for the end of the archive, and would leave out what follows."""
    file = tar(Path("a.tar"), members())
    with tarfile.open(file) as archive:
        third = archive.getmembers()[6]
    data = bytearray(file.read_bytes())
    data[third.offset + 100 : third.offset + 120] = b"x" * 20
    file.write_bytes(data)
    return "a.tar"


FOLDER, SHARDS = "pictures.ImageFolder", "webdataset.WebDataset"
WRONG: dict[str, tuple[str, Callable[[], str], list[str]]] = {
    "two listings": (FOLDER, lambda: jsonl() and csv(), ["metadata.jsonl and metadata.csv", "keep"]),
    "no such column": (FOLDER, listed("file,text\n0.png,a"), ["metadata.csv", "no column file_name"]),
    "no row": (FOLDER, listed("file_name,text\n"), ["metadata.csv", "no rows"]),
    "no caption": (FOLDER, listed("file_name,text\n0.png,a\n1.png,"), ["row 2", "blank"]),
    "a caption that is none": (FOLDER, partial(jsonl, [("0.png", "a"), ("1.png", 3)]), ["row 2", "text"]),
    "no picture": (FOLDER, listed("file_name,text\n0.png,a\n9.png,b"), ["row 2", "9.png"]),
    "out by ..": (FOLDER, listed("file_name,text\n0.png,a\nx/../../0.png,b"), ["row 2", "leads out"]),
    "out by a root": (FOLDER, listed("file_name,text\n0.png,a\n/etc/passwd,b"), ["row 2", "leads out"]),
    "out by a link": (FOLDER, linked, ["row 2", "link.png", "leads out"]),
    "NUL in a name": (FOLDER, partial(jsonl, [("0.png", "a"), ("1\0.png", "b")]), ["row 2", "NUL"]),
    "not UTF-8": (FOLDER, listed("file_name,text\n0.png,a\n1.png,\udcff"), ["row 2", "UTF-8"]),
    "half a shard": (SHARDS, cut(lambda size, end: end // 2), ["a.tar", "cut short"]),
    "a shard without its last bytes": (SHARDS, cut(lambda size, end: end - 500), ["a.tar", "cut short"]),
    "a shard without its end mark": (SHARDS, cut(lambda size, end: end), ["a.tar", "cut short"]),
    "a damaged header": (SHARDS, damaged_header, ["a.tar", "damaged after 2 samples"]),
    "a shard that is packed": (SHARDS, packed, ["a.tar", "no plain .tar"]),
    "an empty shard": (SHARDS, lambda: str(tar(Path("a.tar"), [])), ["a.tar", "no picture"]),
    "a picture without a caption": (SHARDS, in_shard(("8.webp", b"")), ["a.tar, member 8.webp", "without a caption"]),
    "a caption without a picture": (SHARDS, in_shard(("8.txt", b"a")), ["a.tar, member 8.txt", "without its picture"]),
    "a caption that is not UTF-8": (SHARDS, in_shard(("8.txt", b"\xff")), ["a.tar, member 8.txt", "UTF-8"]),
    "a blank caption": (SHARDS, in_shard(("8.txt", b" \n")), ["a.tar, member 8.txt", "blank"]),
    "NUL in a caption": (SHARDS, in_shard(("8.txt", b"a\0")), ["a.tar, member 8.txt", "NUL"]),
    "a caption that is a number": (SHARDS, in_shard(("8.json", b'{"caption": 8}')), ["a.tar, member 8.json", "text"]),
    "a .json that is none": (SHARDS, in_shard(("8.json", b"{")), ["a.tar, member 8.json", "not JSON"]),
    "a .json without its caption": (SHARDS, in_shard(("8.json", b"{}"), ("8.jpg", b"")), ["a.tar, member 8.jpg", "without a caption"]),
    "a picture that is not read": (SHARDS, in_shard(("8.gif", b"")), ["a.tar, member 8.gif", "not read"]),
    "a member that leads out": (SHARDS, in_shard(("x/../../8.jpg", b"")), ["a.tar, member x/../../8.jpg", "leads out"]),
    "a member with a root": (SHARDS, in_shard(("/8.jpg", b"")), ["a.tar, member /8.jpg", "leads out"]),
    "a member that is a link": (SHARDS, link_in_shard, ["a.tar, member 0.jpg", "link"]),
    "two pictures of a key": (SHARDS, in_shard(("8.jpg", b""), ("8.png", b"")), ["a.tar, member 8.png", "second picture"]),
    "a member twice": (SHARDS, in_shard(("8.jpg", b""), ("8.JPG", b"")), ["a.tar, member 8.JPG", "twice"]),
    "braces that count down": (SHARDS, lambda: "{9..1}.tar", ["{9..1}", "smaller number first"]),
    "braces without end": (SHARDS, lambda: "{0..9999999}.tar", ["more than"]),
    "a shard of another kind": (SHARDS, lambda: str(tar(Path("a.zip"), [])), ["a.zip", "no .tar"]),
}


def words_for(kind: str, path: str) -> list[str]:
    node = f"{{_target_: alignbench.datasets.{kind}, path: '{path}', size: 2}}"
    return [
        "method=sft",
        *TINY,
        "method.images=40",
        "method.images_per_prompt=1",
        "method.batch=4",
        "method.steps=1",
        f"method.pictures={node}",
    ]


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str) -> None:
    kind, write, said = WRONG[case]
    with pytest.raises(ConfigError) as error:
        (ImageFolder if kind == FOLDER else WebDataset)(path=write(), size=2)
    assert [each for each in said if each not in str(error.value)] == [], error.value
    assert not Path("some").exists() and not Path("8.jpg").exists()  # nothing is unpacked


@pytest.mark.parametrize("case", list(WRONG)[::3])
def test_what_is_wrong_ends_in_one_line_at_the_front_door(case: str, capsys: Any) -> None:
    kind, write, said = WRONG[case]
    assert main(words_for(kind, write())) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [each for each in said if each not in line] == [], line
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("kind", "path", "said"),
    [
        (FOLDER, "nowhere", "metadata.jsonl"),
        (FOLDER, ".", "metadata.jsonl"),
        (SHARDS, "nowhere.tar", "nowhere.tar"),
        (SHARDS, ".", "no .tar file"),
        (SHARDS, "{0..3}.tar", "1.tar"),
    ],
)
def test_what_is_not_here_is_missing(kind: str, path: str, said: str, capsys: Any) -> None:
    tar(Path("0.tar" if path.startswith("{") else "elsewhere/0.tar"), members())
    assert main(words_for(kind, path)) == 3
    assert said in capsys.readouterr().err.splitlines()[-1]


BROKEN = {
    "cut short": (png(1)[:900], "damaged or cut short"),
    "text": (b"no picture", "not an image"),
    "empty": (b"", "not an image"),
    "a bomb": (bomb(20_000), "decompression bomb"),
    "what may be one": (bomb(10_000), "decompression bomb"),
    "damaged inside": (png(1)[:60] + b"\0" * 40 + png(1)[100:], "damaged"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("kind", [FOLDER, SHARDS])
def test_a_broken_picture_is_named_when_it_is_drawn(kind: str, case: str) -> None:
    data, said = BROKEN[case]
    jsonl()
    Path("data/1.png").write_bytes(data)
    tar(Path("a.tar"), [*members("txt", range(1)), ("1.png", data), ("1.txt", b"a")])
    pictures: Pictures = ImageFolder(path="data", size=8) if kind == FOLDER else WebDataset(path="a.tar", size=8)
    with pytest.raises(ConfigError, match=f"(row 2: 1.png|a.tar, member 1.png): .*{said}") as error:
        pictures.draw(20, generator(0, "one"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [FOLDER, SHARDS])
def test_a_broken_picture_ends_a_run_in_one_line(kind: str, capsys: Any) -> None:
    data = BROKEN["cut short"][0]
    jsonl()
    Path("data/1.png").write_bytes(data)
    tar(Path("a.tar"), [*members("txt", range(1)), ("1.png", data), ("1.txt", b"a")])
    assert main(words_for(kind, "data" if kind == FOLDER else "a.tar")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alignbench: ")]
    assert "1.png" in line and "cut short" in line


def test_a_shard_that_is_cut_after_it_was_indexed_is_damaged() -> None:
    pictures = WebDataset(path=one_shard("txt"), size=8)
    os.truncate("shards/0.tar", 2000)
    with pytest.raises(ConfigError, match=r"shards/0\.tar, member \./some/3\.png: not an image|shards/0\.tar, member \./some/.*cut short"):
        pictures.draw(20, generator(0, "one"))
    os.remove("shards/0.tar")
    with pytest.raises(ConfigError, match="cannot be read"):
        pictures.draw(20, generator(0, "one"))


def test_a_folder_without_a_listing_is_missing() -> None:
    with pytest.raises(MissingAsset, match=r"none of metadata\.jsonl, metadata\.csv, metadata\.parquet there"):
        ImageFolder(path=str(images(Path("data"))), size=8)
