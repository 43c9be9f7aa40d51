"""A frozen judge of images. Larger is better; images are [B,3,H,W] in [0,1]."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from alignbench.identity import identity

UNKNOWN = "unknown"  # among the names of a judge's backbones or data: there is something that nobody has said


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
    backbones: ClassVar[tuple[str, ...]] = (UNKNOWN,)  # what it starts from, and what that started from: networks, a reading, a person
    datasets: ClassVar[tuple[str, ...]] = (UNKNOWN,)  # what it learned to judge from; what a backbone learned before goes with its name
    members: ClassVar[tuple[str, ...]] = ()  # the names of the judges that it is made of
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

    def stand_on(self, backbones: tuple[str, ...], datasets: tuple[str, ...], members: tuple[str, ...] = ()) -> None:
        """For a judge whose settings decide on what it stands."""
        self.backbones, self.datasets, self.members = backbones, datasets, members  # type: ignore[misc]

    @property
    def costly(self) -> bool:
        """Whether its scores are worth remembering on disk: a large network's, or another process's."""
        return self.size_gb > 0

    def identity(self) -> dict[str, str]:
        """What scores depend on beside images and prompts: name, settings and the hash of the weights; a judge elsewhere says its own."""
        return identity(self, self.name)


def kinship(trained: Reward | type[Reward], other: Reward | type[Reward]) -> tuple[Literal["held out", "related", "unknown"], str]:
    """Whether `other` may judge what `trained` has trained, by what they say of themselves, and why if not.

    Related: they share a backbone, data to learn from, or a judge; unknown: they share nothing that is known, and not all is known.
    """
    first, second = ({each.name, *each.members, *each.backbones, *each.datasets} for each in (trained, other))
    if shared := sorted(first & second - {UNKNOWN}):
        return "related", f"{trained.name} and {other.name} both stand on {', '.join(shared)}"
    if silent := [each.name for each, names in ((trained, first), (other, second)) if UNKNOWN in names]:
        return "unknown", f"{' and '.join(silent)}: what it stands on is not all known"
    return "held out", ""
