"""Gold: whether the exact judge finds all five attributes of a scene right. For evaluation: trained on, it is no gold standard."""

from torch import Tensor

from alignbench.rewards.base import Reward
from alignbench.worlds.scenes import correct


class ExactJudge(Reward):
    """1 where shape, colour, size, position and background are all as the prompt says, else 0."""

    name = "exact_judge"
    gold = True
    differentiable = False
    spatial = False
    range = (0.0, 1.0)
    unit = "share of images"
    licence = "Apache-2.0"
    backbones = ("the exact judge's reading",)
    datasets = ()

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return correct(images, prompts).all(1).float().to(images.device)
