"""How sure one run's numbers are: intervals over its prompts and images, by a cluster bootstrap with a small-sample correction.

Over training seeds as well: crossed.py.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

CHUNK = 1 << 22  # random numbers drawn at a time; part of which numbers a seed gives


@dataclass(frozen=True, kw_only=True)
class Interval:
    mean: float
    low: float
    high: float
    prompts: int
    images: int


def paired_difference(values_a: ArrayLike, values_b: ArrayLike, groups: ArrayLike, *, seed: int, replicates: int, level: float) -> Interval:
    """Mean of `values_b - values_a` over images, with an interval over prompts and over the images of a prompt.

    values_a, values_b: [B] the same images (prompt and k) under two policies, a the one compared against, b the one of interest.
    groups: [B] each image's prompt. Says nothing of other training seeds.

    A replicate draws prompts with replacement and, for each prompt drawn, its images with replacement. The quantiles of the replicates
    are too narrow by sqrt((P-1)/P) and by the normal's quantile in place of Student's, and too wide because a prompt's own images vary
    twice; so their deviations are rescaled to Student's quantile (P - 1 degrees of freedom) times the standard error over prompts.
    That keeps the bootstrap's asymmetry, and unlike a studentised bootstrap stays finite where most differences are 0.

    ValueError: a length that differs, a value that is not finite, fewer than 2 prompts, level outside (0, 1), replicates < 100.
    """
    a, b, prompt = np.asarray(values_a, np.float64), np.asarray(values_b, np.float64), np.asarray(groups)
    if not (a.ndim == 1 and a.shape == b.shape == prompt.shape):
        raise ValueError(f"paired_difference: three lists of one length are wanted, not {a.shape}, {b.shape}, {prompt.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("paired_difference: a value is not finite")
    if not 0 < level < 1 or replicates < 100:
        raise ValueError(f"paired_difference: level {level} must lie in (0, 1), replicates {replicates} be 100 or more")
    _, prompt, images = np.unique(prompt, return_inverse=True, return_counts=True)  # images [P]
    if len(images) < 2:
        raise ValueError(f"paired_difference: {len(images)} prompt; an interval over prompts needs 2 or more")

    order = np.argsort(prompt, kind="stable")
    difference = (b - a)[order]  # [B] prompt by prompt
    mean = difference.mean()
    influence = np.add.reduceat(difference - mean, np.cumsum(images) - images) / images.mean()  # [P] of each prompt on the mean
    error = influence.std(ddof=1) / math.sqrt(len(images))
    deviation = _replicates(difference, images, np.random.Generator(np.random.PCG64(seed)), replicates) - mean  # [R]
    tail = (1 - level) / 2
    low, high = np.quantile(deviation, [tail, 1 - tail])
    spread = deviation.std()
    if spread > 0:
        student, normal = stdtrit(len(images) - 1, 1 - tail), NormalDist().inv_cdf(1 - tail)
        low, high = np.array([low, high]) * (student / normal) * (error / spread)
    return Interval(mean=float(mean), low=float(mean + low), high=float(mean + high), prompts=len(images), images=len(difference))


def _replicates(values: np.ndarray, images: np.ndarray, rng: np.random.Generator, replicates: int) -> np.ndarray:
    """[R] means of resampled prompts and images; `values` [B] lie prompt by prompt, `images` [P] of each."""
    first, most, size = np.cumsum(images) - images, images.max(), len(images)
    step = max(1, CHUNK // (size * most))
    means = []
    for start in range(0, replicates, step):
        rows = min(step, replicates - start)
        drawn = rng.integers(size, size=(rows, size))  # [r,P]
        count = images[drawn][:, :, None]  # [r,P,1]
        image = (rng.random((rows, size, most)) * count).astype(np.int64)  # [r,P,K] below count
        kept = np.arange(most) < count
        total = np.where(kept, values[np.minimum(first[drawn][:, :, None] + image, len(values) - 1)], 0.0).sum((1, 2))
        means.append(total / count.sum((1, 2)))
    return np.concatenate(means)
