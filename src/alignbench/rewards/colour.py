"""How close pixels are to the colours that the prompt names: differentiable, and a map over pixels."""

import re
from typing import ClassVar

import torch
from torch import Tensor

from alignbench.ranges import Positive
from alignbench.rewards.base import Reward
from alignbench.worlds.scenes import COLOURS


class Colour(Reward):
    """A pixel earns exp(-d^2 / width^2), d its RGB distance to the nearest colour that the prompt names; an image earns the mean."""

    name = "colour"
    differentiable = True
    spatial = True
    range = (0.0, 1.0)
    unit = "0 to 1"
    licence = "Apache-2.0"
    backbone = ""
    training_data = ""
    columns: ClassVar[tuple[float, float]] = (0.0, 1.0)  # the part of the width that counts

    def __init__(self, *, width: Positive):
        super().__init__()
        self.width = width

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        maps = []
        for image, prompt in zip(images, prompts, strict=True):
            named = [COLOURS[word] for word in re.findall(r"[a-z]+", prompt.lower()) if word in COLOURS]
            if not named:
                raise ValueError(f"reward=colour needs a colour in the prompt ({', '.join(COLOURS)}); there is none in {prompt!r}")
            palette = torch.tensor(named, device=image.device, dtype=image.dtype)[:, :, None, None]
            nearest = (image - palette).square().sum(1).amin(0)  # [H,W] squared distance
            maps.append(torch.exp(-nearest / self.width**2))
        counted = torch.zeros(images.shape[3], device=images.device, dtype=images.dtype)
        counted[self._counts(images)] = 1
        return torch.stack(maps) * counted

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.map(images, prompts)[:, :, self._counts(images)].flatten(1).mean(1)

    def _counts(self, images: Tensor) -> slice:
        first, last = (round(part * images.shape[3]) for part in self.columns)
        return slice(first, last)


class ColourLeft(Colour):
    """`colour` of the left half alone: the map is 0 in the right half, and an image earns the left half's mean."""

    name = "colour_left"
    differentiable = True
    spatial = True
    columns = (0.0, 0.5)


class ColourRight(Colour):
    """`colour` of the right half alone."""

    name = "colour_right"
    differentiable = True
    spatial = True
    columns = (0.5, 1.0)
