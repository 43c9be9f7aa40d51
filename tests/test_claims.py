"""Claims on made-up changes: closed forms of each kind, what a verdict says, and that identical methods are rarely told apart."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from alignbench.evaluation.claims import Claim, Untold, difference, judged, matched, verdict
from alignbench.evaluation.compared import Cell, Run
from alignbench.evaluation.crossed import Bootstrap

HOW = Bootstrap(replicates=4000, level=0.95, seed=0)
FEW = Bootstrap(replicates=200, level=0.95, seed=0)


def changes(seed: int, mean: float = 0.0, seeds: int = 3, prompts: int = 16, images: int = 2, of_seeds: float = 0.5) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(seed))
    parts = [of_seeds * rng.normal(size=(seeds, 1, 1)), rng.normal(size=(1, prompts, 1)) / 2, rng.normal(size=(seeds, prompts, images)) / 4]
    return mean + sum(parts, np.zeros((seeds, prompts, images)))


def half_width(seeds: list[np.ndarray], prompts: np.ndarray) -> float:
    """In closed form: the standard errors of means over seeds (Welch) and over prompts, each with its Student's quantile."""
    variances = [each.var(ddof=1) / len(each) for each in seeds]
    freedom = sum(variances) ** 2 / sum(v**2 / (len(each) - 1) for v, each in zip(variances, seeds, strict=True))
    error = prompts.std(ddof=1) / math.sqrt(len(prompts))
    return math.hypot(stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances)), stats.t.ppf(0.975, len(prompts) - 1) * error)


def test_a_difference_in_closed_form() -> None:
    a, b = changes(0, 2.0), changes(1, 0.5)
    found = difference(a, b, HOW)
    assert found.value == pytest.approx(a.mean() - b.mean())
    wide = half_width([a.mean((1, 2)), b.mean((1, 2))], (a.mean((0, 2)) - b.mean((0, 2))))
    assert found.high - found.value == pytest.approx(wide, rel=0.05)  # of 4000 replicates
    alone = difference(a, None, HOW)
    assert alone.value == pytest.approx(a.mean())
    assert alone.high - alone.value == pytest.approx(half_width([a.mean((1, 2))], a.mean((0, 2))), rel=0.05)


def test_matched_on_exact_lines() -> None:
    """a loses 2 per gain and b 1/2: at b's largest gain, 3, they are 4.5 apart; a's second row lies beyond it."""
    ones = np.ones((3, 8, 2))
    a, b = [(4 * ones, -8 * ones), (1 * ones, -2 * ones)], [(3 * ones, -1.5 * ones)]
    found, at = matched(a, b, FEW)
    assert at == 3
    assert (found.value, found.low, found.high) == pytest.approx((-4.5, -4.5, -4.5))
    back, _ = matched(b, a, FEW)
    assert back.value == pytest.approx(4.5)
    bent, at = matched([(1 * ones, -2 * ones), (4 * ones, 1 * ones)], b, FEW)  # the segment from (1, -2) to (4, 1)
    assert bent.value == pytest.approx(0.0 + 1.5)


def test_matched_of_one_row_each_in_closed_form() -> None:
    """b ends at the common gain; a's change there is its slope times it. To first order the noise of a is share * (y - slope * x)."""
    ax, ay, bx, by = (changes(n, mean, of_seeds=0.1) for n, mean in enumerate((6.0, 3.0, 4.0, 1.0)))
    found, at = matched([(ax, ay)], [(bx, by)], HOW)
    assert at == pytest.approx(bx.mean())
    slope = ay.mean() / ax.mean()
    assert found.value == pytest.approx(slope * at - by.mean())
    share = at / ax.mean()
    one, other = share * (ay - slope * ax), by - by.mean() / bx.mean() * bx
    wide = half_width([one.mean((1, 2)), other.mean((1, 2))], one.mean((0, 2)) - other.mean((0, 2)))
    assert found.high - found.value == pytest.approx(wide, rel=0.05)


def test_matched_needs_a_gain_of_both() -> None:
    ones = np.ones((2, 4, 1))
    with pytest.raises(Untold, match="no gain in common"):
        matched([(ones, ones)], [(-ones, ones)], FEW)


