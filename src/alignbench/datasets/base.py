"""What a dataset of prompts is, and how an epoch draws from it."""

from typing import Protocol

import torch
from torch import Generator


class Prompts(Protocol):
    """Disjoint lists of prompts; their order never changes."""

    train: list[str]
    validation: list[str]
    test: list[str]


def draw(prompts: list[str], count: int, each: int, order: Generator) -> list[str]:
    """`count` prompts with replacement, each repeated `each` times in a row."""
    picked = torch.randint(len(prompts), (count,), generator=order).tolist()
    return [prompts[index] for index in picked for _ in range(each)]


def spread(prompts: list[str], count: int) -> list[int]:
    """`count` different prompts' indices, pseudo-random but the same ones for every run. Raises ValueError where there are too few."""
    if count > len(prompts):
        raise ValueError(f"{count} prompts are wanted but the split has {len(prompts)}; lower eval.prompts or eval.validation_prompts")
    return torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))[:count].tolist()
