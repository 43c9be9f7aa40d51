"""One number for a method's seeds and prompts, with its interval: the level, the change against a reference, a contrast of two, a profile.

Interquartile mean and performance profile: Agarwal et al. 2108.13264. Values are [S,P,K] (seed, prompt, image) or the [S,P] means of a
prompt's images; NaN is an image without a score. K never is a number of independent draws: only seeds and prompts are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from alignbench.evaluation.crossed import Array, Bootstrap, CrossedInterval, intervals

Kind = Literal["mean", "iqm"]
TRIM = 0.25  # of the cells, at each end: Agarwal et al.


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The share of (seed, prompt) above each threshold: four lists of one length."""

    thresholds: list[float]
    share: list[float]
    low: list[float]
    high: list[float]


def cells(values: ArrayLike) -> Array:
    """[S,P] mean over the images that have a score; NaN where none has.

    ValueError: another shape, infinity, a seed or a prompt without any score.
    """
    table = np.asarray(values, np.float64)
    if table.ndim not in (2, 3) or not table.size:
        raise ValueError(f"values must be [seeds, prompts, images] or [seeds, prompts], not {table.shape}")
    if np.isinf(table).any():
        raise ValueError("a value is infinite")
    if table.ndim == 3:
        count = np.isfinite(table).sum(2)
        table = np.where(count > 0, np.nansum(table, 2) / np.maximum(count, 1), np.nan)
    for axis, name, remedy in ((1, "seed", "put it in with failed_as_reference"), (0, "prompt", "leave it out, for all methods")):
        empty = np.flatnonzero(np.isnan(table).all(axis))
        if empty.size:
            raise ValueError(f"{name} {empty[0]} has no score: {remedy}")
    return table


def weighted(table: Array, kind: Kind) -> Callable[[Array, Array], Array]:
    """The aggregate of [S,P] as a function of how often a seed [R,S] and a prompt [R,P] counts: [R]."""
    scored = np.isfinite(table)
    if kind == "mean":
        filled, there = np.where(scored, table, 0.0), scored.astype(np.float64)
        return lambda seeds, prompts: ((seeds @ filled) * prompts).sum(1) / ((seeds @ there) * prompts).sum(1)
    order = np.argsort(table, axis=None)[: scored.sum()]  # NaN come last
    values, seed, prompt = table.ravel()[order], order // table.shape[1], order % table.shape[1]

    def trimmed(seeds: Array, prompts: Array) -> Array:
        upto = np.cumsum(seeds[:, seed] * prompts[:, prompt], axis=1)  # [R,S*P]
        total = upto[:, -1:]
        cut = np.floor(TRIM * total)
        kept = np.diff(np.clip(upto, cut, total - cut), axis=1, prepend=cut)
        return kept @ values / (total - 2 * cut)[:, 0]

    return trimmed


def level(values: ArrayLike, how: Bootstrap, *, kind: Kind) -> CrossedInterval:
    """Of one method; p is against 0."""
    table = cells(values)
    aggregate = weighted(table, kind)
    return intervals(lambda seeds, prompts: aggregate(seeds[0], prompts)[:, None], (len(table),), table.shape[1], how)[0]


def difference(values: ArrayLike, reference: ArrayLike) -> Array:
    """`values` [S,P,K] less the reference's [P,K], image by image; NaN where either has no score."""
    ours, theirs = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    if ours.ndim != 3 or ours.shape[1:] != theirs.shape:
        raise ValueError(f"[seeds, prompts, images] and the reference's [prompts, images] are wanted, not {ours.shape} and {theirs.shape}")
    return ours - theirs


def change(values: ArrayLike, reference: ArrayLike, how: Bootstrap, *, kind: Kind) -> CrossedInterval:
    """The aggregate of the paired differences to a reference that has no seeds: of changes, not a change of aggregates."""
    return level(difference(values, reference), how, kind=kind)


def contrast(a: ArrayLike, b: ArrayLike, how: Bootstrap, *, kind: Kind) -> CrossedInterval:
    """Aggregate of a less aggregate of b, on the same prompts, each with seeds of its own.

    Give the `difference` of each to their reference: an interquartile mean then trims changes, not easy and hard prompts.
    """
    tables = [cells(a), cells(b)]
    if tables[0].shape[1] != tables[1].shape[1]:
        raise ValueError(f"a has {tables[0].shape[1]} prompts and b {tables[1].shape[1]}; they must be the same ones")
    first, second = (weighted(table, kind) for table in tables)
    return intervals(
        lambda seeds, prompts: (first(seeds[0], prompts) - second(seeds[1], prompts))[:, None],
        (len(tables[0]), len(tables[1])),
        tables[0].shape[1],
        how,
    )[0]


def failed_as_reference(values: ArrayLike, reference: ArrayLike, failed: Sequence[int]) -> Array:
    """`values` [S,P,K] with the reference's [P,K] in place of the seeds `failed`: a failed training counts, as no change."""
    difference(values, reference)  # of fitting shapes
    kept = np.array(values, np.float64)
    for seed in failed:
        if not 0 <= seed < len(kept):
            raise ValueError(f"failed seed {seed} is none of the {len(kept)} seeds")
        kept[seed] = reference
    return kept


def profile(values: ArrayLike, thresholds: Sequence[float], how: Bootstrap) -> Profile:
    """The share of (seed, prompt) whose value is above each threshold, with an interval at each threshold by itself."""
    table = cells(values)
    scored = np.isfinite(table)
    above = (np.where(scored, table, -np.inf)[:, :, None] > np.asarray(thresholds, np.float64)).astype(np.float64)  # [S,P,T]
    by_prompt = np.concatenate([above, scored[:, :, None]], axis=2).transpose(1, 0, 2)  # [P,S,T+1]

    def share(seeds: Sequence[Array], prompts: Array) -> Array:
        counted = (prompts @ by_prompt.reshape(len(by_prompt), -1)).reshape(len(prompts), *by_prompt.shape[1:])
        total = np.einsum("rs,rst->rt", seeds[0], counted)
        return total[:, :-1] / total[:, -1:]

    found = intervals(share, (len(table),), table.shape[1], how, bounds=(0.0, 1.0))
    return Profile(
        thresholds=list(map(float, thresholds)),
        share=[one.value for one in found],
        low=[one.low for one in found],
        high=[one.high for one in found],
    )
