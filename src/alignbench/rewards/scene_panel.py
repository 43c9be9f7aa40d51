"""Raters of the sandbox's scenes with noise and no bias: a proxy that is gold on average, to set against one that errs."""

import hashlib
from statistics import NormalDist

import torch
from torch import Tensor

from alignbench.ranges import Index, NonNegative
from alignbench.rewards.base import Reward
from alignbench.rewards.content import contents
from alignbench.worlds.scenes import correct


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
        errors = torch.tensor([_normal(self.rater, content) for content in contents(images)])
        return (correct(images, prompts).all(1) + self.noise * errors).to(images.device)


def _normal(rater: int, content: bytes) -> float:
    """Standard normal, a function of both alone: the quantile of 52 bits of their hash, on every machine the same."""
    bits = int.from_bytes(hashlib.sha256(f"{rater}:".encode() + content).digest()[:8]) >> 12
    return NormalDist().inv_cdf((bits + 0.5) / 2**52)
