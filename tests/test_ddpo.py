"""DDPO: its estimator's fixed point, the tilted optimum, the identities between its forms, and what must not move a weight."""

from functools import partial
from typing import Any

import pytest
import torch
from conftest import FULL
from linear_gaussian import Linear, Quadratic, fixed_point, law

from alignbench.methods.ddpo import DDPO, PromptStatistics
from alignbench.models.gaussian_world import GaussianWorld
from alignbench.objectives import clipped_surrogate, group_advantage, per_unit, score_function, standardise
from alignbench.policy import Policy, summed
from alignbench.rewards.base import Reward
from alignbench.rewards.judge import Judge
from alignbench.rng import Draws, generator
from alignbench.samplers.ddim import DDIM


def a_method(policy: Policy, reward: Reward, **changes: Any) -> DDPO:
    """DDPO with sum reduction, raw rewards as advantages and a clip that never binds, unless changed."""
    numbers: dict[str, Any] = {
        "images": 64,
        "images_per_prompt": 1,
        "batch": 64,
        "inner_epochs": 1,
        "form": "importance_sampled",
        "clip": 1e6,
        "advantage": "none",
        "advantage_clip": 1e9,
        "buffer": 4,
        "enough": 2,
        "reduce": "sum",
        "kl": 0.0,
        "micro_batch": 10**6,
        "processes": 1,
    }
    optimizer = partial(torch.optim.AdamW, lr=0.05, weight_decay=0.0)
    return DDPO(policy=policy, judge=Judge(reward, policy.model.meters), optimizer=optimizer, **(numbers | changes))


