"""How steps are taken: each sampler turns a model's denoiser into one Gaussian a step."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from alignbench.gaussian import Gaussian
from alignbench.models.base import Diffusion, Who


class Sampler(Protocol):
    steps: int
    guidance: float
    evaluations: int  # network evaluations a step of one image: 2 with guidance

    def time(self, model: Diffusion, k: Tensor) -> Tensor:
        """The network's time at steps k [N]: [N], as the model's alpha_sigma takes them."""

    def x0(self, model: Diffusion, x: Tensor, k: Tensor, cond: Tensor, who: Who) -> Tensor:
        """The clean latent that step k [N] predicts from states x: [N,C,h,w], with gradient."""

    def stochastic(self, model: Diffusion) -> Tensor:
        """Which steps have a likelihood: [steps] bool."""

    def step(self, model: Diffusion, x: Tensor, k: Tensor, cond: Tensor, who: Who) -> Gaussian:
        """Step k [N] (rows may be at different steps) from states x [N,C,h,w]."""


def noisy(k: Tensor, steps: int, deterministic: int, window: Sequence[int] | None) -> Tensor:
    """Which of steps k [N] get noise: none of the last `deterministic`, and with a window [first, last) only those in it, as in MixGRPO
    (2507.21802) and Flow-GRPO-Fast: [N] bool. Raises ValueError for a window that is no part of the steps.
    """
    first, last = window or (0, steps)
    if not first <= last <= steps:
        raise ValueError(f"sampler.window=[{first}, {last}]: not within 0..{steps}; write [first, last), with last at most sampler.steps")
    return (k >= first) & (k < min(last, steps - deterministic))
