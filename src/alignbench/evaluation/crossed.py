"""Intervals over training seeds and prompts, two crossed factors: each is bootstrapped by itself and rescaled to Student's t.

The bootstrap of both: Owen, "The pigeonhole bootstrap", Ann. Appl. Stat. 2007. Parts with t quantiles of their own, in quadrature,
cover at least the level: Banerjee, Sankhya 1960. Seeds of two methods: Welch, Biometrika 1947. The correction of the bootstrap is ours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]
Statistic = Callable[[Sequence[Array], Array], Array]
"""Of how often each seed [R,S] of each method and each prompt [R,P] counts: [R,N], N quantities in R replicates."""

CHUNK = 1 << 15  # weights of (replicate, seed, prompt) at a time: what stays in a core's cache


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How intervals are made. `correct=False`: percentiles of the replicates of both factors, too narrow with few seeds.

    ValueError: level outside (0, 1), replicates < 100.
    """

    replicates: int
    level: float
    seed: int  # of the draws; the prompts drawn depend on it and on the number of prompts alone
    correct: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.level < 1 or self.replicates < 100:
            raise ValueError(f"bootstrap: level {self.level} must lie in (0, 1), replicates {self.replicates} be 100 or more")


@dataclass(frozen=True, kw_only=True)
class CrossedInterval:
    """A value with its interval. `p` is that of the null: the interval at level 1 - p ends there."""

    value: float
    low: float
    high: float
    level: float
    null: float  # what the value is where nothing differs
    p: float
    seeds: tuple[int, ...]  # of each method that takes part
    prompts: int
    seed_error: float  # standard error from the seeds; 0 with one seed, which tells nothing of others
    seed_freedom: float
    prompt_error: float
    prompt_freedom: float

    @property
    def over(self) -> str:
        """What the interval speaks for: with one seed of a method, not for other trainings of it."""
        return "seeds and prompts" if min(self.seeds) > 1 else "prompts"

    @property
    def excludes_null(self) -> bool:
        return self.low > self.null or self.high < self.null

    def detectable(self, power: float) -> float:
        """The least difference from the null that such an interval excludes with probability `power`, about.

        ValueError: power outside [0.5, 1).
        """
        if not 0.5 <= power < 1:
            raise ValueError(f"power {power} must lie in [0.5, 1)")
        return self._reach((1 - self.level) / 2) + self._reach(1 - power)

    def _reach(self, tail: float) -> float:
        return _reach(tail, self.seed_error, self.seed_freedom, self.prompt_error, self.prompt_freedom)


