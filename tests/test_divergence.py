"""Two divergences against closed forms on the Gaussian world: the reference's denoising error, and the path KL."""

import pytest
import torch
from linear_gaussian import law
from torch import Tensor

from alignbench.evaluation.divergence import reference_error
from alignbench.models.gaussian_world import GaussianWorld
from alignbench.policy import Policy
from alignbench.rng import generator
from alignbench.samplers.ddim import DDIM

TIMES = [0.2, 0.5, 0.8]


def error_of(world: GaussianWorld, latents: Tensor, times: list[float] = TIMES, chunk: int = 512) -> Tensor:
    ids = [(prompt, 0) for prompt in range(len(latents))]
    return reference_error(world, latents, ["a cat"] * len(latents), ids, times=times, noise=0, chunk=chunk)


def samples(count: int, mean: float, std: float) -> Tensor:
    return mean + std * torch.randn(count, 1, 2, 2, generator=generator(0, "samples"), dtype=torch.float64)


def expected(world: GaussianWorld, mean: float, std: float) -> float:
    """eps_ref - eps = alpha / sigma (x0 - x0_hat), x0 - x0_hat = (1 - g alpha) (x0 - mu) - g sigma eps, g the denoiser's slope."""
    total = 0.0
    for share in TIMES:
        alpha2 = world.alpha_bar[round(share * 999)].item()
        sigma2 = 1 - alpha2
        g = alpha2**0.5 * world.std**2 / (alpha2 * world.std**2 + sigma2)
        total += alpha2 / sigma2 * ((1 - g * alpha2**0.5) ** 2 * ((mean - world.mean) ** 2 + std**2) + g**2 * sigma2)
    return total / len(TIMES)


@pytest.mark.parametrize("mean, std", [(0.5, 0.7), (1.5, 0.7), (0.5, 0.2), (-1.0, 1.4)])
def test_the_error_of_gaussian_samples_is_the_closed_form(world: GaussianWorld, mean: float, std: float) -> None:
    found = error_of(world, samples(4000, mean, std))
    assert abs(found.mean().item() - expected(world, mean, std)) < 4 * found.std().item() / 4000**0.5
    assert found.std().item() / 4000**0.5 < 0.05 * expected(world, mean, std)


def test_it_grows_with_the_shift_and_is_paired(world: GaussianWorld) -> None:
    """One noise for all: the paired difference of a shift is (its closed form) far surer than either mean."""
    start = error_of(world, samples(500, 0.5, 0.7))
    assert torch.equal(start, error_of(world, samples(500, 0.5, 0.7), chunk=7))  # neither batches nor repetition count
    last = torch.zeros(500, dtype=torch.float64)
    for shift in (0.25, 0.5, 1.0):
        paired = error_of(world, samples(500, 0.5 + shift, 0.7)) - start
        assert paired.mean() > last.mean() + 3 * (paired - last).std() / 500**0.5
        assert (
            abs(paired.mean().item() - (expected(world, 0.5 + shift, 0.7) - expected(world, 0.5, 0.7))) < 4 * paired.std().item() / 500**0.5
        )
        last = paired


def test_a_collapse_onto_the_mode_is_below_the_reference(world: GaussianWorld) -> None:
    assert (error_of(world, samples(500, 0.5, 0.05)) - error_of(world, samples(500, 0.5, 0.7))).mean() < 0


def test_the_reference_has_no_difference_to_itself_and_nothing_is_counted(world: GaussianWorld, policy: Policy) -> None:
    """A policy that was not trained yet makes the reference's samples from the same noise."""
    ids = [(prompt, k) for prompt in range(3) for k in range(2)]
    found = []
    for each in (policy, policy.reference):
        with world.meters.paused():
            rollout = each.rollout(["a cat"] * 6, "image", [generator(0, "evaluation", *key) for key in ids])
            found.append(reference_error(world, rollout.x[:, -1], ["a cat"] * 6, ids, times=TIMES, noise=0, chunk=4))
    assert torch.equal(*found) and found[0].unique().numel() == 6
    assert world.meters.network_evaluations.total() == 0
    ids[0] = (7, 0)
    other = reference_error(world, rollout.x[:, -1], ["a cat"] * 6, ids, times=TIMES, noise=0, chunk=4)
    assert (other != found[1]).tolist() == [True] + [False] * 5  # an image's noise is its prompt's and its number's


def test_the_policys_own_weights_do_not_count(world: GaussianWorld, policy: Policy) -> None:
    before = error_of(world, samples(20, 0.0, 1.0))
    policy.trainable()["shift"].data += 1.0
    assert torch.equal(before, error_of(world, samples(20, 0.0, 1.0)))


# --- path KL


def moved(policy: Policy, gain: float, shift: float) -> Policy:
    weights = policy.trainable()
    weights["gain"].data += gain
    weights["shift"].data += shift
    return policy


def test_the_path_kl_is_the_mean_log_ratio_along_rollouts(policy: Policy) -> None:
    """E_policy[sum log p / p_ref]: the closed-form step KLs against the log-ratios of the very steps that were sampled."""
    policy = moved(policy, -0.2, 0.15)
    rollout = policy.rollout(["a cat"] * 4000, "image", [generator(0, "rollout", 0, row) for row in range(4000)])
    ratio = (rollout.log_prob - policy.reference.log_prob(rollout, "image")).sum(1)
    kl = policy.path_kl(rollout)
    rest = (ratio - kl) / 4000**0.5  # a martingale: mean 0
    assert kl.mean() > 20 * rest.std()
    assert abs((ratio - kl).mean().item()) < 4 * rest.std().item()
    theta = torch.tensor([-0.2, 0.15], dtype=torch.float64)
    assert kl.mean().item() == pytest.approx(4 * law(policy.model, 4, theta).kl.item(), abs=4 * kl.std().item() / 4000**0.5)


def test_the_path_kl_of_one_step_is_the_kl_of_two_gaussians(world: GaussianWorld) -> None:
    policy = moved(Policy(world, DDIM(steps=1, eta=1.0, guidance=1.0, deterministic=0), "policy", chunk=64), 0.1, 0.3)
    rollout = policy.rollout(["a cat"] * 50, "image", [generator(0, "rollout", 0, row) for row in range(50)])
    x, k = rollout.x[:, 0], torch.zeros(50, dtype=torch.long)
    steps = [policy.sampler.step(world, x, k, rollout.cond, who) for who in ("policy", None)]
    laws = [torch.distributions.Normal(each.mean, each.std.expand_as(each.mean)) for each in steps]
    exact = torch.distributions.kl_divergence(*laws).flatten(1).sum(1)
    assert exact.min() > 1e-3
    torch.testing.assert_close(policy.path_kl(rollout), exact)
