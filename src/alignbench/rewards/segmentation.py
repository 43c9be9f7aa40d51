"""A segmentation network's probability of a class, pixel by pixel: PXPO's feedback from a model (2404.04356)."""

import re
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from alignbench.config import located
from alignbench.hub import obtained, whole
from alignbench.ranges import Text
from alignbench.rewards.base import UNKNOWN, Reward


class Segmentation(Reward):
    """A pixel earns the probability that it shows `label`, or any class that the prompt names; an image earns the mean."""

    name = "segmentation"
    differentiable = True
    spatial = True
    range = (0.0, 1.0)
    unit = "probability"
    licence = "that of the weights; SegFormer's: NVIDIA, not for commercial use"
    backbones = ("SegFormer B0",)
    datasets = ("ADE20K",)
    frame = "stretched to the processor's size (bilinear, antialiased), its mean and std"
    size_gb = 0.015
    published: ClassVar[str] = "nvidia/segformer-b0-finetuned-ade-512-512"  # whose backbone and data are known

    mean: Tensor
    std: Tensor

    def __init__(self, *, path: Text, revision: str | None, label: str | None):
        """path: Hub id or folder of a transformers network for semantic segmentation and its image processor; label: one of its classes,
        or null: those that the prompt names. Raises MissingAsset where it cannot be had, ValueError for a class that it does not know.
        """
        super().__init__()
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

        def load() -> Any:
            net = whole(AutoModelForSemanticSegmentation, path, revision, torch.float32, spare="auxiliary_head")
            return net, AutoImageProcessor.from_pretrained(located(path), revision=revision, trust_remote_code=False)

        fetch = f"fetch it with `hf download {path}` or name a local folder"
        self.net, processor = obtained(load, f"reward.path={path}: no segmentation network there", fetch)
        if path != self.published:
            self.stand_on((UNKNOWN,), (UNKNOWN,))
        self.classes = {name.lower(): index for index, name in self.net.config.id2label.items()}
        if label is not None and label.lower() not in self.classes:
            raise ValueError(f"reward.label={label}: {path} has no such class; its classes are {', '.join(self.classes)}")
        self.label, self.size = label, (processor.size["height"], processor.size["width"])
        for name, value in (("mean", processor.image_mean), ("std", processor.image_std)):
            self.register_buffer(name, torch.tensor(value)[:, None, None])  # persistent: part of who judges
        self.requires_grad_(False)
        self.eval()

    def _wanted(self, prompt: str) -> list[int]:
        if self.label is not None:
            return [self.classes[self.label.lower()]]
        named = [
            i for name, i in self.classes.items() if any(re.search(rf"\b{re.escape(word)}\b", prompt.lower()) for word in name.split(", "))
        ]
        if not named:
            raise ValueError(f"reward=segmentation: no class of the network is named in {prompt!r}; set reward.label")
        return named

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        seen = F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=True)
        logits = self.net(pixel_values=(seen.to(self.mean) - self.mean) / self.std).logits
        shares = F.interpolate(logits.float().softmax(1), images.shape[2:], mode="bilinear", align_corners=False)
        return torch.stack([share[self._wanted(prompt)].sum(0) for share, prompt in zip(shares, prompts, strict=True)])

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.map(images, prompts).flatten(1).mean(1)
