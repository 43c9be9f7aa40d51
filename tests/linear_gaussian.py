"""The law of a sampler on the Gaussian world, by recursion, and the optimum that follows: what a right policy gradient must reach."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignbench.models.gaussian_world import GaussianWorld
from alignbench.rewards.base import Reward


class Quadratic(Reward):
    """r = -|x - target|^2 / (2 width), summed over the pixels."""

    name = "quadratic"
    differentiable = True
    spatial = False
    range = (-float("inf"), 0.0)
    unit = ""
    licence = ""
    backbones = datasets = ()

    def __init__(self, target: float, width: float) -> None:
        super().__init__()
        self.target, self.width = target, width

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return -(images[:, 0] - self.target).square().flatten(1).sum(1) / (2 * self.width)


class Linear(Reward):
    """r = slope * (sum of the pixels)."""

    name = "linear"
    differentiable = True
    spatial = False
    range = (-float("inf"), float("inf"))
    unit = ""
    licence = ""
    backbones = datasets = ()

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.slope * images[:, 0].flatten(1).sum(1)


@dataclass
class Law:
    mean: Tensor  # of each element of x_0
    variance: Tensor  # of each element of x_0
    kl: Tensor  # sum over the steps of E[KL(step || reference's step)], per element, at states that are held fixed


def law(world: GaussianWorld, steps: int, theta: Tensor, charged: bool = False) -> Law:
    """x_0 under DDIM(eta=1) with denoiser x0' = (1 + gain) x0_exact + shift, theta = (gain, shift): each step is x -> A x + B + std z.

    Differentiable. The KL is too, but only through the steps' means: the states at which it is taken are detached, as in a method that adds
    the step KL at sampled states to its loss and charges none of it to the earlier steps. charged: they are not, as where the KL is part of
    the reward and earlier steps pay for the states that they lead to.
    """
    times = world.times(steps)
    mean, variance, kl = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for k in range(steps):
        here, there = world.alpha_bar[times[k]], world.alpha_bar[times[k + 1]]
        std2 = (1 - there) / (1 - here) * (1 - here / there)
        a, b = _affine(world, here, there, std2, theta)
        a_ref, b_ref = _affine(world, here, there, std2, torch.zeros(2, dtype=torch.float64))
        m, v = (mean, variance) if charged else (mean.detach(), variance.detach())
        kl = kl + (((a - a_ref) * m + b - b_ref).square() + (a - a_ref).square() * v) / (2 * std2)
        mean, variance = a * mean + b, a**2 * variance + std2
    return Law(mean, variance, kl)


def _affine(world: GaussianWorld, here: Tensor, there: Tensor, std2: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    gain, shift = theta
    alpha, sigma = here.sqrt(), (1 - here).sqrt()
    slope = alpha * world.std**2 / (here * world.std**2 + 1 - here)  # of the exact x0-prediction
    x0_slope, x0_offset = (1 + gain) * slope, (1 + gain) * world.mean * (1 - alpha * slope) + shift
    direction = (1 - there - std2).sqrt()
    return there.sqrt() * x0_slope + direction * (1 - alpha * x0_slope) / sigma, (there.sqrt() - direction * alpha / sigma) * x0_offset


def expected(found: Law, reward: Quadratic, pixels: int) -> Tensor:
    """E[r] under a law."""
    return -pixels * ((found.mean - reward.target).square() + found.variance) / (2 * reward.width)


def tilted(mean: float, variance: float, reward: Quadratic, beta: float) -> tuple[float, float]:
    """Mean and variance of each element under N(mean, variance) exp(reward / beta)."""
    precision = 1 / variance + 1 / (beta * reward.width)
    return (mean / variance + reward.target / (beta * reward.width)) / precision, 1 / precision


def fixed_point(world: GaussianWorld, steps: int, reward: Quadratic, pixels: int, kl: float, charged: bool = False) -> Tensor:
    """theta where the mean of the estimator (policy gradient of E[r], minus kl times the gradient of the step KLs) vanishes: Newton.

    charged: the KL is part of the reward, as in `law`.
    """

    def field(theta: Tensor) -> Tensor:
        theta = theta.detach().requires_grad_(True)
        found = law(world, steps, theta, charged)
        (gradient,) = torch.autograd.grad(expected(found, reward, pixels) - kl * pixels * found.kl, theta)
        return gradient

    theta, small = torch.zeros(2, dtype=torch.float64), 1e-5
    for _ in range(30):
        columns = [(field(theta + small * unit) - field(theta - small * unit)) / (2 * small) for unit in torch.eye(2, dtype=torch.float64)]
        theta = theta - torch.linalg.solve(torch.stack(columns, 1), field(theta))
    assert field(theta).norm() < 1e-6
    return theta
