"""Which image it is: a hash of its 8-bit content, the same for a tensor and for the PNG that it was written to."""

import hashlib

import torch
from torch import Tensor


def contents(images: Tensor) -> list[bytes]:
    """sha256 of each image's [B,3,H,W] size and 8-bit pixels, in rows of red, green and blue."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous().numpy()
    return [digest(each.shape[1], each.shape[0], each.tobytes()) for each in pixels]


def digest(width: int, height: int, pixels: bytes) -> bytes:
    return hashlib.sha256(f"{width}x{height}:".encode() + pixels).digest()
