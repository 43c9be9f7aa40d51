"""Statistical parity of a prompt's images (Large-scale RL, 2401.12244): no value of an attribute is seen more often than another."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from alignbench.ranges import Text
from alignbench.rewards.base import Reward
from alignbench.rewards.clip import stands_on
from alignbench.rewards.clip_features import ClipFeatures
from alignbench.rewards.groups import credited
from alignbench.worlds.scenes import ATTRIBUTES, COLOURS, POSITIONS, SHAPES, SIZES, read

VALUES = dict(zip(ATTRIBUTES, map(len, (SHAPES, COLOURS, SIZES, POSITIONS, COLOURS)), strict=True))  # how many an attribute has


def parity(shares: Tensor) -> Tensor:
    """R of images [n,A+1], each 1 in the column of its value and else 0: -sum_a (share of a - 1/A)^2.

    The last column is for images that show no value; none is the share wanted of it, or what shows nothing would be even.
    """
    wanted = torch.full_like(shares[0], 1 / (shares.shape[1] - 1))
    wanted[-1] = 0
    return -(shares.mean(0) - wanted).square().sum()


def one_hot(values: Tensor, count: int) -> Tensor:
    """Values [B] from 0 to count - 1, or -1 for none: [B,count+1]."""
    return F.one_hot(values.where(values >= 0, torch.full_like(values, count)), count + 1).float()


class SceneParity(Reward):
    """Parity of one attribute of the sandbox's scenes, as the exact judge reads it. Prompts only say which images compare."""

    name = "scene_parity"
    differentiable = False
    spatial = False
    range = (-1.5, 1.5)
    unit = "squared difference of shares"
    licence = "Apache-2.0"
    backbones = ("the exact judge's reading",)
    datasets = ()
    grouped = True

    def __init__(self, *, attribute: Literal["shape", "colour", "size", "position", "background"]):
        super().__init__()
        self.attribute = attribute

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        seen = one_hot(read(images)[:, ATTRIBUTES.index(self.attribute)], VALUES[self.attribute])
        return credited(parity, seen, prompts, self.name).to(images.device)


class Parity(Reward):
    """Parity of the texts that CLIP finds nearest to each image. CLIP's own prejudices are in what it calls even."""

    name = "parity"
    differentiable = False
    spatial = False
    range = (-1.0, 1.5)
    unit = "squared difference of shares"
    licence = "that of the weights; OpenAI's CLIP: MIT"
    backbones = ("CLIP ViT-L/14",)
    datasets = ("OpenAI's 400 M pairs",)
    frame = "shorter side to CLIP's size (PIL's bicubic), centre, CLIP's mean and std"
    size_gb = 1.7
    grouped = True

    wanted: Tensor  # [groups,D]

    def __init__(self, *, path: Text, revision: str | None, groups: list[Text], template: Text):
        """path: Hub id or folder of a transformers CLIP with its tokenizer; groups: what images may show; template: has {} for one of
        them. Raises MissingAsset where CLIP cannot be had, ValueError for fewer than two different groups or a template without a place.
        """
        super().__init__()
        if len(set(groups)) < max(2, len(groups)):
            raise ValueError(f"reward.groups={groups}: two or more different texts are wanted, one for each value of the attribute")
        if template.count("{}") != 1:
            raise ValueError(f"reward.template={template}: one {{}} is wanted, where a group is put")
        self.groups, self.template = groups, template
        self.clip = ClipFeatures(path, revision)
        self.stand_on(*stands_on(self.clip.net.config.vision_config, path))
        self.register_buffer("wanted", self.clip.texts([template.format(group) for group in groups]))

    def values(self, images: Tensor) -> Tensor:
        """Which of `groups` is nearest to each image: [B]."""
        return (self.clip.images(images) @ self.wanted.T).argmax(1)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return credited(parity, one_hot(self.values(images), len(self.groups)), prompts, self.name).to(images.device)

    def identity(self) -> dict[str, str]:
        own = super().identity()
        return own | {"settings": f"{own['settings']}, groups={self.groups}"}
