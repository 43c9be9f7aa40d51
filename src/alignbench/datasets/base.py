"""What a dataset of prompts is, and how an epoch draws from it."""

from typing import Any, Protocol

import torch
from torch import Generator


class Prompts(Protocol):
    """Disjoint lists of prompts, without near-duplicates in two of them; their order never changes."""

    train: list[str]
    validation: list[str]
    test: list[str]
    about: dict[str, dict[str, Any]]  # prompt -> what its file says of it, the category or style under "group"; nothing for some


def too_few(prompts: Prompts, options: dict[str, Any], trains: bool) -> str:
    """What the splits lack for an evaluation with `options` (eval's keys), and for training; empty where they suffice."""
    if trains and not prompts.train:
        return "dataset: the train split is empty and the method trains; give it prompts (dataset.shares), or take method=reference"
    for split, key in (("validation", "validation_prompts"), ("test", "prompts")):
        there: int = len(getattr(prompts, split))
        if options[key] > there and (trains or split == "test"):  # what is not trained is not validated
            return f"eval.{key}={options[key]}: the {split} split has {there} prompts; lower it, or give {split} more prompts"
    return ""


def draw(prompts: list[str], count: int, each: int, order: Generator) -> list[str]:
    """`count` prompts with replacement, each repeated `each` times in a row. Raises ValueError where there are no prompts."""
    if not prompts:
        raise ValueError("there are no prompts to draw from: the train split is empty")
    picked = torch.randint(len(prompts), (count,), generator=order).tolist()
    return [prompts[index] for index in picked for _ in range(each)]


def spread(prompts: list[str], count: int) -> list[int]:
    """`count` different prompts' indices, pseudo-random but the same ones for every run. Raises ValueError where there are too few."""
    if count > len(prompts):
        raise ValueError(f"{count} prompts are wanted but the split has {len(prompts)}; lower eval.prompts or eval.validation_prompts")
    return torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))[:count].tolist()
