"""The sandbox's gold standard as a reward: the share of a scene's five attributes that the exact judge finds right."""

from torch import Tensor

from alignbench.rewards.base import Reward
from alignbench.worlds.scenes import correct


class SceneJudge(Reward):
    """In {0, 0.2, ..., 1}; prompts must be captions of scenes. No network, no gradient."""

    name = "scene_judge"
    differentiable = False
    spatial = False
    range = (0.0, 1.0)
    unit = "share of 5 attributes"
    licence = "Apache-2.0"
    backbone = ""
    training_data = ""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return correct(images, prompts).float().mean(1).to(images.device)
