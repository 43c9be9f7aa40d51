"""How close pixels are to the colours that the prompt names: differentiable, and a map over pixels."""

import re

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
    backbones = ()
    datasets = ()

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
        return torch.stack(maps)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.map(images, prompts).flatten(1).mean(1)
