"""How judges see an image: resized, cropped or padded, normalised, as their official code does, on tensors and with a gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's CLIP, and all that follow it
BITS = 22  # PIL's weights of a filter are multiples of 2^-22


def smooth(images: Tensor) -> bool:
    """Whether nothing is rounded: where a gradient is asked, and in float64, in which gradients are compared with differences."""
    return (images.requires_grad and torch.is_grad_enabled()) or images.dtype == torch.float64


def eight_bit(images: Tensor) -> Tensor:
    """The image as a PNG of it holds it: cut to [0,1] and rounded to 1/255; as it is where `smooth` says so."""
    return images if smooth(images) else (images.clamp(0, 1) * 255).round() / 255


def framed(images: Tensor, size: int, *, floor: bool = False) -> Tensor:
    """Images [B,3,H,W] in [0,1] -> their centre [B,3,size,size] in [0,1], the shorter side resized to `size`.

    floor: an odd number of pixels too many loses the smaller half first, as in transformers; else as torchvision rounds it.
    Without a gradient the result is what PIL makes of the 8-bit image, exactly: the input and each of PIL's two passes, first across, then
    down, are rounded to 1/255, so that a score is that of the saved PNG. With one (`smooth`) nothing is rounded, so that small changes
    count: then a pixel differs from PIL's by at most 1.5/255, by 0.3/255 on average. That gradient is the one without the cut to [0,1],
    which would leave black and white pixels none.
    """
    height, width = images.shape[2:]
    tall, wide = (size * side // min(height, width) for side in (height, width))
    if smooth(images):
        for shape in ((height, wide), (tall, wide)):  # bicubic weights overshoot at edges, and PIL cuts after each pass
            images = F.interpolate(images, shape, mode="bicubic", align_corners=False, antialias=True)
            images = images + (images.clamp(0, 1) - images).detach()
    else:
        levels = (images.detach().clamp(0, 1) * 255).round()
        levels = _pass((levels.cpu() if levels.device.type == "mps" else levels).double(), wide)  # Apple's devices have no float64
        images = (_pass(levels.mT, tall).mT / 255).to(images)
    top, left = ((each - size) // 2 if floor else round((each - size) / 2) for each in (tall, wide))
    return images[..., top : top + size, left : left + size]


def _pass(levels: Tensor, size: int) -> Tensor:
    """PIL's bicubic filter along the last axis of integers 0..255, in its fixed point: every sum is an integer below 2^53, so exact."""
    length = levels.shape[-1]
    stretch = length / size
    wide = max(stretch, 1.0)  # the filter grows where the image shrinks: antialiasing
    centres = (torch.arange(size, dtype=torch.float64, device=levels.device)[:, None] + 0.5) * stretch
    places = torch.arange(length, device=levels.device)
    seen = (places >= (centres - 2 * wide + 0.5).long()) & (places < (centres + 2 * wide + 0.5).long())
    x = ((places - centres + 0.5) / wide).abs()
    weights = torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)) * seen * (x < 2)
    weights = weights / weights.sum(1, keepdim=True) * 2**BITS
    weights = (weights + torch.where(weights < 0, -0.5, 0.5)).trunc()
    return ((levels @ weights.T + 2 ** (BITS - 1)) / 2**BITS).floor().clamp(0, 255)


def letterboxed(images: Tensor, size: int, antialias: bool) -> Tensor:
    """Images [B,3,H,W] in [0,1] -> [B,3,size,size]: the longer side resized to `size`, black on both sides of the shorter one.

    torchvision's bicubic filter on tensors, which neither rounds nor cuts what it makes: values a little outside [0,1] stay. Its default
    was antialias=False until 0.17, and is True now; the two are different cubics (of -3/4 and -1/2), so they differ where an image grows
    as well. The smaller half of an odd number of black lines comes first.
    """
    longest = max(images.shape[2:])
    tall, wide = (round(side * (size / longest)) for side in images.shape[2:])
    images = eight_bit(images)
    if longest != size:
        images = F.interpolate(images, (tall, wide), mode="bicubic", align_corners=False, antialias=antialias)
    above, before = (size - tall) // 2, (size - wide) // 2
    return F.pad(images, (before, size - wide - before, above, size - tall - above))


def clip_normalised(pixels: Tensor) -> Tensor:
    """Pixels [B,3,H,W] in [0,1] by the mean and std of CLIP's training images."""
    mean, std = (torch.tensor(each, device=pixels.device, dtype=pixels.dtype)[:, None, None] for each in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std
