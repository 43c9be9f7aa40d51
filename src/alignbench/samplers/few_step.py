"""The samplers of distilled models: a few x0-predictions with noise between, Euler-ancestral (SDXL-Turbo) or re-noise (LCM, DMD2)."""

from typing import Literal

import torch
from torch import Tensor

from alignbench.gaussian import Gaussian
from alignbench.models.base import Diffusion, Who
from alignbench.ranges import NonNegative, Times


class FewStep:
    """States are x_t = alpha x_0 + sigma eps whatever the kernel. The last step is deterministic: its x0-prediction is the image."""

    def __init__(self, *, times: Times, kernel: Literal["renoise", "euler_ancestral"], guidance: NonNegative):
        """times: the model's distilled time steps, from noise to image; guidance: diffusers' scale (1: none, as these models are used)."""
        if sorted(times, reverse=True) != times or len(set(times)) < len(times):
            raise ValueError(f"sampler.times={times}: from noise to image, so each must be smaller than the one before")
        self.times, self.kernel, self.guidance = times, kernel, guidance
        self.steps, self.evaluations = len(times), 1 if guidance == 1 else 2

    def time(self, model: Diffusion, k: Tensor) -> Tensor:
        return torch.tensor(self.times, device=k.device)[k]

    def x0(self, model: Diffusion, x: Tensor, k: Tensor, cond: Tensor, who: Who) -> Tensor:
        return model.x0(x, self.time(model, k), cond, who, self.guidance)

    def stochastic(self, model: Diffusion) -> Tensor:
        return torch.arange(self.steps) < self.steps - 1

    def step(self, model: Diffusion, x: Tensor, k: Tensor, cond: Tensor, who: Who) -> Gaussian:
        x0 = self.x0(model, x, k, cond, who)
        alpha, sigma = model.alpha_sigma(self.time(model, k))
        there = model.get_buffer("alpha_bar").to(x.device)[self.time(model, (k + 1).clamp(max=self.steps - 1))]
        there = torch.where(k + 1 < self.steps, there, 1.0)[:, None, None, None]  # the last step lands on the clean latent
        alpha_to, sigma_to = there.sqrt(), (1 - there).sqrt()
        if self.kernel == "renoise":
            return Gaussian(alpha_to * x0, sigma_to)
        noise, noise_to = sigma / alpha, sigma_to / alpha_to  # of x / alpha = x_0 + noise * eps, Karras' coordinates
        up = noise_to * (1 - (noise_to / noise).square()).sqrt()
        down = (noise_to.square() - up.square()).clamp(min=0).sqrt()
        mean = x / alpha + (x / alpha - x0) / noise * (down - noise)  # Karras et al., 2206.00364, algorithm 1's Euler step, to `down`
        return Gaussian(alpha_to * mean, alpha_to * up)
