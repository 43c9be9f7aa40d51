"""How often one method's image beats another's on the same prompt and noise: shares of wins, ties and losses, and a matrix of methods.

Probability of improvement: Agarwal et al. 2108.13264, eq. 1 and after, here over images instead of tasks' scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from alignbench.evaluation.crossed import Array, Bootstrap, CrossedInterval, intervals


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """Of a over b. `probability` is win + tie / 2, its null 1/2; win, tie and loss sum to 1."""

    probability: CrossedInterval
    win: CrossedInterval
    tie: CrossedInterval
    loss: CrossedInterval

    def reversed(self) -> "Improvement":
        """Of b over a."""
        one = self.probability
        mirrored = replace(one, value=1 - one.value, low=1 - one.high, high=1 - one.low)
        return Improvement(probability=mirrored, win=self.loss, tie=self.tie, loss=self.win)


def improvement(a: ArrayLike, b: ArrayLike, how: Bootstrap) -> Improvement:
    """Values [S,P,K] of two methods, NaN for no score; every seed of a meets every seed of b at each image (prompt, k).

    A reference without seeds is [1,P,K]. Each (seed, seed, prompt) counts as one, its images share it.

    ValueError: not the same prompts and images, or a prompt at which no pair has both scores.
    """
    ours, theirs = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if ours.ndim != 3 or theirs.ndim != 3 or ours.shape[1:] != theirs.shape[1:]:
        raise ValueError(f"two [seeds, prompts, images] on the same prompts and images are wanted, not {ours.shape} and {theirs.shape}")
    gap = ours[:, None] - theirs[None]  # [A,B,P,K]
    scored = np.isfinite(gap)
    images = scored.sum(3)  # [A,B,P]
    empty = np.flatnonzero(images.sum((0, 1)) == 0)
    if empty.size:
        raise ValueError(f"prompt {empty[0]} has no image that both scored: leave it out, for all methods")
    outcomes = np.stack([(gap > 0).sum(3), (gap == 0).sum(3), (gap < 0).sum(3)], axis=3) / np.maximum(images, 1)[..., None]
    table = np.concatenate([outcomes, (images > 0)[..., None]], axis=3)  # [A,B,P,4] shares of win, tie, loss; whether there are any
    by_prompt = table.transpose(2, 0, 1, 3)  # [P,A,B,4]

    def shares(seeds: Sequence[Array], prompts: Array) -> Array:
        summed = (prompts @ by_prompt.reshape(len(by_prompt), -1)).reshape(len(prompts), *by_prompt.shape[1:])
        total = np.einsum("ra,rb,rabi->ri", *seeds, summed, optimize=True)
        win, tie, loss = (total[:, :3] / total[:, 3:]).T
        return np.stack([win + tie / 2, win, tie, loss], axis=1)

    probability, win, tie, loss = intervals(
        shares, (len(ours), len(theirs)), ours.shape[1], how, null=[0.5, 0.0, 0.0, 0.0], bounds=(0.0, 1.0)
    )
    return Improvement(probability=probability, win=win, tie=tie, loss=loss)


def win_matrix(methods: Mapping[str, ArrayLike], how: Bootstrap) -> dict[tuple[str, str], Improvement]:
    """Each method over each other one, both ways round; [S,P,K] each. `holm` goes over each pair once."""
    matrix: dict[tuple[str, str], Improvement] = {}
    for a, b in combinations(methods, 2):
        matrix[a, b] = improvement(methods[a], methods[b], how)
        matrix[b, a] = matrix[a, b].reversed()
    return matrix


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for a family: each is below alpha where Holm's step-down test at alpha rejects it. Holm, Scand. J. Stat. 1979.

    ValueError: a value outside [0, 1].
    """
    p = np.asarray(p_values, np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("a p-value lies outside [0, 1]")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()
