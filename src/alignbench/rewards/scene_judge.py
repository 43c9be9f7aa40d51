"""The exact judge as a reward: how nearly a scene's five attributes are as the prompt says, read off the image in closed form."""

from torch import Tensor

from alignbench.rewards.base import Reward
from alignbench.worlds.scenes import nearness, nearness_map


class SceneJudge(Reward):
    """Mean nearness of shape, colour, size, position and background to the prompt's; a pixel earns as shape or as background."""

    name = "scene_judge"
    differentiable = True
    spatial = True
    range = (0.0, 1.0)
    unit = "0 to 1"
    licence = "Apache-2.0"
    backbones = ("the exact judge's reading",)
    datasets = ()

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        return nearness_map(images, prompts).to(images)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return nearness(images, prompts).mean(1).to(images)
