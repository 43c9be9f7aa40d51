"""Rewards of a prompt's images as a set, told to each image: leave-one-out credit, from which a policy gradient of the set follows."""

from collections.abc import Callable

import torch
from torch import Tensor


def by_prompt(prompts: list[str], name: str) -> list[list[int]]:
    """The rows of each prompt. Raises ValueError for a prompt with one image."""
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    if alone := next((prompt for prompt, own in rows.items() if len(own) < 2), None):
        raise ValueError(
            f"reward={name} compares a prompt's images with each other, and {alone!r} has one: set method.images_per_prompt (in an "
            "evaluation eval.images) to 2 or more"
        )
    return list(rows.values())


def credited(worth: Callable[[Tensor], Tensor], seen: Tensor, prompts: list[str], name: str) -> Tensor:
    """Each image's credit [B] for what its prompt's set of images S is worth, of what is seen on them [B,...].

    worth: R of any set of rows, in any order. Of n images, image i is credited n R(S) - (n - 1) R(S without i): n times what it adds, plus
    what the others are worth without it. The latter does not depend on image i, so the mean over a prompt's images of credit times
    grad log p has the expectation grad E[R(S)], exactly and for every R; and the credit itself has the mean R(S), less its bias of order
    1/n (these are the jackknife's pseudo-values).
    """
    credit = torch.zeros(len(seen), device=seen.device)
    for rows in by_prompt(prompts, name):
        own, n = seen[rows], len(rows)
        others = torch.stack([worth(torch.cat([own[:i], own[i + 1 :]])) for i in range(n)])
        credit[rows] = (n * worth(own) - (n - 1) * others).float()
    return credit
