"""A step as a distribution: against torch.distributions, and the KL against Monte Carlo."""

import pytest
import torch

from alignbench.gaussian import Gaussian
from alignbench.rng import generator, normal


def a_step(dtype: torch.dtype = torch.float64) -> Gaussian:
    g = generator(0, "test")
    return Gaussian(
        torch.randn(5, 2, 3, 3, generator=g, dtype=torch.float64).to(dtype),
        torch.rand(5, 1, 1, 1, generator=g, dtype=torch.float64).to(dtype) + 0.1,
    )


def test_log_prob_is_that_of_torch_distributions() -> None:
    step = a_step()
    y = step.mean + 0.3 * torch.randn(step.mean.shape, generator=generator(1, "test"), dtype=torch.float64)
    expected = torch.distributions.Normal(step.mean, step.std.expand_as(step.mean)).log_prob(y)
    torch.testing.assert_close(step.log_prob(y), expected, rtol=0, atol=1e-12)


def test_kl_is_that_of_torch_distributions_and_of_monte_carlo() -> None:
    p = a_step()
    q = Gaussian(p.mean + 0.2, p.std)
    std = p.std.expand_as(p.mean)
    exact = torch.distributions.kl_divergence(torch.distributions.Normal(p.mean, std), torch.distributions.Normal(q.mean, std))
    torch.testing.assert_close(p.kl(q), exact, rtol=0, atol=1e-12)
    draws = (
        p.mean
        + p.std * torch.randn(200_000, *p.mean.shape[1:], generator=generator(2, "test"), dtype=torch.float64)[:, None][:, :, 0:1, 0:1, 0:1]
    )
    estimate = (p.log_prob(draws) - q.log_prob(draws)).mean(0)
    torch.testing.assert_close(estimate, exact, rtol=0.05, atol=0)


def test_kl_of_different_steps_is_refused() -> None:
    p = a_step()
    with pytest.raises(ValueError, match="standard deviations differ"):
        p.kl(Gaussian(p.mean, p.std * 2))


def test_samples_have_the_mean_and_std_of_the_step() -> None:
    step = Gaussian(torch.full((4000, 1, 2, 2), 0.7, dtype=torch.float64), torch.full((4000, 1, 1, 1), 0.3, dtype=torch.float64))
    y = step.sample(normal((1, 2, 2), [generator(0, "test", 0, i) for i in range(4000)], like=step.mean))
    assert abs(y.mean().item() - 0.7) < 0.01
    assert abs(y.std().item() - 0.3) < 0.01


def test_a_row_is_drawn_from_its_own_generator_alone() -> None:
    like = torch.empty(0, dtype=torch.float64)
    alone = normal((2, 3, 3), [generator(0, "row", 0, 3)], like)
    together = normal((2, 3, 3), [generator(0, "row", 0, i) for i in range(5)], like)
    assert torch.equal(alone[0], together[3])
