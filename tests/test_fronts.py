"""Fronts by hand and by brute force; their intervals against those of the quantities they reduce to."""

import math

import numpy as np
import pytest

from alignbench.evaluation.aggregates import level
from alignbench.evaluation.crossed import Bootstrap
from alignbench.evaluation.fronts import area, front_area, matched, matched_reward, non_dominated

HOW = Bootstrap(replicates=1000, level=0.95, seed=0)


def noise(seed: int, seeds: int = 4, prompts: int = 12) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.normal(size=(seeds, 1)) / 4 + rng.normal(size=(1, prompts)) / 4 + rng.normal(size=(seeds, prompts)) / 4


def test_the_front_by_hand() -> None:
    x, y = [1, 2, 2, 3, 4, 1], [1.0, 3.0, 2.0, 3.0, 5.0, 1.0]
    assert non_dominated(x, y) == [True, True, False, False, True, True]  # equal points stay together
    assert float(area(x, y, base=0.0, limit=6.0)) == pytest.approx(1 * 1 + 2 * 3 + 2 * 5)
    assert float(area(x, y, base=2.0, limit=3.5)) == pytest.approx(1.5 * 1)  # only what is above the base and within the limit
    assert float(area([-0.5, 9.0], [2.0, 9.0], base=1.0, limit=4.0)) == pytest.approx(4.0)  # from 0
    assert float(area([5.0], [2.0], base=0.0, limit=4.0)) == 0


def test_front_and_area_by_brute_force() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    for _ in range(100):
        x, y = rng.integers(0, 8, size=6).astype(float), rng.integers(-2, 6, size=6).astype(float)
        points = list(zip(x, y, strict=True))
        assert non_dominated(x, y) == [not any((a <= c and b >= d) and (a, b) != (c, d) for a, b in points) for c, d in points]
        squares = sum(any(a <= column and b > row for a, b in points) for column in range(7) for row in range(1, 9))  # unit squares over 1
        assert float(area(x, y, base=1.0, limit=7.0)) == squares
        assert float(area(x[::-1], y[::-1], base=1.0, limit=7.0)) == squares
        kept = np.array(non_dominated(x, y))
        assert float(area(x[kept], y[kept], base=1.0, limit=7.0)) == squares  # the front alone has the area
    several = rng.random((5, 3, 4))
    np.testing.assert_allclose(area(several, several, base=0.2, limit=2.0)[2, 1], area(several[2, 1], several[2, 1], base=0.2, limit=2.0))


def test_the_area_of_one_point_has_the_interval_of_its_reward() -> None:
    x, y = np.full((4, 12), 2.0), 3 + noise(0)
    one, reward = front_area([(x, y)], HOW, base=1.0, limit=7.0, shared=False), level(y, HOW, kind="mean")
    assert (one.value, one.low, one.high) == pytest.approx(tuple(5 * (end - 1) for end in (reward.value, reward.low, reward.high)))


def test_points_of_one_training_share_its_seeds() -> None:
    """Steps at 0 and at 1, both twice as high as the noise: with the same seeds their errors add up, with others their squares do."""
    y = 3 + noise(0) - noise(0).mean(0)  # no effect of prompts
    points = [(np.zeros_like(y), y), (np.ones_like(y), y + 5)]
    together, apart = (front_area(points, HOW, base=0.0, limit=2.0, shared=shared) for shared in (True, False))
    alone = level(y, HOW, kind="mean").errors.seeds
    assert together.value == apart.value == pytest.approx(y.mean() + y.mean() + 5)
    assert together.errors.seeds == pytest.approx(2 * alone, rel=1e-6)
    assert apart.errors.seeds == pytest.approx(math.sqrt(2) * alone, rel=0.1)
    assert (together.seeds, apart.seeds) == ((4,), (4, 4))
    assert together.errors.seeds_freedom == pytest.approx(3)
    assert apart.errors.seeds_freedom == pytest.approx(6, rel=0.1)


def test_matched_by_hand() -> None:
    assert matched([0, 1, 3], [0, 2, 3], 2) == pytest.approx(2.5)
    assert matched([0, 1, 3], [0, 2, 3], 1) == 2
    assert matched([3, 1, 0], [3, 2, 0], 0.5) == pytest.approx(1)
    assert matched([0, 1, 3], [0, 2, 3], 3.1) is None
    assert matched([0.5, 1], [0, 2], 0.4) is None
    assert matched([0, 4, 2], [0, 4, 6], 3) == pytest.approx(5)  # passed twice, at 3 and at 5
    assert matched([1, 1], [2, 3], 1) == 3
    assert matched([1], [2], 1) is None  # one setting is no sweep


@pytest.mark.parametrize("shared", [True, False])
def test_reward_at_a_matched_divergence(shared: bool) -> None:
    """Exact x: a mixture of rewards. Noisy x: along the line, so times its slope."""
    exact = [np.full((4, 12), float(n)) for n in (1, 3)]
    y = [1 + noise(0), 2 + noise(0 if shared else 1)]
    one = matched_reward(list(zip(exact, y, strict=True)), HOW, at=2.5, shared=shared)
    assert one is not None
    assert one.value == pytest.approx(0.25 * y[0].mean() + 0.75 * y[1].mean())
    parts = [level(each, HOW, kind="mean").errors.seeds * weight for each, weight in zip(y, (0.25, 0.75), strict=True)]
    assert one.errors.seeds == pytest.approx(sum(parts) if shared else math.hypot(*parts), rel=1e-6 if shared else 0.1)

    noisy = [(np.zeros((4, 12)), np.zeros((4, 12))), (2 + noise(2), np.full((4, 12), 6.0))]
    one, x = matched_reward(noisy, HOW, at=1.0, shared=shared), level(noisy[1][0], HOW, kind="mean")
    assert one is not None
    slope = 6 / x.value
    assert one.value == pytest.approx(slope * 1.0)
    assert one.errors.prompts == pytest.approx(slope * (1 / x.value) * x.errors.prompts, rel=1e-6)
    nudged = matched([0, x.value + 1e-5], [0, 6], 1.0)
    assert nudged is not None
    assert (nudged - one.value) / 1e-5 == pytest.approx(-slope / x.value, rel=1e-3)  # the derivative that the error uses


def test_outside_the_sweep_there_is_no_reward() -> None:
    points = [(np.full((4, 12), x), noise(0)) for x in (1.0, 2.0)]
    assert matched_reward(points, HOW, at=2.5, shared=True) is None


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="limit 0"):
        area([1.0], [1.0], base=0.0, limit=0.0)
    with pytest.raises(ValueError, match="without gaps"):
        non_dominated([1.0, 2.0], [math.nan, 1.0])
    with pytest.raises(ValueError, match="same seeds, all points the same prompts"):
        front_area([(np.zeros((2, 3)), np.zeros((2, 3))), (np.zeros((2, 4)), np.zeros((2, 4)))], HOW, base=0.0, limit=1.0, shared=False)
    with pytest.raises(ValueError, match="same seeds"):
        front_area([(np.zeros((2, 3)), np.zeros((3, 3)))], HOW, base=0.0, limit=1.0, shared=False)
    with pytest.raises(ValueError, match="same seeds"):
        front_area([(np.zeros((n, 3)), np.zeros((n, 3))) for n in (2, 3)], HOW, base=0.0, limit=1.0, shared=True)
    with pytest.raises(ValueError, match="no point"):
        front_area([], HOW, base=0.0, limit=1.0, shared=False)
