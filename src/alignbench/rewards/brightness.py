"""How bright pixels are, everywhere or by vertical strips: a map whose gains have a place, to see where a method's credit goes."""

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
    backbones = ()
    datasets = ()
    strips: ClassVar[tuple[float, ...]] = (1.0,)  # what the image's equal vertical strips weigh

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        weights = torch.tensor(self.strips, device=images.device, dtype=images.dtype)
        weights = weights / weights.abs().mean()  # so that an image earns the mean of its map
        return images.mean(1) * weights.repeat_interleave(images.shape[3] // len(weights))

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.map(images, prompts).flatten(1).mean(1)


class LightLeft(Brightness):
    """The left half lit from its edge: the outer quarter of the image bright, the inner one dark, and the map is 0 in the right half.

    What changes the whole image alike earns nothing here, so that a gain has a place.
    """

    name = "light_left"
    differentiable = True
    spatial = True
    range = (-0.5, 0.5)
    unit = "-0.5 to 0.5"
    strips = (1.0, -1.0, 0.0, 0.0)


class LightRight(LightLeft):
    """The mirror image of `LightLeft`."""

    name = "light_right"
    differentiable = True
    spatial = True
    range = (-0.5, 0.5)
    strips = (0.0, 0.0, -1.0, 1.0)