def intervals(
    statistic: Statistic,
    seeds: tuple[int, ...],
    prompts: int,
    how: Bootstrap,
    *,
    null: ArrayLike = 0.0,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> list[CrossedInterval]:
    """One of each quantity that `statistic` gives. seeds: their number in each method; null: one, or [N];
    bounds: the values that are possible.

    With the prompts as they are, a replicate draws the seeds of one method; with the seeds as they are, the prompts. Each gives a standard
    error, times sqrt(n / (n - 1)). The interval is value +- sqrt((t_seed e_seed)^2 + (t_prompt e_prompt)^2), its t with n - 1 degrees of
    freedom and, for the seeds of several methods together, Welch's. What is neither of seeds nor of prompts (images, and what a seed
    does to a prompt) is in both errors and so counted twice: the interval covers more than its level where that is most of the spread.

    ValueError: fewer than 2 prompts, or a replicate without any score.
    """
    if prompts < 2 or min(seeds) < 1:
        raise ValueError(f"{prompts} prompts and {min(seeds)} seeds; an interval needs at least 2 prompts and 1 seed")
    rng = np.random.Generator(np.random.PCG64(how.seed))
    prompt_draws = _counts(rng, prompts, how.replicates)
    seed_draws = [_counts(rng, size, how.replicates) for size in seeds]
    once, each = [np.ones((1, size)) for size in seeds], np.ones((1, prompts))

    def replicates(drawn: Sequence[Array], drawn_prompts: Array) -> Array:  # [R,N]
        step = max(1, CHUNK // (max(seeds) * prompts))
        parts = [_rows(drawn, drawn_prompts, slice(start, start + step)) for start in range(0, how.replicates, step)]
        values = np.concatenate([statistic(*part) for part in parts])
        if not np.isfinite(values).all():
            raise ValueError("too few scores: a replicate has none")
        return values

    value = statistic(once, each)[0]  # [N]
    prompt_error = replicates(once, prompt_draws).std(0)
    seed_errors = [
        replicates([*once[:m], draws, *once[m + 1 :]], each).std(0) if draws.shape[1] > 1 else np.zeros_like(value)
        for m, draws in enumerate(seed_draws)
    ]
    if how.correct:
        prompt_error *= math.sqrt(prompts / (prompts - 1))
        seed_errors = [error * math.sqrt(size / max(size - 1, 1)) for error, size in zip(seed_errors, seeds, strict=True)]
    seed_error = np.sqrt(sum(error**2 for error in seed_errors))
    freedom = _welch(seed_errors, seeds) if how.correct else np.full_like(value, np.inf)
    prompt_freedom = prompts - 1.0 if how.correct else math.inf
    nulls = np.broadcast_to(np.asarray(null, np.float64), value.shape)
    both = None if how.correct else replicates(seed_draws, prompt_draws)  # [R,N]
    return [
        _interval(float(value[n]), both[:, n] if both is not None else None, how, float(nulls[n]), bounds, seeds, prompts, errors)
        for n in range(len(value))
        for errors in [(float(seed_error[n]), float(freedom[n]), float(prompt_error[n]), prompt_freedom)]
    ]


def _interval(
    value: float,
    both: Array | None,
    how: Bootstrap,
    null: float,
    bounds: tuple[float, float],
    seeds: tuple[int, ...],
    prompts: int,
    errors: tuple[float, float, float, float],
) -> CrossedInterval:
    tail = (1 - how.level) / 2
    if both is None:
        reach = _reach(tail, *errors)
        low, high, p = value - reach, value + reach, _p_value(abs(value - null), errors)
    else:
        low, high = np.quantile(both, [tail, 1 - tail])
        below = np.interp(null, np.sort(both), np.linspace(0, 1, len(both)))
        p = max(2 * min(below, 1 - below), 2 / len(both))  # no replicate beyond the null shows no more than this
    return CrossedInterval(
        value=value,
        low=float(max(low, bounds[0])),
        high=float(min(high, bounds[1])),
        level=how.level,
        null=null,
        p=float(p),
        seeds=seeds,
        prompts=prompts,
        seed_error=errors[0],
        seed_freedom=errors[1],
        prompt_error=errors[2],
        prompt_freedom=errors[3],
    )


def _reach(tail: float, seed_error: float, seed_freedom: float, prompt_error: float, prompt_freedom: float) -> float:
    return math.hypot(stdtrit(seed_freedom, tail) * seed_error, stdtrit(prompt_freedom, tail) * prompt_error)


def _p_value(distance: float, errors: tuple[float, float, float, float]) -> float:
    """Where the interval at level 1 - p reaches `distance`, by bisection of log p."""
    if not distance > 0:
        return 1.0
    low, high = math.log(1e-300), 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if _reach(math.exp(middle) / 2, *errors) < distance else (middle, high)
    return math.exp(high)


def _welch(errors: Sequence[Array], seeds: tuple[int, ...]) -> Array:
    """Degrees of freedom of the summed variances; infinite where nothing varies."""
    top = sum(error**2 for error in errors) ** 2
    bottom = sum(error**4 / max(size - 1, 1) for error, size in zip(errors, seeds, strict=True))
    return np.divide(top, bottom, out=np.full_like(errors[0], np.inf), where=bottom > 0)


def _counts(rng: np.random.Generator, size: int, replicates: int) -> Array:
    """[R,size] how often each of `size` is drawn in `size` draws."""
    return rng.multinomial(size, np.full(size, 1 / size), size=replicates).astype(np.float64)


def _rows(seeds: Sequence[Array], prompts: Array, rows: slice) -> tuple[list[Array], Array]:
    """Some replicates; what is the same in all, [1,...], for each of them."""
    count = max(len(part[rows]) for part in (*seeds, prompts) if len(part) > 1)
    full = [part[rows] if len(part) > 1 else np.broadcast_to(part, (count, part.shape[1])) for part in (*seeds, prompts)]
    return full[:-1], full[-1]
