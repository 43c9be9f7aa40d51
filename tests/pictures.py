"""Pictures of 8 bits [H,W,3] that are hard to resize, each a function of height and width."""

import numpy as np
import torch
from torch import Tensor

from alignbench.rng import generator

SIZES = [(512, 512), (300, 451), (640, 384), (32, 32), (224, 224)]


def photograph(height: int, width: int) -> np.ndarray:
    """Noise with a photograph's spectrum, 1/f, with a disc that has a hard edge."""
    wave = torch.fft.fft2(torch.randn(3, height, width, generator=generator(0, "photograph")))
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)).clamp(min=1 / max(height, width))
    picture = torch.fft.ifft2(wave / radius).real
    picture = 0.5 + 0.2 * picture / picture.std((1, 2), keepdim=True)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture[:, torch.hypot(y - height / 3, x - width / 2) < min(height, width) / 5] = 0.95
    return (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def checks(height: int, width: int) -> np.ndarray:
    """Black and white squares: the hardest case of overshoot."""
    y, x = np.mgrid[:height, :width]
    return np.repeat((((y // 7 + x // 7) % 2) * 255).astype(np.uint8)[..., None], 3, -1)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def tensor(picture: np.ndarray) -> Tensor:
    """[1,3,H,W] in [0,1]."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None] / 255


def drawn(*shape: int) -> Tensor:
    """Noise in 8 bits, so that rounding it changes nothing."""
    return (torch.rand(*shape, generator=generator(0, "images")) * 255).round() / 255
