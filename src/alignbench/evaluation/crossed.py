"""Intervals over training seeds and prompts, two crossed factors: each is bootstrapped by itself and rescaled to Student's t.

The bootstrap of both: Owen, "The pigeonhole bootstrap", Ann. Appl. Stat. 2007. Parts with t quantiles of their own, in quadrature,
cover at least the level: Banerjee, Sankhya 1960. Seeds of two methods: Welch, Biometrika 1947. Putting these together is ours.
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
    """How intervals are made. `correct=False`: percentiles of replicates that draw both factors, too narrow with few seeds.

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
class Errors:
    """Standard errors from the seeds (0 with one seed, which tells nothing of others) and from the prompts, with degrees of freedom."""

    seeds: float
    seeds_freedom: float
    prompts: float
    prompts_freedom: float

    def reach(self, tail: float) -> float:
        """How far an interval goes that leaves out `tail` on either side."""
        parts = ((self.seeds, self.seeds_freedom), (self.prompts, self.prompts_freedom))
        return math.hypot(*(stdtrit(freedom, tail) * error for error, freedom in parts if error > 0))

    def p_value(self, distance: float) -> float:
        """Twice the tail of the interval that goes as far as `distance`, by bisection of its logarithm; 1e-50 at the least."""
        if distance == 0:
            return 1.0
        low, high = math.log(1e-50), 0.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (low, middle) if self.reach(math.exp(middle) / 2) < distance else (middle, high)
        return math.exp(high)


@dataclass(frozen=True, kw_only=True)
class CrossedInterval:
    """A value with its interval. `p` is that of the null: the interval at level 1 - p ends there."""

    value: float
    low: float
    high: float
    level: float
    null: float  # what the value is where nothing differs
    p: float
    seeds: tuple[int, ...]  # of each method that takes part and is trained
    prompts: int
    errors: Errors

    @property
    def over(self) -> str:
        """What the interval speaks for: with one seed of a method, not for other trainings of it."""
        return "prompts" if 1 in self.seeds else "seeds and prompts"

    @property
    def excludes_null(self) -> bool:
        return self.low > self.null or self.high < self.null

    def detectable(self, power: float) -> float:
        """The least difference from the null that such an interval leaves out with probability `power`, about.

        ValueError: power outside [0.5, 1).
        """
        if not 0.5 <= power < 1:
            raise ValueError(f"power {power} must lie in [0.5, 1)")
        return self.errors.reach((1 - self.level) / 2) + self.errors.reach(1 - power)


