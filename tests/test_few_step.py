"""The few-step and one-step samplers against diffusers' own schedulers and against their papers' equations."""

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, LCMScheduler
from torch import Tensor

from alignbench.models.gaussian_world import GaussianWorld
from alignbench.rng import generator
from alignbench.samplers.few_step import FewStep
from alignbench.samplers.one_step import OneStep

TIMES = [999, 749, 499, 249]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # the Gaussian world's


def states(world: GaussianWorld, seed: int) -> Tensor:
    return torch.randn(3, *world.shape, generator=generator(seed, "x"), dtype=torch.float64)


def at(index: int) -> Tensor:
    return torch.full((3,), index)


def sigmas(world: GaussianWorld, times: list[int]) -> Tensor:
    """Karras' noise levels of x / alpha, and the clean end."""
    alpha_bar = world.alpha_bar[times]
    return torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize("index", range(4))
def test_euler_ancestral_equals_diffusers(world: GaussianWorld, index: int) -> None:
    """The scheduler's states are ours divided by alpha; two draws from it tell its mean from its std."""
    sampler, cond = FewStep(times=TIMES, kernel="euler_ancestral", guidance=1.0), world.encode(["a"] * 3)
    x, alpha = states(world, index), world.alpha_bar[TIMES].sqrt()
    alpha_to = torch.cat([alpha, torch.ones(1, dtype=torch.float64)])[index + 1]
    step = sampler.step(world, x, at(index), cond, None)
    drawn = []
    for seed in (1, 2):
        scheduler = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
        scheduler.set_timesteps(4)
        assert scheduler.timesteps.tolist() == TIMES
        torch.testing.assert_close(scheduler.sigmas.double(), sigmas(world, TIMES), rtol=1e-4, atol=0)
        eps = world.eps(x, torch.tensor([TIMES[index]]).expand(3), cond, None)
        after = scheduler.step(eps, scheduler.timesteps[index], x / alpha[index], generator=generator(seed, "noise")).prev_sample
        noise = torch.randn(x.shape, generator=generator(seed, "noise"), dtype=torch.float64)
        drawn.append((after.double() * alpha_to, noise))
    (one, its_noise), (other, other_noise) = drawn
    std = (one - other) / (its_noise - other_noise)
    torch.testing.assert_close(step.std.expand_as(std), std, rtol=1e-3, atol=1e-4)  # diffusers keeps its sigmas in fp32
    torch.testing.assert_close(step.mean + step.std * its_noise, one, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(step.mean, one - std * its_noise, rtol=1e-3, atol=1e-3)


def test_up_and_down_make_the_next_noise_level(world: GaussianWorld) -> None:
    """s_up^2 + s_down^2 = s_to^2, s_down read from the mean: it lies that far from the x0-prediction along eps."""
    sampler, cond, levels = FewStep(times=TIMES, kernel="euler_ancestral", guidance=1.0), world.encode(["a"] * 3), sigmas(world, TIMES)
    for index in range(4):
        x, t = states(world, index), torch.tensor([TIMES[index]]).expand(3)
        step, eps = sampler.step(world, x, at(index), cond, None), world.eps(x, t, cond, None)
        alpha_to = 1 / (1 + levels[index + 1] ** 2).sqrt()
        down = ((step.mean / alpha_to - world.x0(x, t, cond, None)) / eps).mean()
        up = step.std[0].item() / alpha_to
        assert (up**2 + down**2).item() == pytest.approx((levels[index + 1] ** 2).item(), rel=1e-9, abs=1e-18)
        assert up.item() == pytest.approx((levels[index + 1] * (1 - (levels[index + 1] / levels[index]) ** 2).sqrt()).item(), rel=1e-9)


@pytest.mark.parametrize("index", range(3))
def test_renoise_is_lcms_and_dmd2s_step(world: GaussianWorld, index: int) -> None:
    """x = a' x_0 + s' eps: the scheduler that DMD2 is sampled with, run for real, and its add_noise."""
    sampler, cond = FewStep(times=TIMES, kernel="renoise", guidance=1.0), world.encode(["a"] * 3)
    x, t = states(world, index), torch.tensor([TIMES[index]]).expand(3)
    step = sampler.step(world, x, at(index), cond, None)
    scheduler = LCMScheduler(**BETAS, prediction_type="epsilon", clip_sample=False)
    scheduler.set_timesteps(timesteps=TIMES)
    noise = torch.randn(x.shape, generator=generator(3, "noise"), dtype=torch.float64)
    x0 = world.x0(x, t, cond, None)
    dmd2 = scheduler.add_noise(x0, noise, torch.tensor([TIMES[index + 1]]).expand(3))
    torch.testing.assert_close(step.mean + step.std * noise, dmd2, rtol=1e-5, atol=1e-5)
    lcm = scheduler.step(world.eps(x, t, cond, None), TIMES[index], x, generator=generator(3, "noise")).prev_sample
    torch.testing.assert_close(step.mean + step.std * noise, lcm, rtol=1e-4, atol=1e-4)
    alpha, sigma = world.alpha_sigma(torch.tensor([TIMES[index + 1]]))
    torch.testing.assert_close(step.mean, alpha * x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(step.std, sigma.expand(3, 1, 1, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["renoise", "euler_ancestral"])
def test_the_last_step_is_the_x0_prediction_and_has_no_likelihood(kernel: str, world: GaussianWorld) -> None:
    sampler, cond = FewStep(times=TIMES, kernel=kernel, guidance=1.0), world.encode(["a"] * 3)  # type: ignore[arg-type]
    assert sampler.stochastic(world).tolist() == [True, True, True, False]
    x = states(world, 0)
    last = sampler.step(world, x, at(3), cond, None)
    assert not last.std.any()
    torch.testing.assert_close(last.mean, world.x0(x, torch.tensor([TIMES[3]]).expand(3), cond, None), rtol=0, atol=1e-12)
    assert all(sampler.step(world, x, at(index), cond, None).std.min() > 0 for index in range(3))


def test_a_forward_pass_may_mix_the_steps(world: GaussianWorld) -> None:
    sampler, cond, x = FewStep(times=TIMES, kernel="euler_ancestral", guidance=1.0), world.encode(["a"] * 4), states(world, 0)[:1]
    mixed = sampler.step(world, x.expand(4, -1, -1, -1), torch.arange(4), cond, None)
    for index in range(4):
        alone = sampler.step(world, x, torch.tensor([index]), cond[:1], None)
        torch.testing.assert_close(mixed.mean[index], alone.mean[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(mixed.std[index], alone.std[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("times", [[249, 499], [999, 999, 1], [5, 3, 4]])
def test_times_that_do_not_fall_are_refused(times: list[int]) -> None:
    with pytest.raises(ValueError, match=r"sampler\.times="):
        FewStep(times=times, kernel="renoise", guidance=1.0)


def test_one_step_is_the_x0_prediction_of_sigma_z(world: GaussianWorld) -> None:
    """For the Gaussian world written out: mean + a s^2 / (a^2 s^2 + sigma^2) (sigma z - a mean)."""
    sampler, z = OneStep(time=600, guidance=1.0), states(world, 0)
    step = sampler.step(world, z, at(0), world.encode(["a"] * 3), None)
    alpha_bar = world.alpha_bar[600]
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    variance = alpha_bar * world.std**2 + 1 - alpha_bar
    expected = world.mean + alpha * world.std**2 / variance * (sigma * z - alpha * world.mean)
    torch.testing.assert_close(step.mean, expected, rtol=0, atol=1e-12)
    assert not step.std.any() and not sampler.stochastic(world).any()
    torch.testing.assert_close(sampler.x0(world, z, at(0), world.encode(["a"] * 3), None), step.mean, rtol=0, atol=0)
