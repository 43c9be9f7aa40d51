"""Raters of the sandbox's scenes with noise and no bias: a proxy that is gold on average, to set against one that errs."""

import hashlib
from statistics import NormalDist

import torch
from torch import Tensor

from alignbench.ranges import Index, NonNegative
from alignbench.rewards.base import Reward
from alignbench.rewards.content import contents
from alignbench.worlds.scenes import correct, nearness


class ScenePanel(Reward):
    """The exact judge's verdict, 1 or 0, plus one rater's normal error about this image: asking again tells no more."""

    name = "panel"  # of an object: with its rater's number, so that several stand in one table
    differentiable = False
    spatial = False
    range = (-float("inf"), float("inf"))
    unit = "share of images"
    licence = "Apache-2.0"
    backbones = ()  # of an object: the rater, a person of its own; what raters share is the truth
    datasets = ()

    def __init__(self, *, noise: NonNegative, rater: Index):
        """noise: standard deviation of the error; rater: whose error it is, independent of every other rater's."""
        super().__init__()
        self.noise, self.rater = noise, rater
        self.name = f"panel_{rater}"  # type: ignore[misc]
        self.stand_on((f"rater {rater}",), ())

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        errors = torch.tensor([_normal(self.rater, content) for content in contents(images.detach())])
        return (self.verdict(images, prompts) + self.noise * errors).to(images.device)

    def verdict(self, images: Tensor, prompts: list[str]) -> Tensor:
        """What all raters would say without their errors: [B]."""
        return correct(images, prompts).all(1).float()


class SmoothPanel(ScenePanel):
    """The mean nearness of the five attributes, as scene_judge has it, plus one rater's normal error: its gradient is unbiased too."""

    name = "smooth_panel"
    differentiable = True
    spatial = False
    unit = "0 to 1"

    def __init__(self, *, noise: NonNegative, rater: Index):
        super().__init__(noise=noise, rater=rater)
        self.name = f"smooth_panel_{rater}"  # type: ignore[misc]

    def verdict(self, images: Tensor, prompts: list[str]) -> Tensor:
        return nearness(images, prompts).mean(1)


def _normal(rater: int, content: bytes) -> float:
    """Standard normal, a function of both alone: the quantile of 52 bits of their hash, on every machine the same."""
    bits = int.from_bytes(hashlib.sha256(f"{rater}:".encode() + content).digest()[:8]) >> 12
    return NormalDist().inv_cdf((bits + 0.5) / 2**52)
