"""`alignbench parity`: each native judge beside the official package in its own environment, on the same weights and images."""

import gc
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignbench import __version__
from alignbench.compose import compose
from alignbench.config import ConfigError
from alignbench.experiment import made
from alignbench.rewards import made_up
from alignbench.rewards.base import Reward
from alignbench.signatures import nearest

TOLERANCE = 1e-4  # of a score: rounding of fp32 through two dozen layers is far below it, anything meant otherwise far above
USAGE = "alignbench parity [imagereward hpsv2 hpsv2_1] [path=FILE] [tokenizer=FOLDER] [images=6]"
PROMPTS = ["a red circle on the left", "a photo of a dog, 4k", "two small blue squares; nothing else!", "checked cloth"]
CONTROLS = 2  # images that a spoiled judge is asked about


@dataclass(frozen=True)
class Pair:
    """A native judge whose official twin is the reward of the same name with `_official`."""

    file: str  # the published file's name
    weights: Callable[[], Any]  # random, as that file holds them
    spoil: Callable[[Any], str]  # changes one number of the native judge, and says which
    libraries: tuple[str, ...]  # that the native judge stands on


@dataclass(frozen=True)
class Order:
    judges: list[str]
    path: Path | None
    tokenizer: Path | None
    images: int


@dataclass(frozen=True)
class Row:
    judge: str
    sizes: str
    ours: Tensor  # [B]
    theirs: Tensor  # [B]
    spoiled: Tensor  # [C] scores of the first images after one number was changed
    spoil: str
    versions: tuple[str, str]

    @property
    def apart(self) -> float:
        return (self.ours - self.theirs).abs().max().item()

    @property
    def control(self) -> float:
        return (self.spoiled - self.theirs[: len(self.spoiled)]).abs().max().item()

    @property
    def verdict(self) -> str:
        """blind: so small a spread, or so dull a comparison, that agreement would mean nothing."""
        if not self.apart <= TOLERANCE:
            return "apart"
        spread = (self.theirs.max() - self.theirs.min()).item()
        return "ok" if self.control > TOLERANCE and spread > 10 * TOLERANCE else "blind"


def eight_heads(judge: Any) -> str:
    """As transformers' own default: loads without a word."""
    for layer in judge.net.text.encoder.layer:
        for attention in (layer.attention.self, layer.crossattention.self):
            attention.num_attention_heads, attention.attention_head_size = 8, attention.all_head_size // 8
    return "BERT with 8 heads, not 12"


def no_antialias(judge: Any) -> str:
    judge.antialias = False
    return "images shrunk without antialias"


PAIRS = {
    "imagereward": Pair("ImageReward.pt", made_up.image_reward, eight_heads, ("torch", "transformers")),
    "hpsv2": Pair("HPS_v2_compressed.pt", made_up.hpsv2, no_antialias, ("torch", "open_clip_torch")),
    "hpsv2_1": Pair("HPS_v2.1_compressed.pt", made_up.hpsv2, no_antialias, ("torch", "open_clip_torch")),
}
FIRST = ["imagereward", "hpsv2"]  # where none is named: hpsv2_1 is hpsv2's network with other weights


def parity(words: list[str]) -> int:
    """The exit code: 0 where all agree within TOLERANCE, else 1. Raises MissingAsset where an environment or a file cannot be had."""
    order = ordered(words)
    rows = [compared(name, PAIRS[name], order) for name in order.judges]
    print(table(rows))
    return int(any(row.verdict != "ok" for row in rows))


def ordered(words: list[str]) -> Order:
    judges = [word for word in words if "=" not in word]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if wrong := [word for word in judges if word not in PAIRS]:
        raise ConfigError(f"parity: {wrong[0]}: no judge with an official package; {nearest(wrong[0], PAIRS)}; {USAGE}")
    if wrong := [key for key in given if key not in ("path", "tokenizer", "images")]:
        raise ConfigError(f"parity: {wrong[0]}: no such setting; {USAGE}")
    if "path" in given and len(judges) != 1:
        raise ConfigError(f"parity: path={given['path']}: is one judge's file; name that judge; {USAGE}")
    if not given.get("images", "6").isdecimal() or int(given.get("images", "6")) < CONTROLS:
        raise ConfigError(f"parity: images={given['images']}: a number from {CONTROLS} is wanted")
    path, tokenizer = (Path(given[key]) if key in given else None for key in ("path", "tokenizer"))
    return Order(list(dict.fromkeys(judges)) or FIRST, path, tokenizer, int(given.get("images", "6")))


def compared(name: str, pair: Pair, order: Order) -> Row:
    """On the CPU, one judge after the other, so that the two are never in memory together."""
    pictures = made_up.pictures(order.images)
    prompts = [PROMPTS[at % len(PROMPTS)] for at in range(len(pictures))]
    with files(pair, order) as given:
        official = judge(f"{name}_official", **given, device="cpu")
        theirs, they = scored(official, pictures, prompts), official.identity()["version"]
        official.close()
        native = judge(name, **given)
        ours = scored(native, pictures, prompts)
        spoil = pair.spoil(native)
        spoiled = scored(native, pictures[:CONTROLS], prompts)
        del native
        gc.collect()
    we = ", ".join([f"alignbench {__version__}", *(f"{each} {version(each)}" for each in pair.libraries)])
    sizes = " ".join(dict.fromkeys(f"{each.shape[3]}x{each.shape[2]}" for each in pictures))
    return Row(name, sizes, ours, theirs, spoiled, spoil, (we, they))


@contextmanager
def files(pair: Pair, order: Order) -> Iterator[dict[str, str]]:
    """Where both sides find their weights and words: as given, else made up in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="alignbench-parity-") as name:
        folder = Path(name)
        path, tokenizer = order.path or folder / pair.file, order.tokenizer or folder
        if order.path is None:
            torch.save(pair.weights(), path)
        if order.tokenizer is None:
            (folder / "vocab.txt").write_text(made_up.vocabulary(PROMPTS))
        yield {"path": str(path), "tokenizer": str(tokenizer)}


def judge(choice: str, **given: str) -> Any:
    """A reward as its YAML has it, with those of the given settings that it knows."""
    node = compose([f"reward={choice}"]).config["reward"]
    return made(node | {key: each for key, each in given.items() if key in node})


def scored(judge: Reward, pictures: list[Tensor], prompts: list[str]) -> Tensor:
    """Scores [B] of images of several sizes, in fp32."""
    with torch.no_grad():
        return torch.cat([judge(picture, [prompt]).float().cpu() for picture, prompt in zip(pictures, prompts, strict=False)])


def table(rows: list[Row]) -> str:
    head = ["judge", "images", "sizes", "largest difference", "spread of scores", "tolerance", ""]
    cells = [
        [
            row.judge,
            str(len(row.ours)),
            row.sizes,
            f"{row.apart:.1e}",
            f"{row.theirs.max() - row.theirs.min():.3f}",
            f"{TOLERANCE:.0e}",
            row.verdict,
        ]
        for row in rows
    ]
    widths = [max(len(line[at]) for line in [head, *cells]) for at in range(len(head))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in [head, *cells]]
    for row in rows:
        lines += ["", f"{row.judge}: {row.versions[0]}", f"{'':<{len(row.judge)}}  against {row.versions[1]}"]
        lines += [f"{'':<{len(row.judge)}}  one thing changed ({row.spoil}): {row.control:.1e} apart"]
    return "\n".join(lines)
