"""How often one method's image beats another's on the same prompt and noise: shares of wins, ties and losses, and a matrix of methods.

Probability of improvement: Agarwal et al. 2108.13264, eq. 1 and after, here over images instead of tasks' scores.
"""

import math
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
        p, win, tie, loss = (replace(one, seeds=one.seeds[::-1]) for one in (self.probability, self.loss, self.tie, self.win))
        return Improvement(probability=replace(p, value=1 - p.value, low=1 - p.high, high=1 - p.low), win=win, tie=tie, loss=loss)


def improvement(a: ArrayLike, b: ArrayLike, how: Bootstrap) -> Improvement:
    """Values [S,P,K] of a method or [P,K] of what is not trained, NaN for no score. Every seed of a meets every seed of b at each image.

    Each (seed, seed, prompt) counts as one, its images share it.

    ValueError: not the same prompts and images, or a prompt at which no pair has both scores.
    """
    given = [np.asarray(values, np.float64) for values in (a, b)]
    trained = [values.ndim == 3 for values in given]
    ours, theirs = (values if values.ndim == 3 else values[None] for values in given)
    if ours.ndim != 3 or theirs.ndim != 3 or ours.shape[1:] != theirs.shape[1:]:
        raise ValueError(f"a is {given[0].shape} and b {given[1].shape}: the same prompts and images are wanted, [seeds, prompts, images]")
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
        each = iter(seeds)
        both = [next(each) if has else np.ones((len(prompts), 1)) for has in trained]
        total = np.einsum("ra,rb,rabi->ri", *both, summed, optimize=True)
        win, tie, loss = (total[:, :3] / total[:, 3:]).T
        return np.stack([win + tie / 2, win, tie, loss], axis=1)

    least = least_error(ours, theirs)
    probability, win, tie, loss = intervals(
        shares,
        tuple(len(values) for values, has in zip(given, trained, strict=True) if has),
        ours.shape[1],
        how,
        null=[0.5, 0.0, 0.0, 0.0],
        bounds=(0.0, 1.0),
        least_error=[least, least, 0.0, least],
    )
    return Improvement(probability=probability, win=win, tie=tie, loss=loss)


def least_error(a: Array, b: Array) -> float:
    """Of the probability, from its seeds: what they would give if the methods were alike, judged by how often a method beats itself.

    Few seeds that decide every image may all fall on one side (3 against 3 in 10 % of cases), and then their replicates do not vary.
    With q the mean of (probability of one seed over another of the same method - 1/2)^2, at most 1/4, the variance of Mann and
    Whitney's test, (A + B + 1) / (12 A B), is scaled by 4 q; against one seed or a reference, that of a sign test, 1 / (4 A).
    """
    within = [_probability(seeds[i], seeds[j]) for seeds in (a, b) for i, j in combinations(range(len(seeds)), 2)]
    if not within:
        return 0.0
    q, (few, many) = sum((p - 0.5) ** 2 for p in within) / len(within), sorted((len(a), len(b)))
    return math.sqrt(q / many if few == 1 else q * (few + many + 1) / (3 * few * many))


def _probability(a: Array, b: Array) -> float:
    """Of a [P,K] over b: the mean over the prompts that have an image with both scores; 1/2 where none has."""
    gap = a - b
    images = np.isfinite(gap).sum(1)
    wins = ((gap > 0).sum(1) + (gap == 0).sum(1) / 2)[images > 0] / images[images > 0]
    return float(wins.mean()) if wins.size else 0.5


def win_matrix(methods: Mapping[str, ArrayLike], how: Bootstrap) -> dict[tuple[str, str], Improvement]:
    """Each method over each other one, both ways round; values as in `improvement`. `holm` goes over each pair once."""
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
