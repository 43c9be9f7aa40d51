"""DDIM with any eta (Song et al., 2010.02502, equations 12 and 16); eta = 1 is DDPM's posterior, the sampler of DDPO, DPOK and D3PO."""

import torch
from torch import Tensor

from alignbench.gaussian import Gaussian
from alignbench.models.base import Diffusion, Who
from alignbench.ranges import Count, Fraction, Index, NonNegative, Window
from alignbench.samplers.base import noisy


class DDIM:
    """`steps` steps on the model's own time grid; guidance is the same in rollout, update and evaluation."""

    def __init__(self, *, steps: Count, eta: Fraction, guidance: NonNegative, deterministic: Index, window: Window | None = None):
        """deterministic: how many of the last steps are taken with eta 0. They have no likelihood and are not trained: where a coarse grid
        jumps to a small t, the step's std is so small that its log-ratio drowns those of all other steps. window: [first, last), the only
        steps with noise, all others being taken with eta 0, too; null: all.
        """
        self.steps, self.eta, self.guidance, self.deterministic = steps, eta, guidance, deterministic
        self.window = None if window is None else list(window)
        self.evaluations = 1 if guidance == 1 else 2
        noisy(torch.arange(steps), steps, deterministic, window)  # a wrong window is said now

    def _schedule(self, model: Diffusion, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Time, alpha-bar here, alpha-bar of the next state, and the step's std, for steps k [N]."""
        times = model.time_grid(self.steps).to(k.device)
        alpha_bar = model.get_buffer("alpha_bar").to(k.device)
        here, there = alpha_bar[times[k]], alpha_bar[times[k + 1]]
        eta = self.eta * noisy(k, self.steps, self.deterministic, self.window)
        std = eta * ((1 - there) / (1 - here)).sqrt() * (1 - here / there).clamp(min=0).sqrt()  # equation 16
        here, there, std = (value[:, None, None, None] for value in (here, there, std))
        return times[k], here, there, std

    def time(self, model: Diffusion, k: Tensor) -> Tensor:
        return model.time_grid(self.steps).to(k.device)[k]

    def x0(self, model: Diffusion, x: Tensor, k: Tensor, cond: Tensor, who: Who) -> Tensor:
        return model.x0(x, self.time(model, k), cond, who, self.guidance)

    def stochastic(self, model: Diffusion) -> Tensor:
        return self._schedule(model, torch.arange(self.steps))[3].flatten() > 0

    def step(self, model: Diffusion, x: Tensor, k: Tensor, cond: Tensor, who: Who) -> Gaussian:
        t, here, there, std = self._schedule(model, k)
        eps = model.eps(x, t, cond, who, self.guidance)
        x0 = (x - (1 - here).sqrt() * eps) / here.sqrt()
        return Gaussian(there.sqrt() * x0 + (1 - there - std**2).clamp(min=0).sqrt() * eps, std)  # equation 12
