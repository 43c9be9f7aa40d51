"""JPEG size as a reward (DDPO, 2305.13301, section 5.1): kB at quality 95, in memory; the fewer (or the more), the better."""

import io

import torch
from torch import Tensor

from alignbench.rewards.base import Reward


def kilobytes(images: Tensor) -> Tensor:
    """Size of each image [B,3,H,W] as a quality-95 JPEG in kB (1,000 bytes): [B]."""
    from PIL import Image

    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    sizes = []
    for picture in pixels:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=95)
        sizes.append(buffer.tell() / 1000)
    return torch.tensor(sizes, device=images.device)


class JpegCompressibility(Reward):
    """Minus the size in kB; prompts are not read."""

    name = "jpeg_compressibility"
    differentiable = False
    spatial = False
    range = (-float("inf"), 0.0)
    unit = "-kB"
    licence = "Apache-2.0"
    backbones = ("JPEG of quality 95",)
    datasets = ()

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return -kilobytes(images)


class JpegIncompressibility(JpegCompressibility):
    """The size in kB."""

    name = "jpeg_incompressibility"
    range = (0.0, float("inf"))
    unit = "kB"

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return kilobytes(images)
