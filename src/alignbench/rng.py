"""Every random draw as a function of (seed, purpose, epoch, index): resuming, splitting and re-batching change no number."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

Generators = Sequence[Generator]


def generator(seed: int, purpose: str, epoch: int = 0, index: int = 0) -> Generator:
    """A CPU generator whose stream is that key's alone."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{epoch}/{index}".encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def normal(shape: Sequence[int], generators: Generators, like: Tensor) -> Tensor:
    """Standard normal noise, one row a generator: [len(generators), *shape], with the device and dtype of `like`.

    Drawn on the CPU, so that a row's noise depends neither on its neighbours nor on the machine.
    """
    rows = [torch.randn(*shape, generator=each, dtype=torch.float32) for each in generators]
    return torch.stack(rows).to(like.device, like.dtype)


@dataclass(frozen=True)
class Draws:
    """The random draws of one epoch of one run."""

    seed: int
    epoch: int

    def each(self, purpose: str, indices: Iterable[int]) -> list[Generator]:
        """One generator an image, by its global index."""
        return [generator(self.seed, purpose, self.epoch, index) for index in indices]

    def one(self, purpose: str) -> Generator:
        """One generator for the whole epoch: which prompts, in which order."""
        return generator(self.seed, purpose, self.epoch)
