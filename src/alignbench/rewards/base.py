"""A frozen judge of images. Larger is better; images are [B,3,H,W] in [0,1]."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

PLAIN = (str, int, float, bool, tuple, list, type(None))  # attributes that are settings


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
        plain = {key: each for key, each in vars(self).items() if isinstance(each, PLAIN) and key[0] != "_" and key != "training"}
        weights, digest = self.state_dict(), hashlib.sha256()
        for key, each in sorted(weights.items()):
            digest.update(key.encode() + each.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        settings = ", ".join(f"{key}={each}" for key, each in sorted(plain.items()))
        for words in _vocabularies(self):
            settings += f", vocabulary={hashlib.sha256(repr(sorted(words.items())).encode()).hexdigest()[:16]}"
        return {"name": self.name, "settings": settings, "weights": digest.hexdigest() if weights else ""}


def _vocabularies(reward: nn.Module) -> Iterator[dict[str, int]]:
    """Of the tokenizers in a reward's parts: words under other numbers are other scores."""
    for part in reward.modules():
        for each in vars(part).values():
            tokenizer = getattr(each, "tokenizer", each)  # a processor has one
            if hasattr(tokenizer, "get_vocab"):
                yield tokenizer.get_vocab()
