"""Where nothing published is here: random weights in the published files' layouts, a vocabulary, and pictures that are hard to resize."""

from collections.abc import Mapping

import torch
from torch import Tensor

from alignbench.rewards.hpsv2 import VIT_H_14
from alignbench.rewards.imagereward import PUBLISHED, Network, published_name
from alignbench.rng import generator

SIZES = ((512, 512), (300, 451), (640, 384))  # height and width of the pictures
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}  # where BERT's uncased vocabulary has them
WORDS = 30522  # in BERT's uncased vocabulary
TYPED = [chr(code) for code in range(33, 127) if not chr(code).isupper()]


def image_reward() -> dict[str, Tensor]:
    """What ImageReward.pt holds, at its full size, 446.7 M numbers in fp32."""
    with torch.device("meta"):
        shapes = {published_name(key): each.shape for key, each in Network(PUBLISHED).state_dict().items()}
    for side, sizes in (("vision", PUBLISHED.vision), ("text", PUBLISHED.text)):  # in no score, but in the file
        shapes[f"blip.{side}_proj.weight"], shapes[f"blip.{side}_proj.bias"] = torch.Size([256, sizes["hidden_size"]]), torch.Size([256])
    return drawn(shapes) | {"blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]}


def hpsv2() -> dict[str, dict[str, Tensor]]:
    """What a file of HPSv2 holds, of either version, at its full size, 986.1 M numbers in fp16."""
    from open_clip.model import CLIP

    with torch.device("meta"):
        shapes = {key: each.shape for key, each in CLIP(**VIT_H_14).state_dict().items()}
    weights = drawn(shapes) | {"logit_scale": torch.tensor(100.0).log()}
    return {"state_dict": {key: each.half() for key, each in weights.items()}}


def drawn(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Random weights at a scale at which no layer swamps the others, and scores differ between images."""
    made, draw = {}, generator(0, "weights")
    for key, shape in shapes.items():
        if len(shape) > 1:
            inputs = shape[0] if key in ("visual.proj", "text_projection") else shape[1:].numel()  # these two are applied from the right
            made[key] = torch.empty(shape).uniform_(-1, 1, generator=draw) * (3 / inputs) ** 0.5
        else:
            one = key.endswith("weight") and ("norm" in key.lower() or "ln_" in key)
            made[key] = float(one) + 0.2 * torch.randn(shape, generator=draw)
    return made


def vocabulary(prompts: list[str]) -> str:
    """vocab.txt as long as BERT's, in which every typed character and every word of the prompts is a word."""
    known = dict.fromkeys([*TYPED, *(f"##{each}" for each in TYPED), *" ".join(prompts).lower().split()])
    words = [SPECIAL.get(at, f"[unused{at}]") for at in range(WORDS)]
    words[1000 : 1000 + len(known)] = known
    return "\n".join(words) + "\n"


def pictures(count: int) -> list[Tensor]:
    """Images [1,3,H,W] of 8 bits: like photographs and like checked cloth by turns, of three sizes."""
    return [((photograph, checks)[at % 2](*SIZES[at // 2 % len(SIZES)], at) * 255).round()[None] / 255 for at in range(count)]


def photograph(height: int, width: int, number: int) -> Tensor:
    """Noise with a photograph's spectrum, 1/f, with a disc that has a hard edge: [3,H,W] in [0,1]."""
    wave = torch.fft.fft2(torch.randn(3, height, width, generator=generator(number, "photograph")))
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)).clamp(min=1 / max(height, width))
    picture = torch.fft.ifft2(wave / radius).real
    picture = 0.5 + 0.2 * picture / picture.std((1, 2), keepdim=True)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture[:, torch.hypot(y - height / 3, x - width / 2) < min(height, width) / 5] = 0.95
    return picture.clamp(0, 1)


def checks(height: int, width: int, number: int) -> Tensor:
    """Black and coloured squares, on which a bicubic filter overshoots most: [3,H,W] in [0,1]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    colour = torch.tensor([1.0, 1.0, 1.0] if number % 4 == 1 else [0.0, 0.4, 1.0])[:, None, None]
    return ((y // (7 + number) + x // (7 + number)) % 2) * colour
