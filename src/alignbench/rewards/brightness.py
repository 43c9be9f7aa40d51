"""How bright pixels are, of the whole image or of one half: a map whose gains have a place, to see where a method's credit goes."""

from typing import ClassVar

import torch
from torch import Tensor

from alignbench.rewards.base import Reward


class Brightness(Reward):
    """The mean of a pixel's three channels."""

    name = "brightness"
    differentiable = True
    spatial = True
    range = (0.0, 1.0)
    unit = "0 to 1"
    licence = "Apache-2.0"
    backbone = ""
    training_data = ""
    columns: ClassVar[tuple[float, float]] = (0.0, 1.0)  # the part of the width that counts

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        width = images.shape[3]
        first, last = (round(part * width) for part in self.columns)
        counted = torch.zeros(width, device=images.device, dtype=images.dtype)
        counted[first:last] = width / (last - first)  # so that an image earns the mean of its map
        return images.mean(1) * counted

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.map(images, prompts).flatten(1).mean(1)


class BrightnessLeft(Brightness):
    """Of the left half alone: the map is 0 in the right half."""

    name = "brightness_left"
    differentiable = True
    spatial = True
    columns = (0.0, 0.5)


class BrightnessRight(Brightness):
    """Of the right half alone: the map is 0 in the left half."""

    name = "brightness_right"
    differentiable = True
    spatial = True
    columns = (0.5, 1.0)
