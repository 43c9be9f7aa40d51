"""LAION's aesthetic predictor, version 2: how people would rate an image, whatever its prompt. Differentiable."""

from typing import ClassVar

import torch
from torch import Tensor

from alignbench.config import MissingAsset
from alignbench.ranges import Text
from alignbench.rewards.base import Reward
from alignbench.rewards.clip import L14, Sight, Sizes, weights_at
from alignbench.rewards.head import PUBLISHED_HEAD, HeadWidths, linear_head
from alignbench.weights import filled, first_line, found_at, read

FETCH_CLIP = (
    "fetch model.safetensors (1.7 GB) with `hf download openai/clip-vit-large-patch14 model.safetensors` "
    "and put that id, or the folder that holds the file, in reward.path"
)
FETCH_HEAD = (
    "fetch sac+logos+ava1-l14-linearMSE.pth (3.7 MB) from https://github.com/christophschuhmann/improved-aesthetic-predictor "
    "and put the file's path in reward.head"
)


class Aesthetic(Reward):
    """A linear function of CLIP's unit vector; prompts are not read."""

    name = "aesthetic"
    differentiable = True
    spatial = False
    range = (-float("inf"), float("inf"))
    unit = "points, of ratings from 1 to 10"
    licence = "Apache-2.0; of CLIP: MIT"
    backbones = ("CLIP ViT-L/14",)
    datasets = ("SAC", "LAION Logos", "AVA")
    frame = "shorter side to 224 (PIL's bicubic), centre 224x224, CLIP's mean and std"
    size_gb = 1.7
    sizes: ClassVar[Sizes] = L14
    widths: ClassVar[HeadWidths] = PUBLISHED_HEAD

    def __init__(self, *, path: Text, revision: str | None, head: Text):
        """path: Hub id (at `revision`) or folder with model.safetensors of OpenAI's CLIP ViT-L/14; head: the predictor's file, local or
        `owner/name:file` on the Hub. Raises MissingAsset where they cannot be had, or are not what was published.
        """
        super().__init__()
        try:
            file = found_at(head, None)
            self.head = filled(lambda: linear_head(self.widths), read(file), file.name, lambda key: f"layers.{key}", ())
        except (OSError, ValueError) as error:
            raise MissingAsset(f"reward.head={head}: {first_line(error)}; {FETCH_HEAD}") from error
        try:
            self.sight = Sight(self.sizes, weights_at(path, revision), floor=False)
        except (OSError, ValueError) as error:
            raise MissingAsset(f"reward.path={path}: {first_line(error)}; {FETCH_CLIP}") from error
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        with torch.autocast(
            next(self.head.parameters()).device.type, enabled=False
        ):  # a score does not depend on the precision of training
            return self.head(self.sight(images)).squeeze(1)
