"""A person's choices as scores of the images that were labelled, to compare judges with the person. It cannot score any other image."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from alignbench.config import MissingAsset
from alignbench.labels import preferences, read_items
from alignbench.ranges import Text
from alignbench.rewards.base import Reward
from alignbench.rewards.content import contents, digest


class Human(Reward):
    """The share of an image's comparisons that it won, a tie being half: each image against the one chosen, and that against each other.

    An image is found by its 8-bit content; prompts are not read.
    """

    name = "human"
    differentiable = False
    spatial = False
    range = (0.0, 1.0)
    unit = "share of comparisons won"
    licence = "that of the labels"
    backbones = ("a person",)
    datasets = ()

    def __init__(self, *, path: Text):
        """path: a labels folder of `alignbench label`. Raises MissingAsset where there is none, ValueError where nothing is labelled."""
        super().__init__()
        folder = Path(path)
        if not (folder / "items.json").is_file():
            raise MissingAsset(f"reward.path={path}: no labels there; `python -m alignbench label outputs/<run>` makes a labels folder")
        groups, compared = read_items(folder).groups, dict[bytes, list[float]]()
        for group, best in preferences(folder):
            seen = [content(folder / "images" / image) for image in groups[group].images]
            for index, image in enumerate(seen):
                others = len(seen) - 1
                won = [0.5] * others if best is None else [1.0] * others if index == best else [0.0]
                compared.setdefault(image, []).extend(won)
        if not compared:
            raise ValueError(f"reward.path={path}: nothing is labelled there yet; `python -m alignbench label <its run>` opens the page")
        self._folder = str(path)
        self.scores = {image: sum(won) / len(won) for image, won in compared.items()}
        self.labels = hashlib.sha256(repr(sorted(self.scores.items())).encode()).hexdigest()

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        seen = contents(images)
        if unknown := [row for row, image in enumerate(seen) if image not in self.scores]:
            raise ValueError(
                f"reward=human: {len(unknown)} of {len(seen)} images are none that was labelled in {self._folder}, and a person's choices "
                "cannot score new images; method=d3po_human and method=pxpo_human train from them"
            )
        return torch.tensor([self.scores[image] for image in seen], device=images.device)


def content(path: Path) -> bytes:
    """The hash of a picture, as `contents` has it for a tensor."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: not an image ({error})") from None
    return digest(*picture.size, picture.tobytes())
