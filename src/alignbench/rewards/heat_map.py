"""A drawn map says where another reward counts: white for it, black against it, grey not at all. For PXPO (2404.04356)."""

import json
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from alignbench.config import MissingAsset
from alignbench.labels import painted
from alignbench.ranges import Text
from alignbench.rewards.base import Reward


class HeatMap(Reward):
    """A pixel earns what was drawn there, from -1 to 1, times what a spatial reward gives it; an image earns the mean."""

    name = "heat_map"
    differentiable = True  # where `of` is
    spatial = True
    range = (-1.0, 1.0)
    unit = "that of the reward, times -1 to 1"
    licence = "Apache-2.0"
    backbones = ()
    datasets = ()

    heat: Tensor  # [1,1,height,width] of the drawing

    def __init__(self, *, path: Text, of: Reward):
        """path: a PNG, one for all prompts, white 1, grey (128) or clear 0, black -1; it is averaged over areas to an image's size, or
        repeated where it is smaller; of: a spatial reward. Raises MissingAsset where the PNG is not there, ValueError where it is none.
        """
        super().__init__()
        if not of.spatial:
            raise ValueError(f"reward.of: reward {of.name} scores whole images only; reward=heat_map needs a spatial one, e.g. colour")
        if not Path(path).is_file():
            raise MissingAsset(
                f"reward.path={path}: not there; draw a PNG with any program: white counts for, black against, grey (128) not"
            )
        drawn = painted(Path(path))
        if not drawn.any():
            raise ValueError(f"reward.path={path}: grey or clear everywhere, so that nothing counts; draw in white or black")
        self.register_buffer("heat", drawn[None, None])
        self.of, largest = of, max(map(abs, of.range))
        self.differentiable, self.gold, self.grouped = of.differentiable, of.gold, of.grouped  # type: ignore[misc]
        self.range, self.unit, self.licence = (-largest, largest), f"{of.unit}, times -1 to 1", of.licence  # type: ignore[misc]
        self.stand_on(of.backbones, of.datasets, (of.name, *of.members))
        self.frame, self.size_gb = of.frame, of.size_gb  # type: ignore[misc]

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        return F.interpolate(self.heat, images.shape[2:], mode="area")[:, 0].to(images) * self.of.map(images, prompts)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.map(images, prompts).flatten(1).mean(1)

    def identity(self) -> dict[str, str]:
        return super().identity() | {"settings": f"of={json.dumps(self.of.identity(), sort_keys=True)}"}
