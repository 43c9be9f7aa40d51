"""The sandbox's captions, split so that validation and test hold (shape, colour) pairs that training never sees; and its scenes."""

from typing import Any

import torch
from torch import Generator, Tensor

from alignbench.worlds import scenes


class Scenes:
    """Prompts by split, in a fixed order."""

    def __init__(self) -> None:
        self.train, self.validation, self.test = (
            [scene.caption for scene in scenes.all_scenes(split)] for split in ("train", "validation", "test")
        )
        self.about: dict[str, dict[str, Any]] = {}


class ScenePictures:
    """Drawn scenes of the training split, for methods that learn from given images."""

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, list[str]]:
        there = scenes.all_scenes("train")
        picked = [there[index] for index in torch.randint(len(there), (count,), generator=generator).tolist()]
        return scenes.draw(picked, generator), [scene.caption for scene in picked]
