"""How often intervals hold the truth, by simulation: `python tests/interval_coverage.py` prints the table of docs/statistics.md.

y[s,p,k] = seed_s + prompt_p + both_sp + image_spk, 48 prompts, 4 images, each effect normal or skewed (exponential, mean 0).
"""

import math
import sys
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.stats import trim_mean

from alignbench.evaluation.aggregates import contrast, level
from alignbench.evaluation.crossed import Array, Bootstrap
from alignbench.evaluation.improvement import improvement

PROMPTS, IMAGES, REPLICATES, LEVEL = 48, 4, 300, 0.95
SEEDS = (3, 5, 10)
Ratio = tuple[float, float, float, float]
GRID: dict[str, Ratio] = {  # standard deviations of seeds, prompts, seed x prompt, images
    "seeds": (1.0, 0.0, 0.0, 0.0),
    "prompts": (0.0, 1.0, 0.0, 0.0),
    "seed x prompt": (0.0, 0.0, 1.0, 0.0),
    "images": (0.0, 0.0, 0.0, 1.0),
    "seeds, prompts": (0.3, 1.0, 0.0, 0.0),
    "all, few of seeds": (0.1, 1.0, 0.3, 1.0),
    "all": (0.3, 1.0, 0.5, 1.0),
}


def effects(rng: np.random.Generator, skewed: bool) -> Callable[..., Array]:
    return lambda *shape: rng.exponential(size=shape) - 1 if skewed else rng.normal(size=shape)


def drawn(rng: np.random.Generator, ratio: Ratio, seeds: int, prompt: Array, skewed: bool = False) -> Array:
    """[S,P,K] of a method on given prompts [P]; its truth is 0, but for the IQM of skewed effects."""
    draw = effects(rng, skewed)
    parts = (draw(seeds, 1, 1), prompt[:, None], draw(seeds, PROMPTS, 1), draw(seeds, PROMPTS, IMAGES))
    return sum(sd * part for sd, part in zip(ratio, parts, strict=True))


@lru_cache
def skewed_iqm(ratio: Ratio, size: int = 1000) -> float:
    """Of the population of (seed, prompt) means: seeds and prompts at their own quantiles, the others drawn."""
    rng = np.random.Generator(np.random.PCG64(0))
    even = -np.log1p(-(np.arange(size) + 0.5) / size) - 1  # quantiles of the exponential
    both, images = rng.exponential(size=(size, size)) - 1, rng.gamma(IMAGES, 1 / IMAGES, size=(size, size)) - 1
    parts = (even[:, None], even, both, images)
    return float(trim_mean(sum(sd * part for sd, part in zip(ratio, parts, strict=True)), 0.25, axis=None))


def nested(values: Array, seed: int) -> tuple[float, float]:
    """Percentiles of means that draw seeds, then prompts anew for each seed drawn, then images: a control, not to be used."""
    rng, (s, p, k) = np.random.Generator(np.random.PCG64(seed)), values.shape
    seeds = rng.integers(s, size=(REPLICATES, s, 1, 1))
    prompts, images = rng.integers(p, size=(REPLICATES, s, p, 1)), rng.integers(k, size=(REPLICATES, s, p, k))
    low, high = np.quantile(values[seeds, prompts, images].mean((1, 2, 3)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def coverage(ratio: Ratio, seeds: int, simulations: int) -> dict[str, float]:
    """The share of intervals with the truth in them, by what was computed of which effects."""
    names = ("mean", "IQM", "IQM, skewed", "mean, percentiles", "mean, nested")
    held = dict.fromkeys(names, 0)
    for n in range(simulations):
        rng, how = (
            np.random.Generator(np.random.PCG64([n, seeds, list(GRID.values()).index(ratio)])),
            Bootstrap(replicates=REPLICATES, level=LEVEL, seed=n),
        )
        plain = Bootstrap(replicates=REPLICATES, level=LEVEL, seed=n, correct=False)
        values = drawn(rng, ratio, seeds, rng.normal(size=PROMPTS))
        skewed = drawn(rng, ratio, seeds, effects(rng, True)(PROMPTS), True)
        found = [level(values, how, kind="mean"), level(values, how, kind="iqm"), level(skewed, how, kind="iqm")]
        found.append(level(values, plain, kind="mean"))
        truth = (0.0, 0.0, skewed_iqm(ratio), 0.0, 0.0)
        ends = [(one.low, one.high) for one in found] + [nested(values, n)]
        for name, (low, high), value in zip(names, ends, truth, strict=True):
            held[name] += low <= value <= high
    return {name: count / simulations for name, count in held.items()}


def called_different(ratio: Ratio, seeds: int, simulations: int) -> dict[str, float]:
    """The share of pairs of identical methods, each with seeds of its own, whose interval leaves the null out."""
    wrong = {"mean": 0, "IQM": 0, "improvement": 0}
    for n in range(simulations):
        rng, how = (
            np.random.Generator(np.random.PCG64([n, seeds, list(GRID.values()).index(ratio)])),
            Bootstrap(replicates=REPLICATES, level=LEVEL, seed=n),
        )
        prompt = rng.normal(size=PROMPTS)
        a, b = (drawn(rng, ratio, seeds, prompt) for _ in range(2))
        wrong["mean"] += contrast(a, b, how, kind="mean").excludes_null
        wrong["IQM"] += contrast(a, b, how, kind="iqm").excludes_null
        wrong["improvement"] += improvement(a, b, how).probability.excludes_null
    return {name: count / simulations for name, count in wrong.items()}


def main(simulations: int) -> None:
    slack = 100 * math.sqrt(0.05 * 0.95 / simulations)
    print(f"{simulations} simulations a cell, in %; a share of 95 or of 5 has a standard error of {slack:.1f}.\n")
    for title, measure in (("truth in the interval", coverage), ("identical, called different", called_different)):
        header = ""
        for name, ratio in GRID.items():
            for seeds in SEEDS:
                found = measure(ratio, seeds, simulations)
                if not header:
                    header = f"| {title}: what varies | seeds | " + " | ".join(found) + " |"
                    print(header + "\n|---|---|" + "---|" * len(found))
                print(f"| {name} | {seeds} | " + " | ".join(f"{100 * share:.1f}" for share in found.values()) + " |", flush=True)
        print()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
