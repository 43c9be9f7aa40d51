"""The flow SDE on Gaussian data, whose velocity is exact: marginals, equation 9, KL, and the predictions that are one denoiser."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alignbench.models.base import Diffusion, Spec, Who
from alignbench.models.gaussian_world import GaussianWorld
from alignbench.rng import generator
from alignbench.samplers.flow_sde import FlowSDE

MEAN, STD, A = 0.5, 0.7, 0.7
SHAPE = (1, 2, 2)


class ExactFlow(Diffusion):
    """Data N(MEAN, STD^2) in float64 and its exact velocity; `policy` adds `push` to it."""

    prediction = "velocity"
    shape = SHAPE
    push = 0.3

    def __init__(self) -> None:
        super().__init__()
        self.here = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def times(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = t[:, None, None, None]
        return 1 - sigma, sigma

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64

    def embed(self, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), 1, 1)

    def predict(self, x: Tensor, t: Tensor, cond: Tensor, who: Who) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        score = (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return sigma * score - (MEAN + alpha * STD**2 * score) + (self.push if who else 0.0)

    def rescale(self, who: str, scale: float) -> None: ...

    def moved(self, who: str) -> bool:
        return True

    def weights(self, who: Who) -> dict[str, Tensor]:
        return {}

    def decode(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def latents(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def grow(self, who: str, spec: Spec, start: Who = None) -> None:
        raise NotImplementedError

    def trainable(self, who: str) -> dict[str, nn.Parameter]:
        raise NotImplementedError

    def export(self, who: str, folder: Path, spec: Spec) -> None:
        raise NotImplementedError


class VPrediction(GaussianWorld):
    prediction = "v_prediction"

    def predict(self, x: Tensor, t: Tensor, cond: Tensor, who: Who) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        eps = super().predict(x, t, cond, who)
        return alpha * eps - sigma * (x - sigma * eps) / alpha


def sde(steps: int, noise: float = A, deterministic: int = 0) -> FlowSDE:
    return FlowSDE(steps=steps, noise=noise, guidance=1.0, deterministic=deterministic)


def states(rows: int) -> Tensor:
    return torch.randn(rows, *SHAPE, generator=generator(0, "x"), dtype=torch.float64)


def test_three_predictions_of_one_denoiser_agree(world: GaussianWorld) -> None:
    """On matched times x_flow = x / (alpha + sigma) has the same signal-to-noise ratio as x."""
    t = torch.tensor([0, 250, 500, 750, 999])
    x, cond = states(5), world.encode(["a"] * 5)
    v, flow = VPrediction(shape=SHAPE, mean=MEAN, std=STD).double(), ExactFlow()
    alpha, sigma = world.alpha_sigma(t)
    time, x_flow = (sigma / (alpha + sigma)).flatten(), x / (alpha + sigma)
    for read in ("x0", "eps"):
        expected = getattr(world, read)(x, t, cond, None)
        torch.testing.assert_close(getattr(v, read)(x, t, cond, None), expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(getattr(flow, read)(x_flow, time, cond, None), expected, rtol=0, atol=1e-9)


def errors(steps: int, correction: bool) -> tuple[float, float]:
    """The largest errors of mean and variance over the times of a path, exactly: each step is affine in its state."""
    model, sampler = ExactFlow(), sde(steps)
    times, k = model.times(steps), torch.arange(steps)
    cond = model.encode(["a"] * steps)
    x = torch.stack([torch.zeros(SHAPE, dtype=torch.float64), torch.ones(SHAPE, dtype=torch.float64)])
    noisy = [sampler.step(model, value.expand(steps, *SHAPE), k, cond, None) for value in x]
    plain = [sde(steps, noise=0.0).step(model, value.expand(steps, *SHAPE), k, cond, None) for value in x]
    offset, slope = ((noisy if correction else plain)[i].mean.flatten(1)[:, 0] for i in range(2))
    mean, variance, worst = torch.zeros(()).double(), torch.ones(()).double(), [0.0, 0.0]
    for step in range(steps):
        gain = slope[step] - offset[step]
        mean, variance = gain * mean + offset[step], gain**2 * variance + noisy[0].std.flatten()[step] ** 2
        t = times[step + 1]
        if t <= 0.5:  # the first step, where S is cut off, leaves an error that the later steps forget
            gaps = (mean - (1 - t) * MEAN, variance - (1 - t) ** 2 * STD**2 - t**2)
            worst = [max(old, gap.abs().item()) for old, gap in zip(worst, gaps, strict=True)]
    return worst[0], worst[1]


def test_the_marginals_are_the_datas_as_steps_grow() -> None:
    found = [errors(steps, correction=True) for steps in (10, 100, 1000, 10000)]
    for coarse, fine in pairwise(found):
        assert fine[1] < coarse[1] / 2
    assert found[-1][1] < 0.01
    assert max(mean for mean, _ in found) < 1e-12  # linear in t, so no step size makes an error


def test_without_the_drift_correction_the_variance_is_wrong() -> None:
    found = [errors(steps, correction=False)[1] for steps in (10, 100, 1000)]
    assert min(found) > 0.3


def test_the_step_is_euler_maruyama_of_the_reverse_sde() -> None:
    """dx = [v + S^2 / (2t) (x + (1 - t) v)] dt + S dw, with dt < 0, in plain numbers."""
    model, steps = ExactFlow(), 6
    x, cond = states(steps), model.encode(["a"] * steps)
    step = sde(steps).step(model, x, torch.arange(steps), cond, None)
    for k in range(steps):
        t, dt = 1 - k / steps, -1 / steps
        spread = A * (t / (1 - (1 - 1 / steps if k == 0 else t))) ** 0.5
        for ours, value in zip(step.mean[k].flatten().tolist(), x[k].flatten().tolist(), strict=True):
            variance = (1 - t) ** 2 * STD**2 + t**2
            x0 = MEAN + (1 - t) * STD**2 / variance * (value - (1 - t) * MEAN)
            eps = t / variance * (value - (1 - t) * MEAN)
            velocity = eps - x0
            assert ours == pytest.approx(value + (velocity + spread**2 / (2 * t) * (value + (1 - t) * velocity)) * dt, abs=1e-12)
        assert step.std[k].item() == pytest.approx(spread * (-dt) ** 0.5, abs=1e-12)


def test_the_kl_of_two_policies_is_in_closed_form() -> None:
    """Flow-GRPO: |dt| / 2 (S (1 - t) / (2t) + 1 / S)^2 ||v - v_ref||^2."""
    model, steps = ExactFlow(), 5
    x, k, cond = states(steps), torch.arange(steps), model.encode(["a"] * steps)
    found = sde(steps).step(model, x, k, cond, "policy").kl(sde(steps).step(model, x, k, cond, None)).flatten(1).sum(1)
    t = model.times(steps)[:-1]
    spread = A * (t / (1 - torch.where(t == 1, model.times(steps)[1], t))).sqrt()
    expected = 0.5 / steps * (spread * (1 - t) / (2 * t) + 1 / spread).square() * 4 * model.push**2
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_without_noise_it_is_eulers_step() -> None:
    model, steps = ExactFlow(), 4
    x, k, cond = states(steps), torch.arange(steps), model.encode(["a"] * steps)
    step = sde(steps, noise=0.0).step(model, x, k, cond, None)
    torch.testing.assert_close(step.mean, x - model.output(x, model.times(steps)[k], cond, None, None) / steps, rtol=0, atol=1e-14)
    assert not step.std.any()
    assert not sde(steps, noise=0.0).stochastic(model).any()


def test_the_last_steps_can_be_deterministic() -> None:
    model, steps = ExactFlow(), 5
    assert sde(steps).stochastic(model).tolist() == [True] * 5
    mixed = sde(steps, deterministic=2)
    assert mixed.stochastic(model).tolist() == [True] * 3 + [False] * 2
    x, k, cond = states(steps), torch.arange(steps), model.encode(["a"] * steps)
    made = [each.step(model, x, k, cond, None) for each in (sde(steps), mixed, sde(steps, noise=0.0))]
    for index, same in enumerate((0, 0, 0, 2, 2)):
        assert torch.equal(made[1].mean[index], made[same].mean[index])
        assert torch.equal(made[1].std[index], made[same].std[index])


def test_a_window_has_the_only_steps_with_noise() -> None:
    """In it they are the plain sampler's bit for bit, outside it the flow's Euler steps."""
    model, steps = ExactFlow(), 6
    windowed = FlowSDE(steps=steps, noise=A, guidance=1.0, deterministic=2, window=(2, 6))
    assert windowed.stochastic(model).nonzero().flatten().tolist() == [2, 3]
    x, k, cond = states(steps), torch.arange(steps), model.encode(["a"] * steps)
    made = [each.step(model, x, k, cond, None) for each in (sde(steps), windowed, sde(steps, noise=0.0))]
    for index, same in enumerate((2, 2, 0, 0, 2, 2)):
        assert torch.equal(made[1].mean[index], made[same].mean[index])
        assert torch.equal(made[1].std[index], made[same].std[index])
        assert not torch.equal(made[1].mean[index], made[2 - same].mean[index])
    with pytest.raises(ValueError, match=r"^sampler\.window=\[2, 7\]: not within 0\.\.6"):
        FlowSDE(steps=steps, noise=A, guidance=1.0, deterministic=0, window=(2, 7))


def test_the_clean_latent_is_finite_at_pure_noise() -> None:
    model = ExactFlow()
    x, cond = states(2), model.encode(["a", "a"])
    k = torch.zeros(2, dtype=torch.long)
    x0 = sde(5).x0(model, x, k, cond, None)
    torch.testing.assert_close(x0, torch.full_like(x0, MEAN))  # noise says nothing of the data
    assert sde(5).step(model, x, k, cond, None).log_prob(x).isfinite().all()
    assert sde(1).step(model, x, k, cond, None).log_prob(x).isfinite().all()


def test_a_model_that_is_no_flow_is_refused(world: GaussianWorld) -> None:
    with pytest.raises(ValueError, match=r"flow_sde.*epsilon.*Stable Diffusion 3, FLUX"):
        sde(5).stochastic(world)