def cell(label: str, tables: dict[str, np.ndarray], failed: tuple[int, ...] = (), noise: int = 0) -> Cell:
    """Runs whose changes are these: the reference scores 10 everywhere."""
    runs = []
    for seed in range(len(next(iter(tables.values())))):
        rows: list[dict[str, Any]] = []
        for who in ("reference", "policy"):
            for p, k in np.ndindex(next(iter(tables.values())).shape[1:]):
                scores = {name: 10.0 + (table[seed, p, k] if who == "policy" else 0.0) for name, table in tables.items()}
                rows.append({"who": who, "split": "test", "epoch": 0, "prompt_id": p, "k": k, **scores})
        metrics = [{"name": name, "label": "held out"} for name in tables]
        runs.append(Run({"hash": label, "seed": seed, "metrics": metrics, "config": {"dataset": {}, "eval": {"noise": noise}}}, rows))
    return Cell(label, runs, list(failed), runs[0])


def claim(**said: Any) -> Claim:
    return Claim(**{"kind": "difference", "direction": "higher", "a": "a", "b": "b", **said})


def test_locality_is_a_difference_of_differences() -> None:
    tables = {name: [changes(10 * m + n, 1.0 + m) for n in range(2)] for m, name in enumerate(("inside", "outside"))}
    a, b = (cell(label, {name: each[n] for name, each in tables.items()}) for n, label in enumerate("ab"))
    found, _ = judged(claim(kind="locality", inside="inside", outside="outside"), {"a": a, "b": b}, HOW)
    leans = [tables["inside"][n] - tables["outside"][n] for n in range(2)]
    assert found.value == pytest.approx(leans[0].mean() - leans[1].mean())
    wide = half_width([each.mean((1, 2)) for each in leans], leans[0].mean((0, 2)) - leans[1].mean((0, 2)))
    assert found.high - found.value == pytest.approx(wide, rel=0.05)


def test_a_failed_seed_counts_as_the_reference() -> None:
    moved = changes(0, 3.0)
    found, _ = judged(claim(metric="m", b="reference"), {"a": cell("a", {"m": moved}, failed=(3,))}, FEW)
    assert found.value == pytest.approx(0.75 * moved.mean())
    assert found.seeds == (4,)


def test_a_prompt_that_some_run_has_no_score_of_is_left_out() -> None:
    moved, other = changes(0, 3.0), changes(1)
    gone = moved.copy()
    gone[1, 5] = np.nan
    there = {"a": cell("a", {"m": gone}), "b": cell("b", {"m": other})}
    for run in there["a"].runs:
        run.rows[:] = [row | {"m": None if np.isnan(row["m"]) else row["m"]} for row in run.rows]
    kept = np.arange(16) != 5
    found, _ = judged(claim(metric="m"), there, FEW)
    assert found.value == pytest.approx(moved[:, kept].mean() - other[:, kept].mean())


def test_what_cannot_be_told() -> None:
    moved = changes(0)
    a = cell("a", {"m": moved})
    for there, said in (
        ({"a": a}, "no seed of b finished"),
        ({"a": a, "b": cell("b", {"other": moved})}, "b has no m: its evaluation has other"),
        ({"a": a, "b": cell("b", {"m": moved}, noise=1)}, "a and b were evaluated on other prompts or noise"),
        ({"a": a, "b": cell("b", {"m": moved[:, :5]})}, "other prompts"),
    ):
        with pytest.raises(Untold, match=said):
            judged(claim(metric="m"), there, FEW)


def test_verdicts() -> None:
    up, down, nothing = (difference(changes(0, mean, of_seeds=0.1), None, FEW) for mean in (5.0, -5.0, -changes(0, of_seeds=0.1).mean()))
    assert [verdict(found, "higher") for found in (up, down, nothing)] == ["holds", "contradicted", "not shown"]
    assert [verdict(found, "lower") for found in (up, down, nothing)] == ["contradicted", "holds", "not shown"]


@pytest.mark.parametrize("kind", ["difference", "locality", "matched"])
def test_identical_methods_are_rarely_told_apart(kind: str) -> None:
    """Of 150 pairs that are the same in truth, 5 % or fewer should be called different; 13 or more have a chance of 2 % at 5 %."""
    told = 0
    for n in range(150):
        parts = [changes(10 * n + m, mean, of_seeds=0.2) for m, mean in enumerate((2.0, 1.0, 2.0, 1.0))]
        if kind == "matched":
            found, _ = matched([(parts[0], parts[1])], [(parts[2], parts[3])], FEW)
        elif kind == "locality":
            found = difference(parts[0] - parts[1], parts[2] - parts[3], FEW)
        else:
            found = difference(parts[0], parts[2], FEW)
        told += verdict(found, "higher") != "not shown"
    assert told <= 12
    assert told > 0 or kind == "matched"  # an interval that never excludes 0 is none
