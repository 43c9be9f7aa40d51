"""One network call from noise to image, as SiD-LSG's and DI*'s generators (mingyuanzhou/SiD-LSG): x0-prediction at one fixed time."""

import torch
from torch import Tensor

from alignbench.gaussian import Gaussian
from alignbench.models.base import Diffusion, Who
from alignbench.ranges import Index, NonNegative


class OneStep:
    """x_0 = x0-prediction of sigma_t z at t = `time`. Deterministic given z, so no step has a likelihood."""

    def __init__(self, *, time: Index, guidance: NonNegative):
        self.steps, self.t, self.guidance = 1, time, guidance
        self.evaluations = 1 if guidance == 1 else 2

    def time(self, model: Diffusion, k: Tensor) -> Tensor:
        return torch.full_like(k, self.t)

    def x0(self, model: Diffusion, x: Tensor, k: Tensor, cond: Tensor, who: Who) -> Tensor:
        t = self.time(model, k)
        return model.x0(model.alpha_sigma(t)[1] * x, t, cond, who, self.guidance)

    def stochastic(self, model: Diffusion) -> Tensor:
        return torch.tensor([False])

    def step(self, model: Diffusion, x: Tensor, k: Tensor, cond: Tensor, who: Who) -> Gaussian:
        x0 = self.x0(model, x, k, cond, who)
        return Gaussian(x0, x0.new_zeros(len(x0), 1, 1, 1))
