"""One denoising step as the distribution it is: an isotropic Gaussian. Sampling, log-probability and KL are written once."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2 I) for each row. `std` is 0 where a step is deterministic; such a step has no likelihood."""

    mean: Tensor  # [N,C,h,w]
    std: Tensor  # [N,1,1,1]

    def sample(self, noise: Tensor) -> Tensor:
        """The draw that standard normal noise [N,C,h,w] makes."""
        return self.mean + self.std * noise

    def log_prob(self, y: Tensor) -> Tensor:
        """Elementwise log-density of y [N,C,h,w] in nats, at least in fp32; the caller chooses the reduction."""
        return -0.5 * ((y - self.mean) / self.std).square() - self.std.log() - 0.5 * math.log(2 * math.pi)

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self || other) elementwise [N,C,h,w] in nats. Both must be the same step: equal std."""
        if not torch.equal(self.std, other.std):
            raise ValueError("the closed-form KL needs two steps of one sampler: their standard deviations differ")
        return 0.5 * ((self.mean - other.mean) / self.std).square()
