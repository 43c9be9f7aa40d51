"""DINOv2 (2304.07193) through transformers: the class token, as FD-DINOv2 (2306.04675) takes it."""

import torch
from torch import Tensor

from alignbench.features.base import FeatureSpace, squashed
from alignbench.hub import obtained, whole
from alignbench.ranges import Count, Text

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoV2(FeatureSpace):
    """The normalised class token of the last layer; trained without labels or texts, so that no prompt's words pull at it."""

    name = "dinov2"
    licence = "Apache-2.0"
    backbone = "DINOv2"
    size_gb = 1.2  # of ViT-L/14

    mean: Tensor
    std: Tensor

    def __init__(self, *, path: Text, revision: str | None, size: Count):
        """path: Hub id or folder of a transformers Dinov2Model; size: pixels of the square that it sees, a multiple of its patches.

        Raises MissingAsset where it cannot be had, ValueError for a size that is no multiple.
        """
        super().__init__()
        from transformers import Dinov2Model

        self.net = obtained(
            lambda: whole(Dinov2Model, path, revision, torch.float32, spare="none"),
            f"eval.features: path={path}: no DINOv2 there",
            "fetch it with `hf download facebook/dinov2-large` (1.2 GB) or name its local folder",
        )
        if size % self.net.config.patch_size:
            raise ValueError(f"eval.features: dinov2's size={size} must be a multiple of its patches' {self.net.config.patch_size} pixels")
        self.size, self.dimensions = size, self.net.config.hidden_size
        for name, value in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)

    def features(self, images: Tensor) -> Tensor:
        seen = squashed(images, self.size).clamp(0, 1)  # PIL, with which the paper resized, cuts too
        return self.net(pixel_values=(seen - self.mean) / self.std).pooler_output