def train(method: DDPO, epochs: int, rate: float) -> torch.Tensor:
    """A bare loop with a rate that falls to 0; the mean of (gain, shift) over the second half."""
    optimizer, copy = method.configure_optimizers(), method.policy.model.copies["policy"]
    total = torch.zeros(2, dtype=torch.float64)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate * (1 - epoch / epochs)
        for batch in method.collect([""] * method.updates.images, Draws(0, epoch)):
            optimizer.zero_grad()
            method.loss(batch)[0].backward()
            optimizer.step()
        if epoch >= epochs // 2:
            total += torch.stack([copy["gain"].detach(), copy["shift"].detach().mean()])
    return total / (epochs - epochs // 2)


def test_reaches_the_fixed_point_of_its_own_estimator(world: GaussianWorld) -> None:
    """The score-function form follows the same path to the last bit: its gradient is that of the surrogate (below)."""
    steps, reward, kl = 3, Quadratic(target=1.5, width=1.0), 0.003
    policy = Policy(world, DDIM(steps=steps, eta=1.0, guidance=1.0, deterministic=0), "policy", chunk=4096)
    start, goal = law(world, steps, torch.zeros(2, dtype=torch.float64)), law(world, steps, fixed_point(world, steps, reward, 4, kl))
    without_kl = law(world, steps, fixed_point(world, steps, reward, 4, kl / 3))
    found = law(world, steps, train(a_method(policy, reward, images=2048, batch=2048, kl=kl), epochs=250, rate=0.05))
    for name in ("mean", "variance"):
        reached, exact, before, wrong = (getattr(each, name).item() for each in (found, goal, start, without_kl))
        assert abs(reached - exact) < 0.05 * abs(exact), (name, reached, exact)
        assert abs(before - exact) > 0.3 * abs(exact)  # it had somewhere to go
        assert abs(wrong - exact) > 0.2 * abs(exact)  # and the KL's weight decides where to


def test_one_step_with_kl_reaches_the_tilted_reference() -> None:
    """max E[r] - beta KL over N(mean, std^2) with std fixed and r linear: p_ref exp(r / beta) = N(mean + std^2 slope / beta, std^2)."""
    model = GaussianWorld(shape=(1, 2, 2), mean=0.5, std=0.7).double()
    model.grow("policy", FULL)
    model.copies["policy"]["gain"].requires_grad_(False)  # the tilt of a Gaussian by a linear reward is a shift
    model.times = lambda steps: torch.tensor([999, 400])  # type: ignore[method-assign]  # a step wide enough to learn from
    sampler = DDIM(steps=1, eta=1.0, guidance=1.0, deterministic=0)
    policy = Policy(model, sampler, "policy", chunk=4096)
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    reference = sampler.step(model, x, torch.zeros(1, dtype=torch.long), model.encode([""]), None)
    slope = 2.0
    beta = (reference.std**2 * slope).item() / 0.8  # so that the optimum lies 0.8 away
    shift = train(a_method(policy, Linear(slope), images=512, batch=512, kl=beta, images_per_prompt=1), epochs=150, rate=0.05)[1]
    model.copies["policy"]["shift"].data.fill_(shift.item())
    moved = sampler.step(model, x, torch.zeros(1, dtype=torch.long), model.encode([""]), "policy")
    assert (moved.mean - reference.mean).mean().item() == pytest.approx(0.8, rel=0.05)


def test_ratio_is_exactly_one_where_the_minibatch_has_the_rollouts_shape(policy: Policy) -> None:
    method = a_method(policy, Quadratic(1.0, 1.0))
    rollout = policy.rollout([""] * 64, "image", Draws(0, 0).each("rollout", range(64)))
    for k in range(policy.sampler.steps):
        rows = rollout.steps(torch.arange(64), torch.full((64,), k), torch.ones(64))
        assert method.loss(rows)[1]["log_ratio"].item() == 0.0
        assert torch.equal(summed(policy.at(rows).log_prob(rows.y), "image"), rows.log_prob)


def test_importance_sampled_at_ratio_one_has_the_gradient_of_score_function(policy: Policy) -> None:
    gradients = []
    for form in ("importance_sampled", "score_function"):
        method = a_method(policy, Quadratic(1.0, 1.0), form=form, clip=1e-4)
        (batch,) = method.collect([""] * 64, Draws(0, 0))
        parameters = list(policy.trainable().values())
        gradients.append(torch.autograd.grad(method.loss(batch)[0], parameters))
    for one, other in zip(*gradients, strict=True):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("advantage", "ratio", "moves"), [(1, 1.5, False), (1, 0.5, True), (-1, 1.5, True), (-1, 0.5, False), (1, 1.05, True), (-1, 0.95, True)]
)
def test_the_clip_is_pessimistic(advantage: float, ratio: float, moves: bool) -> None:
    """Beyond the clip only a step that would undo the excess has a gradient; a hard clamp would have none on either side."""
    log_ratio = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_(True)
    clipped_surrogate(log_ratio, torch.tensor([float(advantage)], dtype=torch.float64), 0.1).sum().backward()
    assert (log_ratio.grad.abs().item() > 0) is moves  # type: ignore[union-attr]


def test_the_score_has_mean_zero(policy: Policy) -> None:
    """E[grad log p] = 0: a constant reward has no gradient in expectation even without a baseline."""
    rollout = policy.rollout([""] * 4096, "image", Draws(0, 0).each("rollout", range(4096)))
    shift = policy.model.copies["policy"]["shift"]
    image = torch.arange(4096)
    log_prob = torch.stack(
        [
            summed(policy.at(rollout.steps(image, torch.full((4096,), k), torch.ones(4096))).log_prob(rollout.x[:, k + 1]), "image")
            for k in range(4)
        ],
        1,
    )
    total = score_function(log_prob, torch.ones(4096, 1)).sum(1)
    (mean,) = torch.autograd.grad(total.mean(), shift, retain_graph=True)
    (one,) = torch.autograd.grad(total[0], shift)
    assert mean.abs().max() < 0.1 * one.abs().max()


def test_equal_rewards_give_exactly_no_advantage() -> None:
    for value in (0.1, 0.7, 1 / 3, 1e6 + 0.1):
        assert not standardise(torch.full((7,), value)).any()
        assert not PromptStatistics(4, 2).advantage(torch.full((7,), value), ["a"] * 7).any()


