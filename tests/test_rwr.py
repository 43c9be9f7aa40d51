"""RWR: what a sample's weight is, and that the loss is the weighted regression."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from linear_gaussian import Linear

from alignbench.methods.rwr import RWR
from alignbench.objectives import reward_weights
from alignbench.policy import Policy
from alignbench.rewards.judge import Judge
from alignbench.rng import Draws, generator

PROMPTS = ["a", "b", "c"] * 8
REWARD = torch.randn(24, generator=generator(0, "reward"), dtype=torch.float64) + torch.tensor([0.0, 5.0, -3.0] * 8)


def of(prompt: str) -> torch.Tensor:
    return torch.tensor([each == prompt for each in PROMPTS])


def a_method(policy: Policy, **changes: Any) -> RWR:
    numbers: dict[str, Any] = {
        "images": 24,
        "images_per_prompt": 8,
        "batch": 16,
        "steps": 3,
        "form": "dense",
        "inverse_temperature": 2.0,
        "percentile": 0.75,
        "micro_batch": 10**6,
        "processes": 1,
        "optimizer": partial(torch.optim.AdamW, lr=0.05),
    }
    return RWR(policy=policy, judge=Judge(Linear(0.5), policy.model.meters), **(numbers | changes))


def test_weights_become_uniform_as_the_inverse_temperature_falls() -> None:
    assert reward_weights(REWARD, PROMPTS, "dense", 0.0, 0.9).eq(1).all()
    gaps = [(reward_weights(REWARD, PROMPTS, "dense", each, 0.9) - 1).abs().max().item() for each in (1.0, 0.1, 0.01, 0.001)]
    assert gaps[0] > 1
    for before, after in pairwise(gaps):
        assert 5 < before / after < 30  # linearly in the end
    assert gaps[-1] < 0.005


def test_dense_weights_are_the_tilt_of_each_prompts_own_images() -> None:
    """Mean 1 a prompt, the ratio of two weights exp(inverse temperature x difference of rewards), and no other prompt's rewards in it."""
    weight = reward_weights(REWARD, PROMPTS, "dense", 1.7, 0.9)
    for prompt in "abc":
        own, reward = weight[of(prompt)], REWARD[of(prompt)]
        assert own.mean().item() == pytest.approx(1, abs=1e-12)
        torch.testing.assert_close(own / own[0], (1.7 * (reward - reward[0])).exp())
    shifted = torch.where(of("b"), REWARD + 100, REWARD)
    torch.testing.assert_close(reward_weights(shifted, PROMPTS, "dense", 1.7, 0.9), weight)


def test_sparse_weights_keep_each_prompts_best() -> None:
    weight = reward_weights(REWARD, PROMPTS, "sparse", 1.0, 0.75)
    for prompt in "abc":
        own, reward = weight[of(prompt)], REWARD[of(prompt)]
        assert own.sum() == 2  # of 8: at or above the 0.75 quantile
        assert reward[own == 1].min() > reward[own == 0].max()


def test_the_loss_is_the_weighted_regression(policy: Policy) -> None:
    method = a_method(policy)
    policy.model.copies["policy"]["shift"].data.fill_(0.2)
    batches = list(method.collect([each for each in "abc" for _ in range(8)], Draws(0, 0)))
    assert len(batches) == 3
    for batch in batches:
        alpha_bar = policy.model.alpha_bar[batch.t][:, None, None, None]
        x_t = alpha_bar.sqrt() * batch.x0 + (1 - alpha_bar).sqrt() * batch.eps
        error = (policy.model.eps(x_t, batch.t, batch.cond, "policy") - batch.eps).square().mean((1, 2, 3))
        assert batch.weight.min() < 0.5 < 1.5 < batch.weight.max()
        torch.testing.assert_close(method.loss(batch)[0], (batch.weight * error).mean())


def test_a_sample_brings_the_weight_of_its_own_image(policy: Policy) -> None:
    method = a_method(policy, steps=20)
    prompts = [each for each in "abc" for _ in range(8)]
    rollout = policy.rollout(prompts, "image", Draws(0, 0).each("rollout", range(24)))
    weight = reward_weights(method.score(rollout, prompts), prompts, "dense", 2.0, 0.75)
    drawn = set()
    for batch in method.collect(prompts, Draws(0, 0)):
        for x0, each in zip(batch.x0, batch.weight, strict=True):
            (image,) = (rollout.x[:, -1] == x0).flatten(1).all(1).nonzero().flatten().tolist()
            assert each.item() == pytest.approx(weight[image].item())
            drawn.add(image)
    assert drawn == set(range(24))
    assert method.collected["effective_images"] == pytest.approx((weight.sum() ** 2 / weight.square().sum()).item())


def test_images_without_weight_move_nothing(policy: Policy) -> None:
    method = a_method(policy, form="sparse")
    batch = next(iter(method.collect([each for each in "abc" for _ in range(8)], Draws(0, 0))))
    assert not method.idle(batch)
    assert method.idle(type(batch)(batch.x0, batch.eps, batch.t, batch.cond, torch.zeros_like(batch.weight)))
