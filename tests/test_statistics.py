"""The paired interval: honest at the number of prompts that a run has, and the same for the same seed."""

import subprocess
import sys

import numpy as np
import pytest

from alignbench.evaluation.statistics import Interval, paired_difference

PROMPTS, IMAGES = 36, 4


def simulated(seed: int, prompts: int = PROMPTS, between: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of one run whose true difference is 0.3, with a prompt's own difficulty and its own gain."""
    rng = np.random.Generator(np.random.PCG64(seed))
    prompt = np.repeat(np.arange(prompts), IMAGES)
    before = rng.normal(0, 3, prompts)[prompt] + rng.normal(0, 1, len(prompt))
    return before, before + 0.3 + between * rng.normal(0, 1, prompts)[prompt] + rng.normal(0, 1, len(prompt)), prompt


def interval(a: np.ndarray, b: np.ndarray, prompt: np.ndarray, seed: int = 0, replicates: int = 400, level: float = 0.95) -> Interval:
    return paired_difference(a, b, prompt, seed=seed, replicates=replicates, level=level)


@pytest.mark.parametrize("prompts, between", [(36, 1.0), (12, 1.0), (36, 0.0)])
def test_coverage(prompts: int, between: float) -> None:
    found = [interval(*simulated(seed, prompts, between), seed=seed) for seed in range(400)]
    assert 0.93 <= np.mean([one.low <= 0.3 <= one.high for one in found]) <= 0.98


def test_coverage_of_rare_changes() -> None:
    """Most images alike before and after, as with a judge that says right or wrong: finite, and honest still."""
    found = []
    for seed in range(400):
        rng = np.random.Generator(np.random.PCG64(seed))
        before = rng.random(PROMPTS * IMAGES) < 0.4
        after = np.where(before, rng.random(before.size) >= 0.05, rng.random(before.size) < 0.15)  # gains 0.09, loses 0.02
        found.append(interval(before, after, np.repeat(np.arange(PROMPTS), IMAGES), seed=seed))
    assert np.mean([one.low <= 0.07 <= one.high for one in found]) >= 0.93
    assert max(one.high - one.low for one in found) < 0.3


def test_images_of_a_prompt_are_not_taken_for_prompts() -> None:
    clustered, flat = [], []
    for seed in range(200):
        a, b, prompt = simulated(seed)
        clustered.append(interval(a, b, prompt))
        flat.append(interval(a, b, np.arange(len(prompt))))
    assert np.mean([one.low <= 0.3 <= one.high for one in flat]) < 0.85  # what forgetting the prompts would cost
    assert np.mean([one.high - one.low for one in clustered]) > 1.3 * np.mean([one.high - one.low for one in flat])


def test_pairs_are_used() -> None:
    a, b, prompt = simulated(0)
    shuffled = np.random.Generator(np.random.PCG64(1)).permutation(b)
    paired, unpaired = interval(a, b, prompt), interval(a, shuffled, prompt)
    assert paired.mean == pytest.approx(unpaired.mean)
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


def test_one_seed_one_answer_whatever_the_order() -> None:
    a, b, prompt = simulated(0)
    first = interval(a, b, prompt, seed=7)
    assert interval(a, b, prompt, seed=7) == first
    assert interval(a, b, prompt, seed=8) != first
    assert interval(a, b, np.array([f"prompt {n:02d}" for n in prompt]), seed=7) == first
    assert interval(list(a), list(b), list(prompt), seed=7) == first
    by_image = np.arange(len(prompt)).reshape(PROMPTS, IMAGES).T.ravel()  # every prompt's first image, then every second, ...
    assert interval(a[by_image], b[by_image], prompt[by_image], seed=7) == first


def test_mean_sign_and_counts() -> None:
    a, b, prompt = simulated(0)
    one = interval(a, b, prompt)
    assert one.mean == pytest.approx(np.mean(b) - np.mean(a))
    assert one.low < one.mean < one.high
    assert (one.prompts, one.images) == (PROMPTS, PROMPTS * IMAGES)
    back = interval(b, a, prompt)
    assert (back.mean, back.low) == pytest.approx((-one.mean, -one.high), abs=0.1)


def test_a_higher_level_is_wider() -> None:
    widths = [(one := interval(*simulated(0), level=level)).high - one.low for level in (0.5, 0.9, 0.95, 0.99)]
    assert widths == sorted(widths)


def test_prompts_with_unequal_numbers_of_images() -> None:
    found = []
    for seed in range(200):
        a, b, prompt = simulated(seed)
        kept = np.random.Generator(np.random.PCG64(seed)).random(len(prompt)) < 0.6
        found.append(one := interval(a[kept], b[kept], prompt[kept]))
        assert one.mean == pytest.approx(np.mean(b[kept] - a[kept]))
    assert np.mean([one.low <= 0.3 <= one.high for one in found]) >= 0.92


def test_no_difference_at_all_is_a_point() -> None:
    one = paired_difference([1.0, 2.0, 3.0], [1.5, 2.5, 3.5], [0, 1, 2], seed=0, replicates=100, level=0.95)
    assert (one.low, one.mean, one.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "a, b, groups, replicates, level, message",
    [
        ([1, 2], [1, 2, 3], [0, 1], 100, 0.95, "one length"),
        ([1, 2], [1, 2], [0, 1, 2], 100, 0.95, "one length"),
        ([[1, 2]], [[1, 2]], [[0, 1]], 100, 0.95, "one length"),
        ([1, float("nan")], [1, 2], [0, 1], 100, 0.95, "not finite"),
        ([1, 2], [1, 2], [0, 0], 100, 0.95, "1 prompt; "),
        ([], [], [], 100, 0.95, "0 prompt; "),
        ([1, 2], [1, 2], [0, 1], 99, 0.95, "replicates 99"),
        ([1, 2], [1, 2], [0, 1], 100, 95, "level 95"),
    ],
)
def test_wrong_input_is_named(a: list, b: list, groups: list, replicates: int, level: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(a, b, groups, seed=0, replicates=replicates, level=level)


@pytest.mark.parametrize("module", ["statistics", "aggregates", "improvement", "fronts", "overoptimisation"])
def test_imports_neither_torch_nor_pandas(module: str) -> None:
    code = f"import sys, alignbench.evaluation.{module}; print({{'torch', 'lightning', 'pandas', 'scipy.stats'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