def test_group_advantages_sum_to_zero_for_each_prompt() -> None:
    reward = torch.randn(12, generator=generator(0, "reward"))
    prompts = ["a", "b", "c"] * 4
    own, shared = (group_advantage(reward, prompts, spread=spread) for spread in ("group", "batch"))
    for prompt in "abc":
        members = torch.tensor([each == prompt for each in prompts])
        assert abs(own[members].sum().item()) < 1e-5
        assert abs(shared[members].sum().item()) < 1e-5
        torch.testing.assert_close(own[members], standardise(reward[members]))
        torch.testing.assert_close(
            shared[members] * reward.std(correction=0), reward[members] - reward[members].mean(), rtol=1e-4, atol=1e-5
        )


def test_prompt_statistics_use_the_batch_until_there_are_enough() -> None:
    statistics = PromptStatistics(buffer=3, enough=3)
    first = torch.tensor([1.0, 2.0, 6.0])
    torch.testing.assert_close(statistics.advantage(first, ["a", "b", "a"]), standardise(first))
    second = statistics.advantage(torch.tensor([5.0, 3.0]), ["a", "b"])
    known = torch.tensor([1.0, 6.0, 5.0])  # a's last three
    assert second[0].item() == pytest.approx(((5 - known.mean()) / known.std(correction=0)).item(), rel=1e-4)
    statistics.advantage(torch.tensor([9.0]), ["a"])
    assert list(statistics.rewards["a"]) == [6.0, 5.0, 9.0]  # the oldest is forgotten


def test_per_prompt_statistics_survive_a_checkpoint(policy: Policy) -> None:
    method = a_method(policy, Linear(1.0), advantage="per_prompt")
    method.collect(["a", "b"] * 32, Draws(0, 0))
    other = a_method(policy, Linear(1.0), advantage="per_prompt")
    other.set_extra_state(method.get_extra_state())
    assert other.get_extra_state() == method.get_extra_state() != {}


def test_mean_reduction_is_the_sum_over_the_dimensions(policy: Policy) -> None:
    nats = torch.tensor([8.0])
    assert per_unit(nats, policy.dimensions, "sum") == per_unit(nats, policy.dimensions, "mean") * 4


def test_an_update_sees_whole_trajectories_of_its_images_once(policy: Policy) -> None:
    method = a_method(policy, Linear(1.0), images=12, batch=6, micro_batch=5)
    batches = list(method.collect([""] * 12, Draws(0, 0)))
    assert len(batches) == len(method.updates) == 2 * method.updates.accumulate
    assert {len(batch) for batch in batches} == {4}  # the largest divisor of 24 rows that is at most 5
    first = torch.cat([batch.x for batch in batches[: method.updates.accumulate]])
    steps = torch.cat([batch.k for batch in batches[: method.updates.accumulate]])
    assert steps.bincount().tolist() == [6, 6, 6, 6]
    assert len(first.flatten(1).unique(dim=0)) == 24
    assert len({tuple(batch.k.tolist()) for batch in batches}) > 1  # rows of one forward pass mix the steps


def test_the_plan_is_what_the_meters_count() -> None:
    model = GaussianWorld(shape=(1, 2, 2), mean=0.5, std=0.7).double()
    model.grow("policy", FULL)
    policy = Policy(model, DDIM(steps=4, eta=1.0, guidance=3.0, deterministic=0), "policy", chunk=7)
    method = a_method(policy, Quadratic(1.0, 1.0), inner_epochs=2, batch=32, kl=0.1, micro_batch=16)
    for batch in method.collect([""] * 64, Draws(0, 0)):
        method.loss(batch)[0].backward()
    assert dict(model.meters.network_evaluations) == method.plan()
    assert model.meters.reward_queries == 64


def test_numbers_that_do_not_fit_together_are_refused(policy: Policy) -> None:
    with pytest.raises(ValueError, match=r"method\.images=10 must be a multiple"):
        a_method(policy, Linear(1.0), images=10, batch=4)
    with pytest.raises(ValueError, match="on-policy"):
        a_method(policy, Linear(1.0), form="score_function", inner_epochs=2)
