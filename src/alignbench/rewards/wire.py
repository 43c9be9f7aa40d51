"""What worker and remote judges share: requests, answers that are checked, tries, and errors that say who is to blame."""

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from alignbench.rewards.base import UNKNOWN, Reward, Unreachable
from alignbench.rewards.worker_loop import from_npz, from_words, to_npz, to_words

T = TypeVar("T")
LARGEST = 1 << 28  # bytes of a request: 85 images of 512x512
NAME = r"[\w.-]{1,60}"  # of a judge: it heads columns and stands in file names
TOKEN = "ALIGNBENCH_TOKEN"  # the variable that has a server's token; neither a config nor a record ever does
IDENTITY = "Alignbench-Identity"  # the header that says with every answer who gave it
NPZ = "application/octet-stream"  # no type that a page in a browser may send elsewhere without being asked
LONGEST = 30.0  # seconds between two tries, however many there are


KIN = ("backbones", "datasets", "members")  # what kinship is read from: names, in one string


class Garbled(Exception):
    """Bytes that are no answer at all: whatever follows them is not to be trusted either."""


class Faltered(Exception):
    """What another try may heal."""


def said_kin(reward: Reward) -> dict[str, str]:
    """A judge's kin, as an identity has it."""
    return {key: "; ".join(getattr(reward, key)) for key in KIN}


def take_kin(reward: Reward, identity: dict[str, str]) -> None:
    """The other end of `said_kin`: what is not said there is unknown."""
    names = {key: tuple(filter(None, map(str.strip, identity[key].split(";")))) for key in KIN if key in identity}
    reward.stand_on(names.get("backbones", (UNKNOWN,)), names.get("datasets", (UNKNOWN,)), names.get("members", ()))


def patiently(name: str, tries: int, pause: float, ask: Callable[[], T]) -> T:
    """What `ask` returns, asked again where it raises Faltered, after `pause` seconds and then twice as long each time."""
    for left in reversed(range(tries)):
        try:
            return ask()
        except Faltered as error:
            if not left:
                raise Unreachable(f"reward {name}: {error}; tried {tries} time{'s' * (tries > 1)}") from error
        except Garbled as error:
            raise ValueError(f"reward {name} answered with {error}") from error
        time.sleep(min(pause * 2 ** (tries - 1 - left), LONGEST))
    raise AssertionError("tries is 1 or more")


def request(images: Tensor, prompts: list[str]) -> bytes:
    """Images [B,3,H,W] and their prompts as an npz file's bytes."""
    return to_npz(images=images.detach().float().cpu().contiguous().numpy(), prompts=to_words(prompts))


def asked_for(data: bytes, size: int) -> tuple[Tensor, list[str]]:
    """The other end of `request`. Raises ValueError, saying what is wrong."""
    found = from_npz(data, size)
    if found.keys() != {"images", "prompts"}:
        raise ValueError(f"arrays named {', '.join(found) or 'nothing'} where images and prompts were expected")
    images, prompts = found["images"], from_words(found["prompts"])
    if images.dtype != np.float32 or images.ndim != 4 or images.shape[1] != 3 or not images.size:
        raise ValueError(f"images of type {images.dtype} and shape {list(images.shape)} where float32 and [B,3,H,W] were expected")
    if not isinstance(prompts, list) or len(prompts) != len(images) or not all(isinstance(each, str) for each in prompts):
        raise ValueError(f"prompts that are no JSON list of {len(images)} strings")
    return torch.from_numpy(images), prompts


def most(count: int) -> int:
    """Bytes that an answer about `count` images may have: its scores in the widest numbers, and room for names or an error."""
    return 65_536 + 16 * count


def scores(name: str, data: bytes, count: int) -> Tensor:
    """The scores [B] of an answer, in fp32. Raises Garbled where it has none, ValueError, saying which, for all but `count` finite ones."""
    try:
        found = from_npz(data, most(count))
    except ValueError as error:
        raise Garbled(str(error)) from error
    if found.keys() != {"scores"}:
        raise Garbled(f"arrays named {', '.join(found) or 'nothing'} where `scores` was expected")
    array = found["scores"]
    if array.dtype.kind not in "biuf":
        raise ValueError(f"reward {name} answered with values of type {array.dtype} where numbers were expected")
    if array.shape != (count,):
        raise ValueError(f"reward {name} answered with scores of shape {list(array.shape)} where [{count}] was expected")
    with np.errstate(over="ignore"):  # what is infinite in fp32 is refused below
        given = torch.from_numpy(array.astype(np.float32))
    if not given.isfinite().all():
        first = int((~given.isfinite()).nonzero()[0])
        raise ValueError(f"reward {name} answered with a score that is not finite ({array[first]} for image {first})")
    return given
