"""A frozen feature space: images as points, between whose sets and neighbours distances mean something."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignbench.identity import identity


class FeatureSpace(nn.Module, ABC):
    """Adapters implement `features`. A row depends on its own image alone, and not on the precision of training."""

    name: ClassVar[str]
    dimensions: int
    licence: ClassVar[str]  # of the weights
    backbone: ClassVar[str] = ""  # a judge with the same one is no independent witness
    size_gb: ClassVar[float] = 0.0  # of what must be fetched

    def forward(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [0,1] to features [B,dimensions] in fp32, on the images' device; no gradient."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.features(images.float().clamp(0, 1)).float()

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Of images in fp32: [B,dimensions]."""

    def train(self, mode: bool = True) -> "FeatureSpace":
        """Always in eval mode."""
        return super().train(False)

    def identity(self) -> dict[str, str]:
        """What the features depend on beside the images: name, settings and the hash of the weights."""
        return identity(self, self.name)


def as_saved(images: Tensor) -> Tensor:
    """Rounded to 8 bits as a PNG holds them, so that a set read from files and one from memory are one set: [B,3,H,W] in [0,1]."""
    return (images * 255).round() / 255


def squashed(images: Tensor, size: int) -> Tensor:
    """The whole image on a square [B,3,size,size], whatever its shape, by an antialiased bicubic filter; values may overshoot [0,1]."""
    return F.interpolate(as_saved(images), (size, size), mode="bicubic", align_corners=False, antialias=True)
