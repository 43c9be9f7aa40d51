"""A frozen judge of images. Larger is better; images are [B,3,H,W] in [0,1]."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn


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
