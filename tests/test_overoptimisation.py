"""The hacking gap by hand, and the fit of gains over divergence on curves that are known."""

import math

import numpy as np
import pytest

from alignbench.evaluation.aggregates import level
from alignbench.evaluation.crossed import Bootstrap
from alignbench.evaluation.overoptimisation import fit_gains, hacking_gap, standardised

HOW = Bootstrap(replicates=500, level=0.95, seed=0)


def judge(gain: float, scale: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(seed))
    reference = rng.normal(size=(10, 4)) * scale
    return reference + gain * scale + rng.normal(size=(3, 10, 4)) * scale, reference


def test_the_gap_by_hand() -> None:
    """References of spread 1, 2 and 3: gains of 4, 1 and 2 standard deviations."""
    trained = (np.full((2, 2, 2), 4.0), np.array([[1.0, -1.0], [-1.0, 1.0]]))
    held_out = {
        "one": (np.full((2, 2, 2), 2.0), np.array([[2.0, -2.0], [-2.0, 2.0]])),
        "two": (np.full((2, 2, 2), 6.0), np.array([[3.0, -3.0], [-3.0, 3.0]])),
    }
    assert hacking_gap(trained, held_out, HOW).value == pytest.approx(4 - (1 + 2) / 2)
    assert hacking_gap(trained, {"gold": held_out["one"]}, HOW).value == pytest.approx(4 - 1)


def test_the_gap_is_in_no_unit_and_paired() -> None:
    trained, other, third = judge(2, 1, 0), judge(0.5, 7, 1), judge(0, 0.1, 2)
    gap = hacking_gap(trained, {"other": other, "third": third}, HOW)
    by_hand = [(policy.mean() - reference.mean()) / reference.std() for policy, reference in (trained, other, third)]
    assert gap.value == pytest.approx(by_hand[0] - (by_hand[1] + by_hand[2]) / 2, rel=1e-12)
    assert gap.excludes_null and gap.over == "seeds and prompts"
    scaled = (1000 * other[0] + 3, 1000 * other[1] + 3)
    again = hacking_gap(trained, {"third": third, "other": scaled}, HOW)
    assert (again.value, again.low, again.high) == pytest.approx((gap.value, gap.low, gap.high))
    images = (trained[0] - trained[1]) / trained[1].std() - (other[0] - other[1]) / other[1].std()  # linear in the images
    one, same = hacking_gap(trained, {"other": other}, HOW), level(images, HOW, kind="mean")
    assert (one.value, one.low, one.high) == pytest.approx((same.value, same.low, same.high))
    itself = hacking_gap(trained, {"same": trained}, HOW)
    assert (itself.value, itself.low, itself.high) == (0, 0, 0)


def test_images_without_a_score_leave_the_other_judges_be() -> None:
    trained, other = judge(2, 1, 0), judge(0.5, 7, 1)
    trained[0][1, 2, 3] = trained[1][0, 0] = math.nan
    policy, reference = trained
    gains = np.array([[np.nanmean(policy[s, p] - reference[p]) for p in range(10)] for s in range(3)]) / np.nanstd(reference)
    np.testing.assert_allclose(standardised("trained", trained), gains, rtol=1e-12)
    by_hand = gains.mean() - ((other[0] - other[1]) / other[1].std()).mean()
    assert hacking_gap(trained, {"other": other}, HOW).value == pytest.approx(by_hand)


def test_the_gap_says_which_judge_is_wrong() -> None:
    flat = (np.ones((3, 10, 4)), np.ones((10, 4)))
    with pytest.raises(ValueError, match="flat: the reference's images all have the same score"):
        hacking_gap(judge(1, 1, 0), {"other": judge(1, 1, 1), "flat": flat}, HOW)
    with pytest.raises(ValueError, match="another judge"):
        hacking_gap(judge(1, 1, 0), {}, HOW)


def test_the_fit_is_exact_without_noise() -> None:
    kl = np.array([0.0, 0.5, 2.0, 8.0, 30.0])
    d = np.sqrt(kl)
    gain = d * 1.5 - 0.4 * d * np.log(np.where(d > 0, d, 1))
    fit = fit_gains(kl, gain)
    assert (fit.alpha, fit.beta, fit.points) == pytest.approx((1.5, 0.4, 4))
    assert fit.residual == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(fit.gain(kl), gain, atol=1e-12)
    assert fit.peak == pytest.approx(math.exp(1.5 / 0.4 - 1))
    around = fit.gain(np.square([0.99 * fit.peak, fit.peak, 1.01 * fit.peak]))
    assert around[1] > max(around[0], around[2])
    assert around[1] == pytest.approx(0.4 * fit.peak)  # R(d*) = beta d*


def test_the_fit_is_least_squares() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    kl = rng.uniform(0.1, 20, size=12)
    gain = np.sqrt(kl) + rng.normal(size=12) / 5
    fit = fit_gains(kl, gain)
    assert fit.residual == pytest.approx(np.sqrt(np.mean((fit.gain(kl) - gain) ** 2)))
    left = gain - fit.gain(kl)
    d = np.sqrt(kl)
    assert (left @ d, left @ (d * np.log(d))) == pytest.approx((0, 0), abs=1e-9)  # the normal equations
    rising = fit_gains(kl, d + 0.1 * d * np.log(d))
    assert rising.beta == pytest.approx(-0.1) and rising.peak is None


@pytest.mark.parametrize(
    "kl, gain, message",
    [
        ([0, 1, 2], [0, 1, 2], "2 points with KL above 0"),
        ([2, 2, 2], [0, 1, 2], "at 1 divergences"),
        ([-1, 1, 2, 3], [0, 1, 2, 3], "-1 nats is below 0"),
        ([1, 2, 3], [1, 2], "one length"),
        ([1, 2, math.nan], [1, 2, 3], "without gaps"),
    ],
)
def test_wrong_input_to_the_fit_is_named(kl: list, gain: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_gains(kl, gain)