def intervals(
    statistic: Statistic,
    seeds: tuple[int, ...],
    prompts: int,
    how: Bootstrap,
    *,
    null: ArrayLike = 0.0,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    least_error: ArrayLike = 0.0,
) -> list[CrossedInterval]:
    """One of each of the N quantities that `statistic` gives. seeds: their number in each method; bounds: the values that are possible;
    null, least_error: a number or [N], the latter of the seeds, for where their replicates are known to vary too little.

    With the prompts as they are, a replicate draws the seeds of one method; with the seeds as they are, the prompts. Each gives a standard
    error, times sqrt(n / (n - 1)). The interval is value +- sqrt((t_seeds e_seeds)^2 + (t_prompts e_prompts)^2), its t with n - 1 degrees
    of freedom and, for the seeds of several methods together, Welch's. What is neither of seeds nor of prompts (images, and what a seed
    does to a prompt) is in both errors and so counted twice: the interval covers more than its level where that is most of the spread.

    ValueError: fewer than 2 prompts, a replicate without any score.
    """
    if prompts < 2:
        raise ValueError(f"{prompts} prompt; an interval needs 2 or more")
    rng = np.random.Generator(np.random.PCG64(how.seed))
    prompt_draws = _counts(rng, prompts, how.replicates)
    seed_draws = [_counts(rng, size, how.replicates) for size in seeds]
    once, each = [np.ones((1, size)) for size in seeds], np.ones((1, prompts))

    def replicates(drawn: Sequence[Array], drawn_prompts: Array) -> Array:  # [R,N]
        step = max(1, CHUNK // (max(seeds, default=1) * prompts))
        parts = [_rows(drawn, drawn_prompts, slice(start, start + step)) for start in range(0, how.replicates, step)]
        with np.errstate(invalid="ignore"):  # 0 / 0 is named below
            values = np.concatenate([statistic(*part) for part in parts])
        if not np.isfinite(values).all():
            raise ValueError("too few scores: a replicate has none")
        return values

    value = statistic(once, each)[0]  # [N]
    nulls, least = (np.broadcast_to(np.asarray(given, np.float64), value.shape) for given in (null, least_error))
    of_prompts = replicates(once, prompt_draws).std(0)
    of_seeds = [
        replicates([*once[:m], draws, *once[m + 1 :]], each).std(0) if seeds[m] > 1 else np.zeros_like(value)
        for m, draws in enumerate(seed_draws)
    ]
    if how.correct:
        errors = _corrected(of_seeds, seeds, of_prompts, prompts, least)
        ends = [_student(float(value[n]), float(nulls[n]), errors[n], how.level) for n in range(len(value))]
    else:
        of_all = np.sqrt(sum((error**2 for error in of_seeds), np.zeros_like(value)))
        errors = [_errors(of_all[n], math.inf, of_prompts[n], math.inf) for n in range(len(value))]
        both = replicates(seed_draws, prompt_draws)
        ends = [_percentiles(both[:, n], float(nulls[n]), how.level) for n in range(len(value))]
    return [
        CrossedInterval(
            value=float(value[n]),
            low=max(low, bounds[0]),
            high=min(high, bounds[1]),
            level=how.level,
            null=float(nulls[n]),
            p=p,
            seeds=seeds,
            prompts=prompts,
            errors=errors[n],
        )
        for n, (low, high, p) in enumerate(ends)
    ]


def _corrected(of_seeds: list[Array], seeds: tuple[int, ...], of_prompts: Array, prompts: int, least: Array) -> list[Errors]:
    freedoms = np.array(seeds, np.float64)[:, None] - 1
    variances = np.reshape(of_seeds, (len(seeds), len(least))) ** 2 * (freedoms + 1) / np.maximum(freedoms, 1)  # [M,N]
    total, welch = variances.sum(0), (variances**2 / np.maximum(freedoms, 1)).sum(0)
    freedom = np.divide(total**2, welch, out=np.full_like(total, np.inf), where=welch > 0)
    small = total < least**2
    total, freedom = np.where(small, least**2, total), np.where(small, freedoms.sum(), freedom)
    error = of_prompts * math.sqrt(prompts / (prompts - 1))
    return [_errors(math.sqrt(total[n]), freedom[n], error[n], prompts - 1) for n in range(len(total))]


def _errors(seeds: float, seeds_freedom: float, prompts: float, prompts_freedom: float) -> Errors:
    return Errors(seeds=float(seeds), seeds_freedom=float(seeds_freedom), prompts=float(prompts), prompts_freedom=float(prompts_freedom))


def _student(value: float, null: float, errors: Errors, level: float) -> tuple[float, float, float]:
    reach = errors.reach((1 - level) / 2)
    return value - reach, value + reach, errors.p_value(abs(value - null))


def _percentiles(replicates: Array, null: float, level: float) -> tuple[float, float, float]:
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    below = np.interp(null, np.sort(replicates), np.linspace(0, 1, len(replicates)))
    return float(low), float(high), float(max(2 * min(below, 1 - below), 2 / len(replicates)))  # replicates cannot show a smaller p


def _counts(rng: np.random.Generator, size: int, replicates: int) -> Array:
    """[R,size] how often each of `size` is drawn in `size` draws."""
    return rng.multinomial(size, np.full(size, 1 / size), size=replicates).astype(np.float64)


def _rows(seeds: Sequence[Array], prompts: Array, rows: slice) -> tuple[list[Array], Array]:
    """Some replicates; what is the same in all, [1,...], for each of them."""
    count = max(len(part[rows]) for part in (*seeds, prompts) if len(part) > 1)
    full = [part[rows] if len(part) > 1 else np.broadcast_to(part, (count, part.shape[1])) for part in (*seeds, prompts)]
    return full[:-1], full[-1]
