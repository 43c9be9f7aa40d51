"""Wins, ties and losses by loops, a matrix whose halves mirror, and Holm's correction by hand."""

import math
from itertools import product

import numpy as np
import pytest

from alignbench.evaluation.aggregates import level
from alignbench.evaluation.crossed import Bootstrap
from alignbench.evaluation.improvement import holm, improvement, least_error, win_matrix

HOW = Bootstrap(replicates=500, level=0.95, seed=0)


def grades(seeds: int, prompts: int = 9, images: int = 4, best: int = 4, seed: int = 0) -> np.ndarray:
    """[S,P,K] whole numbers, so that there are ties, with gaps."""
    rng = np.random.Generator(np.random.PCG64(seed))
    values = rng.integers(0, best, size=(seeds, prompts, images)).astype(float)
    values[rng.random(values.shape) < 0.2] = np.nan
    values[0, 0] = np.nan  # a whole (seed, prompt)
    return values


def by_loops(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Probability, win, tie, loss."""
    cells = []
    for one, other, prompt in product(range(len(a)), range(len(b)), range(a.shape[1])):
        pairs = [(x, y) for x, y in zip(a[one, prompt], b[other, prompt], strict=True) if not (math.isnan(x) or math.isnan(y))]
        if pairs:
            cells.append([sum(x > y for x, y in pairs) / len(pairs), sum(x == y for x, y in pairs) / len(pairs)])
    win, tie = np.mean(cells, axis=0)
    return [win + tie / 2, win, tie, 1 - win - tie]


def test_shares_by_loops() -> None:
    methods = {"a": grades(3), "b": grades(5, best=5, seed=1), "c": grades(2, best=6, seed=2), "reference": grades(2, best=3, seed=3)[1]}
    matrix = win_matrix(methods, HOW)
    assert set(matrix) == {(a, b) for a, b in product(methods, methods) if a != b}
    for (a, b), found in matrix.items():
        ours, theirs = (methods[name] if name != "reference" else methods[name][None] for name in (a, b))
        shares = found.probability, found.win, found.tie, found.loss
        assert [share.value for share in shares] == pytest.approx(by_loops(ours, theirs), rel=1e-12)
        assert all(0 <= share.low <= share.value <= share.high <= 1 for share in shares)
        other = matrix[b, a]
        assert (other.probability.low, other.probability.high) == pytest.approx((1 - found.probability.high, 1 - found.probability.low))
        assert (other.win.low, other.tie.high, other.probability.seeds) == (found.loss.low, found.tie.high, found.probability.seeds[::-1])


def test_what_is_not_trained_has_no_seeds() -> None:
    trained, reference = grades(3), grades(2, seed=1)[1]
    one = improvement(trained, reference, HOW).probability
    assert (one.seeds, one.over) == ((3,), "seeds and prompts")
    assert improvement(trained, reference[None], HOW).probability.over == "prompts"  # one seed of a method
    assert improvement(reference, trained, HOW).probability.value == pytest.approx(1 - one.value)
    neither = improvement(np.nan_to_num(reference), np.nan_to_num(grades(2, seed=2)[1]), HOW).probability
    assert (neither.seeds, neither.errors.seeds) == ((), 0.0)
    assert neither.errors.prompts > 0


def test_against_a_fixed_reference_it_is_the_level_of_wins() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    values, reference = rng.normal(0.2, 1, size=(4, 20, 3)), np.zeros((20, 3))
    one, same = improvement(values, reference, HOW).probability, level(values > 0, HOW, kind="mean")
    assert (one.value, one.errors.prompts) == pytest.approx((same.value, same.errors.prompts))
    assert one.errors.seeds == pytest.approx(max(same.errors.seeds, least_error(values, reference[None])))
    assert (one.null, one.excludes_null) == (0.5, one.low > 0.5)


def test_few_seeds_that_decide_everything_prove_nothing() -> None:
    """Three seeds above three others: one chance in ten either way where methods are alike."""
    low, high = np.array([1.0, 2.0, 3.0])[:, None, None] * np.ones((3, 8, 2)), np.array([4.0, 5.0, 6.0])[:, None, None] * np.ones((3, 8, 2))
    one = improvement(high, low, HOW).probability
    assert one.value == 1
    assert one.low < 0.5 < one.high and one.p > 0.05
    assert one.errors.seeds == pytest.approx(math.sqrt(7 / (12 * 9)))  # Mann and Whitney's, without ties
    against = improvement(high, np.zeros((8, 2)), HOW).probability
    assert against.errors.seeds == pytest.approx(math.sqrt(1 / (4 * 3)))  # a sign test's
    assert not against.excludes_null
    many = np.arange(10.0)[:, None, None] * np.ones((10, 8, 2))
    assert improvement(many + 100, many, HOW).probability.excludes_null  # ten above ten others do


def test_seeds_that_do_not_matter_need_not_be_many() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    a, b = (rng.normal(shift, 1, size=(3, 48, 4)) for shift in (1.0, 0.0))
    one = improvement(a, b, HOW).probability
    assert one.value == pytest.approx(0.76, abs=0.03)  # Phi(1 / sqrt 2)
    assert 0.6 < one.low < one.high < 0.9


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # x 3; x 1, but not below the next; x 2; x 4
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    with pytest.raises(ValueError, match="outside"):
        holm([0.5, float("nan")])


def test_holm_rejects_what_the_step_down_rejects() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    for _ in range(200):
        p = rng.random(7) ** 3
        rejected, order = set(), np.argsort(p)
        for step, index in enumerate(order):
            if p[index] > 0.05 / (len(p) - step):
                break
            rejected.add(int(index))
        assert {n for n, value in enumerate(holm(p.tolist())) if value <= 0.05} == rejected


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="the same prompts and images"):
        improvement(np.zeros((2, 3, 4)), np.zeros((2, 3, 5)), HOW)
    gaps = np.zeros((2, 3, 4))
    gaps[:, 1] = np.nan
    with pytest.raises(ValueError, match="prompt 1 has no image that both scored"):
        improvement(gaps, np.zeros((2, 3, 4)), HOW)
