"""Which skills a gain is made of: the exact judge's verdict on each attribute of a scene, after GenEval's tasks (2310.11513)."""

from typing import Literal

from torch import Tensor

from alignbench.rewards.base import Reward
from alignbench.worlds.scenes import ATTRIBUTES, correct


class SceneSkills(Reward):
    """The share of shape, colour, size, position and background that are as the prompt says; the exact judge pays for all five only."""

    name = "scene_skills"
    gold = True
    differentiable = False
    spatial = False
    range = (0.0, 1.0)
    unit = "share of attributes"
    licence = "Apache-2.0"
    backbones = ("the exact judge's reading",)
    datasets = ()

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return correct(images, prompts).float().mean(1).to(images.device)


class SceneSkill(Reward):
    """1 where one attribute is as the prompt says, else 0, whatever the others are."""

    name = "skill"  # of an object: with its attribute, so that all five stand in one table
    gold = True
    differentiable = False
    spatial = False
    range = (0.0, 1.0)
    unit = "share of images"
    licence = "Apache-2.0"
    backbones = ("the exact judge's reading",)
    datasets = ()

    def __init__(self, *, attribute: Literal["shape", "colour", "size", "position", "background"]):
        super().__init__()
        self.attribute = attribute
        self.name = f"skill_{attribute}"  # type: ignore[misc]

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return correct(images, prompts)[:, ATTRIBUTES.index(self.attribute)].float().to(images.device)
