"""Flow-GRPO's SDE (2505.05470, equation 9): the flow's own marginals from noisy steps, so that every step has a likelihood."""

import torch
from torch import Tensor

from alignbench.gaussian import Gaussian
from alignbench.models.base import Diffusion, Who
from alignbench.ranges import Count, Index, NonNegative, Window
from alignbench.samplers.base import noisy


class FlowSDE:
    """`steps` steps on the model's own time grid, the last to t = 0; without noise it is the flow ODE's Euler step."""

    def __init__(self, *, steps: Count, noise: NonNegative, guidance: NonNegative, deterministic: Index, window: Window | None = None):
        """noise: the paper's a, S = a sqrt(t / (1 - t)); 0: no step has a likelihood. deterministic: how many of the last steps are taken
        without noise; they are not trained. window: [first, last), the only steps with noise; null: all.
        """
        self.steps, self.noise, self.guidance, self.deterministic = steps, noise, guidance, deterministic
        self.window = None if window is None else list(window)
        self.evaluations = 1 if guidance == 1 else 2
        noisy(torch.arange(steps), steps, deterministic, window)  # a wrong window is said now

    def _schedule(self, model: Diffusion, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Time t, the step dt < 0, and S, for steps k [N]: each [N]."""
        if model.prediction != "velocity":
            raise ValueError(
                f"sampler=flow_sde steps along a velocity, and this model predicts {model.prediction}: "
                "it goes with flow-matching models (Stable Diffusion 3, FLUX); for Stable Diffusion 1 and 2 take sampler=ddim"
            )
        times = model.time_grid(self.steps).to(k.device)
        t, dt = times[k], times[k + 1] - times[k]
        below = torch.where(t == 1, times[1], t)  # S is infinite at t = 1; there the released code takes the next time in 1 - t alone
        noise = self.noise * noisy(k, self.steps, self.deterministic, self.window).to(t.dtype)
        return t, dt, noise * (t / (1 - below)).sqrt()

    def time(self, model: Diffusion, k: Tensor) -> Tensor:
        return self._schedule(model, k)[0]

    def x0(self, model: Diffusion, x: Tensor, k: Tensor, cond: Tensor, who: Who) -> Tensor:
        return model.x0(x, self.time(model, k), cond, who, self.guidance)

    def stochastic(self, model: Diffusion) -> Tensor:
        return self._schedule(model, torch.arange(self.steps))[2] > 0

    def step(self, model: Diffusion, x: Tensor, k: Tensor, cond: Tensor, who: Who) -> Gaussian:
        schedule = self._schedule(model, k)
        velocity = model.output(x, schedule[0], cond, who, self.guidance)
        t, dt, spread = (value[:, None, None, None] for value in schedule)
        drift = spread.square() / (2 * t)
        return Gaussian(x * (1 + drift * dt) + velocity * (1 + drift * (1 - t)) * dt, spread * (-dt).sqrt())  # equation 9
