"""A frozen judge of images. Larger is better; images are [B,3,H,W] in [0,1]."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from alignbench.identity import identity


class Unreachable(RuntimeError):
    """The judge is gone (dead, refused, silent, after all tries): no fault of the images that it was asked about."""


class Changed(Unreachable):
    """Under the same address there is another judge than the one that the run began with."""


class Reward(nn.Module, ABC):
    """Adapters implement `forward`, and `map` where they can say which pixels earned the reward."""

    name: ClassVar[str]
    gold: ClassVar[bool] = False  # the truth of a sandbox, hidden from training: a label of its own in every table
    differentiable: ClassVar[bool]
    spatial: ClassVar[bool]
    range: ClassVar[tuple[float, float]]
    unit: ClassVar[str]
    licence: ClassVar[str]
    backbone: ClassVar[str]  # "" where there is no network; two rewards with one backbone are not independent judges
    training_data: ClassVar[str]
    frame: ClassVar[str] = "pixels as they are"  # how an image is resized, cropped and normalised
    size_gb: ClassVar[float] = 0.0  # of what must be fetched
    grouped: ClassVar[bool] = False  # a score depends on the prompt's other images: they are asked about together

    @abstractmethod
    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B]."""

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores a pixel [B,H,W], for methods that assign credit by place."""
        raise ValueError(
            f"reward={self.name} scores whole images only; a method that needs a pixel map takes a spatial reward, e.g. reward=colour"
        )

    def prefer(self, a: Tensor, b: Tensor, prompts: list[str]) -> Tensor:
        """P(a is preferred to b) [B], by Bradley-Terry on the scores."""
        return torch.sigmoid(self(a, prompts) - self(b, prompts))

    @property
    def costly(self) -> bool:
        """Whether its scores are worth remembering on disk: a large network's, or another process's."""
        return self.size_gb > 0

    def identity(self) -> dict[str, str]:
        """What scores depend on beside images and prompts: name, settings and the hash of the weights; a judge elsewhere says its own."""
        return identity(self, self.name)
