"""DDIM against DDPM's posterior and against diffusers' own scheduler."""

import pytest
import torch
from diffusers import DDIMScheduler

from alignbench.models.gaussian_world import GaussianWorld
from alignbench.rng import generator
from alignbench.samplers.ddim import DDIM


def test_eta_one_is_the_ddpm_posterior(world: GaussianWorld) -> None:
    """Ho et al. 2020, equations 6 and 7, generalised to a coarser grid: beta = 1 - alpha_bar_t / alpha_bar_s."""
    sampler, steps = DDIM(steps=7, eta=1.0, guidance=1.0, deterministic=0), 7
    times = world.times(steps)
    for index in range(steps):
        x = torch.randn(3, *world.shape, generator=generator(index, "x"), dtype=torch.float64)
        k, t = torch.full((3,), index), times[index].expand(3)
        step = sampler.step(world, x, k, world.encode(["a"] * 3), None)
        here, there = world.alpha_bar[times[index]], world.alpha_bar[times[index + 1]]
        beta = 1 - here / there
        x0 = world.x0(x, t, world.encode(["a"] * 3), None)
        mean = there.sqrt() * beta / (1 - here) * x0 + (here / there).sqrt() * (1 - there) / (1 - here) * x
        torch.testing.assert_close(step.mean, mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(step.std.square().flatten(), (beta * (1 - there) / (1 - here)).expand(3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_steps_equal_diffusers(eta: float, world: GaussianWorld) -> None:
    steps = 10
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    scheduler.set_timesteps(steps)
    grid = torch.cat([scheduler.timesteps, torch.tensor([-1])])  # lands on the final alpha
    world.times = lambda _: grid  # type: ignore[method-assign]
    x = torch.randn(2, *world.shape, generator=generator(0, "x"), dtype=torch.float64)
    for index, t in enumerate(scheduler.timesteps):
        step = DDIM(steps=steps, eta=eta, guidance=1.0, deterministic=0).step(
            world, x, torch.full((2,), index), world.encode(["a", "b"]), None
        )
        noise = torch.randn(x.shape, generator=generator(index, "noise"), dtype=torch.float64)
        eps = world.eps(x, t.expand(2), world.encode(["a", "b"]), None)
        theirs = scheduler.step(eps, t, x, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(step.mean + step.std * noise, theirs, rtol=0, atol=1e-5)  # diffusers keeps its alphas in fp32
        x = theirs


def test_only_steps_with_noise_have_a_likelihood(world: GaussianWorld) -> None:
    assert DDIM(steps=5, eta=1.0, guidance=1.0, deterministic=0).stochastic(world).all()
    assert not DDIM(steps=5, eta=0.0, guidance=1.0, deterministic=0).stochastic(world).any()


def test_guidance_extrapolates_between_the_two_branches() -> None:
    class Two(GaussianWorld):
        """A denoiser that answers its prompt's embedding."""

        def embed(self, prompts: list[str]) -> torch.Tensor:  # type: ignore[override]
            return torch.tensor([[[float(len(prompt))]] for prompt in prompts])

        def predict(self, x, t, cond, who):  # type: ignore[no-untyped-def]
            return cond[..., None].expand_as(x)

    model = Two(shape=(1, 2, 2), mean=0.0, std=1.0)
    x, t = torch.zeros(2, 1, 2, 2), torch.tensor([10, 500])
    cond = model.encode(["abc", "abcde"])
    assert model.eps(x, t, cond, None, guidance=3.0).flatten(1)[:, 0].tolist() == [9.0, 15.0]  # 0 + 3 * (length - 0)
    assert model.eps(x, t, cond, None, guidance=None).flatten(1)[:, 0].tolist() == [3.0, 5.0]
    assert model.meters.network_evaluations["reference"] == 2 * 2 + 2  # guided counts 2


def test_the_last_steps_can_be_deterministic(world: GaussianWorld) -> None:
    """They are DDIM's eta = 0 steps: no likelihood, not trained; the others are unchanged."""
    noisy, mixed, still = (
        DDIM(steps=5, eta=1.0, guidance=1.0, deterministic=0),
        DDIM(steps=5, eta=1.0, guidance=1.0, deterministic=2),
        DDIM(steps=5, eta=0.0, guidance=1.0, deterministic=0),
    )
    assert mixed.stochastic(world).tolist() == [True, True, True, False, False]
    x = torch.randn(5, 1, 2, 2, generator=generator(0, "x"), dtype=torch.float64)
    steps = [each.step(world, x, torch.arange(5), world.encode([""] * 5), None) for each in (noisy, mixed, still)]
    for k, same in enumerate((0, 0, 0, 2, 2)):
        assert torch.equal(steps[1].mean[k], steps[same].mean[k])
        assert torch.equal(steps[1].std[k], steps[same].std[k])


@pytest.mark.parametrize("deterministic", [0, 2])
def test_a_window_has_the_only_steps_with_noise(deterministic: int, world: GaussianWorld) -> None:
    """In it they are the plain sampler's bit for bit, outside it the eta = 0 steps."""
    noisy, windowed, still = (
        DDIM(steps=6, eta=1.0, guidance=1.0, deterministic=deterministic, window=None),
        DDIM(steps=6, eta=1.0, guidance=1.0, deterministic=deterministic, window=(1, 5)),
        DDIM(steps=6, eta=0.0, guidance=1.0, deterministic=0),
    )
    inside = [k for k in (1, 2, 3, 4) if k < 6 - deterministic]
    assert windowed.stochastic(world).nonzero().flatten().tolist() == inside
    x = torch.randn(6, 1, 2, 2, generator=generator(0, "x"), dtype=torch.float64)
    steps = [each.step(world, x, torch.arange(6), world.encode([""] * 6), None) for each in (noisy, windowed, still)]
    for k in range(6):
        same, other = (0, 2) if k in inside else (2, 0)
        assert torch.equal(steps[1].mean[k], steps[same].mean[k])
        assert torch.equal(steps[1].std[k], steps[same].std[k])
        assert torch.equal(steps[1].std[k], steps[other].std[k]) is (k >= 6 - deterministic)


@pytest.mark.parametrize("window", [(0, 7), (4, 2), (8, 9)])
def test_a_window_outside_the_steps_is_named(window: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"^sampler\.window=\[\d, \d\]: not within 0\.\.6; write \[first, last\)"):
        DDIM(steps=6, eta=1.0, guidance=1.0, deterministic=0, window=window)
