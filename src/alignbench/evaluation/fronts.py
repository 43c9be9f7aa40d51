"""Reward against divergence over a method's settings: the Pareto front, the area under it, reward at a matched divergence.

A point is a setting with two [S,P] or [S,P,K] tables, x its divergence (smaller is better) and y its reward (larger is better). The area
is the hypervolume of two objectives: Zitzler and Thiele, IEEE Trans. Evol. Comput. 1999.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from alignbench.evaluation.aggregates import cells, weighted
from alignbench.evaluation.crossed import Array, Bootstrap, CrossedInterval, Statistic, intervals

Point = tuple[ArrayLike, ArrayLike]
"""x and y of one setting: of the same seeds and prompts, NaN where there is none."""
Mean = Callable[[Sequence[Array], Array], Array]


def non_dominated(x: ArrayLike, y: ArrayLike) -> list[bool]:
    """For each of N points whether no other has as small an x and as large a y, one of them better. Equal points stay together."""
    xs, ys = _lists(x, y)
    better = (xs[:, None] <= xs) & (ys[:, None] >= ys) & ((xs[:, None] < xs) | (ys[:, None] > ys))  # [i,j]: i dominates j
    return (~np.logical_or.reduce(better, axis=0)).tolist()


def area(x: ArrayLike, y: ArrayLike, *, base: float, limit: float) -> Array:
    """Under the step function max(base, best y at x or less), over base, from 0 to limit. x, y: [...,N]; the result [...].

    A point beyond the limit or below the base adds nothing; x below 0, an estimate's noise, counts as 0. ValueError: limit not above 0.
    """
    if not limit > 0:
        raise ValueError(f"limit {limit} must be above 0: the largest divergence at which methods are compared")
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    order = np.argsort(xs, axis=-1)
    xs, ys = np.take_along_axis(xs, order, -1), np.take_along_axis(ys, order, -1)
    height = np.maximum.accumulate(np.maximum(ys - base, 0.0), axis=-1)
    return (height * np.diff(np.clip(xs, 0.0, limit), axis=-1, append=limit)).sum(-1)


def front_area(points: Sequence[Point], how: Bootstrap, *, base: float, limit: float, shared: bool) -> CrossedInterval:
    """Of the points' means. base: the reference's y; 0 where y are changes against it, which also pairs them.

    shared: whether one training gave all points (a scale of its weights), so that its seeds are drawn together; else each point's own.
    """
    means, sizes, prompts = _means(points, shared)

    def swept(seeds: Sequence[Array], drawn: Array) -> Array:
        xs, ys = (np.stack(np.broadcast_arrays(*(mean(seeds, drawn) for mean in coordinate)), axis=1) for coordinate in means)  # [R,N]
        return area(xs, ys, base=base, limit=limit)[:, None]

    return intervals(swept, sizes, prompts, how)[0]


def matched(x: ArrayLike, y: ArrayLike, at: float) -> float | None:
    """y where x is `at`, on straight lines between neighbours in the order of the knob; None outside the range of x.

    Where the lines pass `at` more than once, the best y.
    """
    xs, ys = _lists(x, y)
    found = _crossing(xs, ys, at)
    return None if found is None else float(found[1] @ ys)


def matched_reward(points: Sequence[Point], how: Bootstrap, *, at: float, shared: bool) -> CrossedInterval | None:
    """`matched` of the points' means, in the knob's order, with an interval to first order in the noise of both x and y; p is against 0."""
    found = reading(points, at=at, shared=shared)
    return None if found is None else intervals(*found, how)[0]


def reading(points: Sequence[Point], *, at: float, shared: bool) -> tuple[Statistic, tuple[int, ...], int] | None:
    """`matched` as `intervals` takes it: a statistic [R,1], the seeds of each training, the prompts. None outside the range of x."""
    (x, y), sizes, prompts = _means(points, shared)
    once = [np.ones((1, size)) for size in sizes], np.ones((1, prompts))
    middle_x, middle_y = (np.array([mean(*once)[0] for mean in coordinate]) for coordinate in (x, y))
    found = _crossing(middle_x, middle_y, at)
    if found is None:
        return None
    slope, weights = found
    kept = [(weight, x[n], y[n]) for n, weight in enumerate(weights) if weight]

    def along(seeds: Sequence[Array], drawn: Array) -> Array:
        return sum(w * (mean_y(seeds, drawn) - slope * mean_x(seeds, drawn)) for w, mean_x, mean_y in kept)[:, None] + slope * at

    return along, sizes, prompts


def _crossing(x: Array, y: Array, at: float) -> tuple[float, Array] | None:
    """The slope there, and the weight of each point: the best crossing of `at`."""
    best: tuple[float, Array] | None = None
    for n, (left, right) in enumerate(pairwise(x)):
        if not min(left, right) <= at <= max(left, right):
            continue
        upright = left == right  # then either end is a crossing
        for share in [0.0, 1.0] if upright else [(at - left) / (right - left)]:
            weights = np.zeros(len(x))
            weights[n : n + 2] = 1 - share, share
            if best is None or weights @ y > best[1] @ y:
                best = (0.0 if upright else (y[n + 1] - y[n]) / (right - left)), weights
    return best


def _means(points: Sequence[Point], shared: bool) -> tuple[tuple[list[Mean], list[Mean]], tuple[int, ...], int]:
    """The mean x and the mean y of each point; how many seeds are drawn of each training, or of the one; the prompts."""
    if not points:
        raise ValueError("a front needs points; there is no point")
    tables = [(cells(x), cells(y)) for x, y in points]
    shapes = [table.shape for pair in tables for table in pair]
    seeds, prompts = [shape[0] for shape in shapes], {shape[1] for shape in shapes}
    if len(prompts) != 1 or seeds[::2] != seeds[1::2] or (shared and len(set(seeds)) != 1):
        raise ValueError(f"x and y of a point need the same seeds, all points the same prompts; there are {sorted(set(shapes))}")
    x, y = ([_mean(pair[axis], 0 if shared else n) for n, pair in enumerate(tables)] for axis in (0, 1))
    return (x, y), tuple(seeds[:1] if shared else seeds[::2]), prompts.pop()


def _mean(table: Array, training: int) -> Mean:
    mean = weighted(table, "mean")
    return lambda seeds, prompts: mean(seeds[training], prompts)


def _lists(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if xs.ndim != 1 or xs.shape != ys.shape or not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        raise ValueError("x and y must be two lists of one length, without gaps")
    return xs, ys
