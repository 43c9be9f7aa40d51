"""Each method against a closed form on the Gaussian world: `python tests/proofs.py` prints what it must reach and what it reached."""

import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from linear_gaussian import Law, Linear, Quadratic, expected, fixed_point, law, tilted
from torch import Tensor

from alignbench.datasets.scenes import ScenePairs
from alignbench.methods.d3po import D3PO
from alignbench.methods.ddpo import DDPO
from alignbench.methods.di_star import DIStar, GeneratorTurn, Turn
from alignbench.methods.diffusion_dpo import DiffusionDPO
from alignbench.methods.kl_rlhf import KLRLHF
from alignbench.methods.pso import PSO
from alignbench.models.base import Spec
from alignbench.models.gaussian_world import GaussianWorld
from alignbench.objectives import Divergence, ranked
from alignbench.policy import Policy
from alignbench.rewards.base import Reward
from alignbench.rewards.judge import Judge
from alignbench.rng import Draws, Generators, generator
from alignbench.samplers.ddim import DDIM
from alignbench.samplers.few_step import FewStep
from alignbench.samplers.one_step import OneStep
from alignbench.tables import Noised, NoisedPair, Pair, Rollout, Transition

COPY = Spec("full", 1, 1.0, ())
DIVERGENCES: tuple[Divergence, ...] = ("kl", "l2", "pseudo_huber")


@dataclass(frozen=True)
class Row:
    """A quantity that a method must reach, or one that it must not: a negative control, or two optima that are not one."""

    method: str
    quantity: str
    exact: float
    reached: float
    tolerance: float
    differs: bool = False  # the two must be further apart than the tolerance

    @property
    def error(self) -> float:
        return abs(self.reached - self.exact)

    @property
    def holds(self) -> bool:
        return self.error > self.tolerance if self.differs else self.error <= self.tolerance


class Quick(Draws):
    """One stream for all rows that are asked for together: these rows need no key of their own, and seeding is most of a draw's cost."""

    def each(self, purpose: str, indices: Iterable[int]) -> Generators:  # type: ignore[override]
        rows = list(indices)
        return [generator(self.seed, purpose, self.epoch, rows[0])] * len(rows)


def a_world(shape: tuple[int, int, int] = (1, 2, 2)) -> GaussianWorld:
    """Data N(0.5, 0.7^2) in float64, with a copy named `policy`."""
    model = GaussianWorld(shape=shape, mean=0.5, std=0.7).double()
    model.grow("policy", COPY)
    return model


def common(policy: Policy, reward: Reward, rate: float) -> dict[str, Any]:
    return {
        "policy": policy,
        "judge": Judge(reward, policy.model.meters),
        "micro_batch": 10**6,
        "processes": 1,
        "optimizer": partial(torch.optim.AdamW, lr=rate, weight_decay=0.0),
    }


# ---- policy gradients with a KL


class Centred(Quadratic):
    """Less its mean at the optimum: a baseline moves no fixed point (the score has mean zero) and spares most of the estimator's noise."""

    def __init__(self, target: float, width: float, mean: float) -> None:
        super().__init__(target, width)
        self.expected = mean

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return super().forward(images, prompts) - self.expected


class KLInReward(DDPO):
    """The other placement: the trajectory's log-ratio to the reference is part of its reward, so that earlier steps pay for later ones."""

    beta: float

    def score(self, rollout: Rollout, prompts: list[str], judge: Judge | None = None) -> Tensor:
        log_ratio = rollout.log_prob - self.policy.reference.log_prob(rollout, "image")  # on-policy: the rollout's own is the policy's
        return super().score(rollout, prompts, judge) - self.beta * log_ratio.sum(1)


def ddpo(policy: Policy, reward: Reward, images: int, kl: float, kind: type[DDPO] = DDPO) -> DDPO:
    return kind(
        images=images,
        images_per_prompt=1,
        batch=images,
        inner_epochs=1,
        form="importance_sampled",
        clip=1e6,
        advantage="none",
        advantage_clip=1e9,
        buffer=4,
        enough=2,
        reduce="sum",
        kl=kl,
        **common(policy, reward, 0.05),
    )


def kl_rlhf(
    policy: Policy, reward: Reward, images: int, kl: float, reward_weight: float, variant: Literal["exact", "released"] = "exact"
) -> KLRLHF:
    return KLRLHF(
        images=images,
        images_per_prompt=1,
        batch=images,
        inner_epochs=1,
        reward_weight=reward_weight,
        kl=kl,
        clip=1e6,
        variant=variant,
        baseline="none",
        value_epochs=1,
        value_width=1,
        value_lr=1.0,
        replay=1,
        reduce="sum",
        **common(policy, reward, 0.05),
    )


def trained(method: DDPO | KLRLHF, epochs: int, rate: float) -> Tensor:
    """A bare loop with a rate that falls to 0; the mean of (gain, shift) over the last third."""
    optimizer, copy, total = method.configure_optimizers(), method.policy.trainable(), torch.zeros(2, dtype=torch.float64)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate * (1 - epoch / epochs) ** 2
        for batch in method.collect([""] * method.updates.images, Quick(0, epoch)):
            optimizer.zero_grad()
            method.loss(batch)[0].backward()
            optimizer.step()
        if epoch >= epochs - epochs // 3:
            total += torch.stack([copy["gain"].detach(), copy["shift"].detach().mean()])
    return total / (epochs // 3)


def policy_gradients() -> list[Row]:
    """A chain's optimum depends on who pays for a step's KL, and is neither way the data's law tilted by the reward."""
    steps, target, beta, images, pixels = 6, 1.5, 0.003, 2048, 4
    world, reward = a_world(), Quadratic(target, width=1.0)
    in_loss, in_reward = (law(world, steps, fixed_point(world, steps, reward, pixels, beta, charged)) for charged in (False, True))
    start = law(world, steps, torch.zeros(2, dtype=torch.float64))
    data_mean, data_variance = tilted(world.mean, world.std**2, reward, beta)
    of_data = Law(torch.tensor(data_mean), torch.tensor(data_variance), start.kl)
    rows = same_gradient(beta)
    for name, exact in (("kl_rlhf", in_loss), ("ddpo, KL in the reward", in_reward)):
        policy = Policy(a_world(), DDIM(steps=steps, eta=1.0, guidance=1.0, deterministic=0), "policy", chunk=4096)
        if name == "kl_rlhf":
            centred = Centred(target, 1.0, expected(exact, reward, pixels).item())
            method: DDPO | KLRLHF = kl_rlhf(policy, centred, images, 2 * beta, reward_weight=2.0)
        else:
            centred = Centred(target, 1.0, (expected(exact, reward, pixels) - beta * pixels * exact.kl).item())
            method = ddpo(policy, centred, images, 0.0, KLInReward)
            method.beta = beta  # type: ignore[assignment]
        found = law(world, steps, trained(method, epochs=200, rate=0.05))
        rows.append(Row(name, "mean", exact.mean.item(), found.mean.item(), 0.03 * exact.mean.item()))
        rows.append(Row(name, "variance", exact.variance.item(), found.variance.item(), 0.12 * exact.variance.item()))
    for name, one, other in (
        ("start | KL in the loss", start, in_loss),
        ("KL in the reward | in the loss", in_reward, in_loss),
        ("p_data exp(r/beta) | KL in the loss", of_data, in_loss),
        ("p_data exp(r/beta) | KL in the reward", of_data, in_reward),
    ):
        rows.append(Row(name, "mean, apart", one.mean.item(), other.mean.item(), 0.08 * one.mean.item(), differs=True))
        rows.append(Row(name, "variance, apart", one.variance.item(), other.variance.item(), 0.3 * one.variance.item(), differs=True))
    return rows


def same_gradient(beta: float) -> list[Row]:
    """DDPO with its KL has the gradient of KL-RLHF at reward weight 1, so that they share a fixed point; test_ddpo.py trains it to it."""
    found = []
    for make in (ddpo, partial(kl_rlhf, reward_weight=1.0)):
        model = a_world()
        model.copies["policy"]["shift"].data.fill_(0.3)
        policy = Policy(model, DDIM(steps=6, eta=1.0, guidance=1.0, deterministic=0), "policy", chunk=4096)
        method = make(policy, Quadratic(1.5, 1.0), 64, beta)
        (batch,) = method.collect([""] * 64, Quick(0, 0))
        found.append(gradient(method.loss(batch)[0], model))
    return [
        Row("ddpo, KL in the loss", "gradient, scale, kl_rlhf's", found[1][0].item(), found[0][0].item(), 1e-9),
        Row("ddpo, KL in the loss", "gradient, kl_rlhf's, largest gap", 0.0, off(*found), 1e-9),
    ]


def one_step_chain(model: GaussianWorld) -> tuple[DDIM, float]:
    """A chain of one step that is wide enough to learn from, and its std. The tilt of its Gaussian by a linear reward is a shift."""
    model.copies["policy"]["gain"].requires_grad_(False)
    model.times = lambda steps: torch.tensor([999, 400])  # type: ignore[method-assign]
    sampler = DDIM(steps=1, eta=1.0, guidance=1.0, deterministic=0)
    x = torch.zeros(1, *model.shape, dtype=torch.float64)
    return sampler, sampler.step(model, x, torch.zeros(1, dtype=torch.long), model.encode([""]), None).std.item()


def moved(policy: Policy, x: Tensor) -> Tensor:
    """How far the policy's first step from states x goes beyond the reference's, per element: [C,h,w]."""
    k, cond = torch.zeros(len(x), dtype=torch.long), policy.model.encode([""] * len(x))
    with torch.no_grad():
        ours, reference = (each.sampler.step(policy.model, x, k, cond, each.who).mean for each in (policy, policy.reference))
    return (ours - reference).mean(0)


def tilted_reference() -> list[Row]:
    """On one step, max alpha E[r] - beta KL is p_ref exp(alpha r / beta): N(mean + alpha std^2 slope / beta, std^2).

    The released DPOK's |eps - eps_ref|^2 in place of the KL has the optimum alpha slope / (2 beta e^2), e = d eps / d mean of the step.
    """
    slope, alpha, goal, rows = 2.0, 3.0, 0.8, []
    for name in ("ddpo", "kl_rlhf", "kl_rlhf, released"):
        model = a_world()
        sampler, std = one_step_chain(model)
        policy = Policy(model, sampler, "policy", chunk=4096)
        here, there = model.alpha_bar[[999, 400]]
        per_mean = (here / (1 - here)).sqrt() / (there.sqrt() - ((1 - there - std**2) * here / (1 - here)).sqrt())
        if name == "ddpo":
            method: DDPO | KLRLHF = ddpo(policy, Linear(slope), 512, kl=std**2 * slope / goal)
        elif name == "kl_rlhf":
            method = kl_rlhf(policy, Linear(slope), 512, alpha * std**2 * slope / goal, alpha)
        else:
            method = kl_rlhf(policy, Linear(slope), 512, (alpha * slope / (2 * per_mean**2 * goal)).item(), alpha, "released")
        model.copies["policy"]["shift"].data.fill_(trained(method, epochs=150, rate=0.05)[1].item())
        reached = moved(policy, torch.zeros(1, *model.shape, dtype=torch.float64)).mean().item()
        rows.append(Row(f"{name}, one step", "shift of the mean", goal, reached, 0.03 * goal))
    return rows


# ---- preferences


def log_odds() -> list[Row]:
    """From Bradley-Terry's labels a preference loss finds p_ref exp(r / beta): beta x log-ratio differs as the reward does, slope 1.

    Labels drawn, and their expectation, whose optimum is exact whatever the images; labels that never err have no finite optimum. PSO is
    given one starting noise a pair; with its own two, the normaliser of p_ref exp(r / beta) is not the pair's and does not cancel.
    """
    one, rows = torch.ones(PAIRS, dtype=torch.float64), []
    for name in ("d3po", "pso"):
        pairs = Pairs(name, shared=True)
        first, second, likely = pairs.first, pairs.second, pairs.likely
        coin = torch.rand(PAIRS, generator=Quick(0, 0).one("labels"), dtype=torch.float64) < likely
        win, lose, _ = ranked(pairs.reward(pairs.images, [])[:, None], 2, 0.0)
        for labels, tolerance, found in (
            ("expected", 1e-6, pairs.learn([(first, second, likely), (second, first, 1 - likely)])),
            ("drawn", 0.06, pairs.learn([(torch.where(coin, first, second), torch.where(coin, second, first), one)])),
        ):
            rows.append(Row(f"{name}, labels {labels}", "slope of the log-odds", 1.0, found[0], tolerance))
            rows.append(Row(f"{name}, labels {labels}", "shift of the mean", pairs.goal, found[1], tolerance * pairs.goal))
        certain = pairs.learn([(win, lose, one)])
        rows.append(Row(f"{name}, labels that never err", "slope of the log-odds, apart", 1.0, certain[0], 1.0, differs=True))
    pairs = Pairs("pso", shared=False)
    found = pairs.learn([(pairs.first, pairs.second, pairs.likely), (pairs.second, pairs.first, 1 - pairs.likely)])
    rows.append(Row("pso, independent starts", "slope of the log-odds, apart", 1.0, found[0], 0.02, differs=True))
    return rows


PAIRS, BETA = 8192, 0.5


def minimise(parameter: Tensor, loss: Callable[[], Tensor]) -> None:
    """To the end."""
    optimizer = torch.optim.LBFGS([parameter], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


class Pairs:
    """Pairs of the reference's images, and a method that learns from labels on them by the one step that has a likelihood."""

    def __init__(self, name: str, shared: bool):
        model = a_world()
        sampler: DDIM | FewStep = one_step_chain(model)[0] if name == "d3po" else FewStep(times=[700, 400], kernel="renoise", guidance=1.0)
        model.copies["policy"]["gain"].requires_grad_(False)
        policy, draws = Policy(model, sampler, "policy", chunk=10**5), Quick(0, 0)
        start = model.prior(draws.each("start", range(PAIRS))).repeat_interleave(2, 0) if shared else None
        self.rollout = policy.reference.rollout([""] * (2 * PAIRS), "image", draws.each("rollout", range(2 * PAIRS)), start)
        self.images = policy.images(self.rollout)
        scale = 2.0 / Linear(1.0)(self.images, []).std().item()
        self.reward = Linear(scale)  # so that a pair's rewards differ by a few nats
        self.first, self.second = torch.arange(0, 2 * PAIRS, 2), torch.arange(1, 2 * PAIRS, 2)
        self.likely = self.reward.prefer(self.images[self.first], self.images[self.second], [])
        numbers: dict[str, Any] = {
            "images": 2 * PAIRS,
            "images_per_prompt": 2,
            "batch": PAIRS,
            "inner_epochs": 1,
            "beta": BETA,
            "clip": None,
            "margin": 0.0,
            "reduce": "sum",
            **common(policy, self.reward, 0.05),
        }
        self.method = D3PO(reference="initial", criteria=[], **numbers) if name == "d3po" else PSO(ties="masked", **numbers)
        # the final image follows the trained step's state affinely, whatever the start (for d3po it is that state)
        state, final = (self.rollout.x[:2, k].flatten() for k in (1, -1))
        follows = ((final[0] - final[1]) / (state[0] - state[1])).item()
        self.goal = policy.at(self.rows(self.first)).std[0].item() ** 2 * scale * follows / BETA

    def rows(self, image: Tensor) -> Transition:
        return self.rollout.steps(image, torch.zeros_like(image), torch.zeros(len(self.rollout)))

    def learn(self, labels: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[float, float]:
        """Train on (winners, losers, weights) to the end; the slope of beta x log-ratio on the reward, over pairs, and the step's shift."""
        policy, shift = self.method.policy, self.method.policy.trainable()["shift"]
        shift.data.zero_()
        minimise(
            shift,
            lambda: torch.stack([self.method.loss(Pair(self.rows(win), self.rows(lose), each))[0] for win, lose, each in labels]).sum(),
        )
        with torch.no_grad():
            ratio = BETA * (policy.log_ratio(self.rows(self.first), "image") - policy.log_ratio(self.rows(self.second), "image"))
        difference = self.reward(self.images[self.first], []) - self.reward(self.images[self.second], [])
        return (ratio @ difference / (difference @ difference)).item(), moved(policy, self.rollout.x[:, 0]).mean().item()


def given_pairs() -> list[Row]:
    """Diffusion-DPO at a single t, on images that nobody sampled: Bradley-Terry's labels by a linear reward have their optimum at
    shift = slope V / (beta alpha^2), V = alpha^2 s^2 + sigma^2.

    With one noise a pair the margin is (alpha^2 / V) <shift, x0_win - x0_lose>: what both errors share cancels, and so do the squares. With
    two noises they do not, and the shift comes out smaller; labels the wrong way round turn it round.
    """
    model, slope = a_world(), 1.5
    model.copies["policy"]["gain"].requires_grad_(False)
    policy = Policy(model, DDIM(steps=4, eta=1.0, guidance=1.0, deterministic=0), "policy", chunk=10**5)
    common_ = common(policy, Linear(1.0), 0.05)
    method = DiffusionDPO(batch=1, steps=1, beta=BETA, reduce="sum", drop_prompt=0.0, pairs=ScenePairs(), **common_)
    first, second, eps, other = (
        torch.randn(PAIRS, *model.shape, generator=Quick(0, 0).one(name), dtype=torch.float64)
        for name in ("first", "second", "eps", "other")
    )
    likely = (slope * (first - second)).flatten(1).sum(1).sigmoid()
    coin = torch.rand(PAIRS, generator=Quick(0, 0).one("labels"), dtype=torch.float64) < likely
    chosen = torch.where(coin[:, None, None, None], first, second), torch.where(coin[:, None, None, None], second, first)
    alpha, sigma = diffused(model, NOISE_TIME)
    goal = slope * (alpha**2 * model.std**2 + sigma**2) / (BETA * alpha**2)
    t, cond, one = torch.full((PAIRS,), NOISE_TIME), model.encode([""]).expand(PAIRS, -1, -1), torch.ones(PAIRS, dtype=torch.float64)

    def learned(*labels: tuple[Tensor, Tensor, Tensor], noise: Tensor = eps) -> float:
        """The shift at the optimum of (winners, losers, weights); noise: on the second image."""
        shift = policy.trainable()["shift"]
        shift.data.zero_()
        batches = [NoisedPair(*(Noised(x0, e, t, cond, weight) for x0, e in ((win, eps), (lose, noise)))) for win, lose, weight in labels]
        minimise(shift, lambda: torch.stack([method.loss(batch)[0] for batch in batches]).sum())
        return shift.mean().item()

    expected_labels = (first, second, likely), (second, first, 1 - likely)
    turned = (second, first, likely), (first, second, 1 - likely)
    name = "diffusion_dpo"
    return [
        Row(f"{name}, labels expected", "shift of x0", goal, learned(*expected_labels), 1e-6),
        Row(f"{name}, labels drawn", "shift of x0", goal, learned((*chosen, one)), 0.06 * goal),
        Row(f"{name}, labels turned round", "shift of x0", -goal, learned(*turned), 1e-6),
        Row(f"{name}, two noises", "shift of x0, apart", goal, learned(*expected_labels, noise=other), 0.1 * goal, differs=True),
    ]


# ---- DI* and DI++

TIME, NOISE_TIME = 500, 400  # of the generator's call, of the diffused sample
HUBER = 1.0  # of the pseudo-Huber, in x0 units


class Prompted(GaussianWorld):
    """Another law, N(-0.4, 1.1^2), for the empty prompt, so that guidance matters."""

    def embed(self, prompts: Any) -> Tensor:
        return torch.tensor([[[float(prompt != "")]] for prompt in prompts])

    def predict(self, x: Tensor, t: Tensor, cond: Tensor, who: str | None) -> Tensor:
        prompted = super().predict(x, t, cond, who)
        if who is not None:
            return prompted
        alpha, sigma = self.alpha_sigma(t)
        empty = sigma * (x - alpha * EMPTY[0]) / (alpha**2 * EMPTY[1] ** 2 + sigma**2)
        return torch.where(cond[..., None] > 0, prompted, empty)


EMPTY = (-0.4, 1.1)


def di_star(model: GaussianWorld, divergence: Divergence, reward: Reward | None = None, **changes: Any) -> DIStar:
    """DI* at a single t, without guidance or reward, unless changed."""
    policy = Policy(model, OneStep(time=TIME, guidance=1.0), "policy", chunk=10**6)
    numbers: dict[str, Any] = {
        "batch": 128,
        "turns": 1,
        "critic_turns": 1,
        "divergence": divergence,
        "huber": HUBER,
        "normalise": "none",
        "guidance": 1.0,
        "placement": "inside",
        "reward_weight": 0.0,
        "reduce": "sum",
        "times": (NOISE_TIME, NOISE_TIME),
        "ema": 0.0,
        "critic_lr": 0.2,
    }
    method = DIStar(**(numbers | common(policy, reward or Linear(1.0), 0.05) | changes))
    if "critic" not in model.copies:
        method.grow(COPY)
    return method


def diffused(model: GaussianWorld, t: int) -> tuple[float, float]:
    alpha, sigma = model.alpha_sigma(torch.tensor([t]))
    return alpha.item(), sigma.item()


def generated(model: GaussianWorld) -> tuple[Tensor, Tensor]:
    """The generator's law, from gain and shift: mean of each element [C,h,w], and std. Differentiable."""
    alpha, sigma = diffused(model, TIME)
    gain, shift = model.copies["policy"]["gain"], model.copies["policy"]["shift"]
    slope = alpha * model.std**2 / (alpha**2 * model.std**2 + sigma**2)  # of the exact x0-prediction, at sigma z
    return (1 + gain) * model.mean * (1 - alpha * slope) + shift, (1 + gain) * slope * sigma


def generate(model: GaussianWorld, mean: Tensor, std: float) -> None:
    """Give the generator a law."""
    copy = model.copies["policy"]
    copy["gain"].data.zero_()
    copy["shift"].data.zero_()
    copy["gain"].data.fill_(std / generated(model)[1].item() - 1)
    copy["shift"].data.copy_(mean - generated(model)[0].detach())


def exact_critic(model: GaussianWorld) -> None:
    """Give the critic the generator's diffused law at NOISE_TIME: its x0-prediction is affine, so gain and shift suffice."""
    alpha, sigma = diffused(model, NOISE_TIME)
    mean, std = (each.detach() for each in generated(model))
    own, reference = (alpha * s**2 / (alpha**2 * s**2 + sigma**2) for s in (std, model.std))
    critic = model.copies["critic"]
    critic["gain"].data.copy_(own / reference - 1)
    critic["shift"].data.copy_(mean * (1 - alpha * own) - own / reference * model.mean * (1 - alpha * reference))


def di_star_optima() -> list[Row]:
    """A linear reward at a single t: each divergence has an optimum of its own, and none moves the variance from the reference's.

    With V = a^2 s^2 + sigma^2 and the documented w(t): kl mu + e V / sigma^2, l2 mu + e V^2 / sigma^4, e = reward weight x slope; and
    pseudo-Huber, which never pulls back by more than q / sqrt(d), q = sigma^2 / V, mu + e c / (q sqrt(q^2 - d e^2)), if there is one.
    """
    slope, weight, turns, critic_turns, rows = 0.1, 2.0, 400, 4, []
    for divergence in DIVERGENCES:
        model = a_world()
        alpha, sigma = diffused(model, NOISE_TIME)
        pull, q, dimensions = weight * slope, sigma**2 / (alpha**2 * model.std**2 + sigma**2), 4
        optimum = {
            "kl": model.mean + pull / q,
            "l2": model.mean + pull / q**2,
            "pseudo_huber": model.mean + pull * HUBER / (q * math.sqrt(q**2 - dimensions * pull**2)),
        }
        rate, critic_rate = 0.03, 0.1
        betas = partial(torch.optim.AdamW, lr=rate, weight_decay=0.0, betas=(0.5, 0.99))
        method = di_star(
            model,
            divergence,
            Linear(slope),
            turns=turns,
            critic_turns=critic_turns,
            reward_weight=weight,
            critic_lr=critic_rate,
            optimizer=betas,
        )
        generate(model, torch.full(model.shape, 0.2, dtype=torch.float64), std=0.5)
        exact_critic(model)
        optimizer, total = method.configure_optimizers(), torch.zeros(2, dtype=torch.float64)
        for step, batch in enumerate(method.collect([""] * method.updates.images, Quick(0, 0))):
            left = 1 - step / len(method.updates)
            for group, each in zip(optimizer.param_groups, (rate, critic_rate), strict=True):
                group["lr"] = each * left
            optimizer.zero_grad()
            method.loss(batch)[0].backward()
            optimizer.step()
            if isinstance(batch, GeneratorTurn) and left <= 0.5:
                mean, std = generated(model)
                total += torch.stack([mean.detach().mean(), std.detach()]) / (turns // 2)
        rows.append(Row(f"di_star, {divergence}", "mean", optimum[divergence], total[0].item(), 0.03 * optimum[divergence]))
        rows.append(Row(f"di_star, {divergence}", "std", model.std, total[1].item(), 0.05 * model.std))
        for other in DIVERGENCES[: DIVERGENCES.index(divergence)]:
            apart = 0.05 * optimum[divergence]
            rows.append(Row(f"di_star, {divergence} | {other}", "mean, apart", optimum[divergence], optimum[other], apart, differs=True))
    return rows


def hermite(nodes: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """Nodes [nodes^dimensions, dimensions] and weights of a standard normal's expectation, by Gauss and Hermite."""
    x, weight = (torch.tensor(each) for each in np.polynomial.hermite_e.hermegauss(nodes))
    at = torch.cartesian_prod(*[torch.arange(nodes)] * dimensions).reshape(-1, dimensions)
    return x[at], (weight / weight.sum())[at].prod(1)


def expected_loss(method: DIStar, nodes: int = 20) -> Tensor:
    """The mean of DIStar.loss over its generator's noise, by quadrature over z and eps of two elements."""
    points, weights = hermite(nodes, 4)
    z, eps = points.reshape(-1, 2, 1, 1, 2).unbind(1)
    none = torch.zeros(len(points), dtype=torch.long)
    turn = GeneratorTurn(("a prompt",) * len(points), z[:, None], none, eps, none + NOISE_TIME)
    with mock.patch("alignbench.methods.di_star.per_unit", lambda nats, *_: len(weights) * weights * nats):
        return method.loss(turn)[0]


def gradient(loss: Tensor, model: GaussianWorld) -> Tensor:
    """By gain and shift, of the generator: [1 + elements]."""
    found = torch.autograd.grad(loss, list(model.trainable("policy").values()), allow_unused=True)
    return torch.cat([torch.zeros(1, dtype=torch.float64) if each is None else each.flatten() for each in found])


def weight_of(divergence: Divergence) -> float:
    """w(t), as objectives.score_divergence says it."""
    alpha, sigma = diffused(a_world(), NOISE_TIME)
    return {"kl": sigma**2 / alpha**2, "l2": sigma**4 / (2 * alpha**2), "pseudo_huber": sigma**2 / alpha}[divergence]


def exact_divergence(model: GaussianWorld, divergence: Divergence, guidance: float = 1.0) -> Tensor:
    """w(t) D(p_theta, p_ref): KL in closed form, else E_{x_t ~ sg} d(s_theta - s_ref), scores written out, by quadrature over x_t alone.

    guidance: s_ref = s(empty) + guidance (s(prompt) - s(empty)); with the KL only 1.
    """
    alpha, sigma = diffused(model, NOISE_TIME)
    mean, std = generated(model)
    variance, reference, empty = (alpha**2 * s**2 + sigma**2 for s in (std, model.std, EMPTY[1]))
    if divergence == "kl":
        gap = alpha**2 * (mean - model.mean).square()
        return weight_of("kl") * (0.5 * ((variance + gap) / reference - 1 - (variance / reference).log())).sum()
    points, weights = hermite(60, 2)
    x = (alpha * mean + variance.sqrt() * points.reshape(-1, *model.shape)).detach()
    away = -(x - alpha * EMPTY[0]) / empty
    target = away + guidance * (-(x - alpha * model.mean) / reference - away)
    y = (-(x - alpha * mean) / variance - target).flatten(1)
    huber = HUBER * alpha / sigma**2  # from x0 units to the score's
    d = y.square().sum(1) if divergence == "l2" else (y.square().sum(1) + huber**2).sqrt() - huber
    return weight_of(divergence) * (weights * d).sum()


def guidance_reward(model: GaussianWorld) -> Tensor:
    """E_{x_t ~ p_theta}[log p_ref(x_t | c) - log p_ref(x_t)], without w(t) and constants."""
    alpha, sigma = diffused(model, NOISE_TIME)
    mean, std = generated(model)
    own = alpha**2 * std**2 + sigma**2
    terms = [(own + alpha**2 * (mean - m).square()) / (alpha**2 * s**2 + sigma**2) for m, s in ((model.mean, model.std), EMPTY)]
    return 0.5 * (terms[1] - terms[0]).sum()


def off(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def a_generator(model: GaussianWorld) -> None:
    """Some law that is not the reference's, in two elements, and the critic that knows it."""
    generate(model, torch.tensor([0.9, -0.3], dtype=torch.float64).reshape(model.shape), std=0.45)
    exact_critic(model)


def unit(y: Tensor, divergence: str, huber: float) -> Tensor:
    return 1.0 * y if divergence == "l2" else y / (y.square().sum(1, keepdim=True) + huber**2).sqrt()


def y_detached(divergence: str, critic: Tensor, reference: Tensor, x0: Tensor, huber: float) -> Tensor:
    return -(unit((critic - reference).flatten(1), divergence, huber).detach() * (critic - x0).flatten(1)).sum(1)


def critic_detached(divergence: str, critic: Tensor, reference: Tensor, x0: Tensor, huber: float) -> Tensor:
    return -(unit((critic.detach() - reference).flatten(1), divergence, huber) * (critic.detach() - x0).flatten(1)).sum(1)


def naive(divergence: str, critic: Tensor, reference: Tensor, x0: Tensor, huber: float) -> Tensor:
    square = (critic - reference).flatten(1).square().sum(1)
    return square / 2 if divergence == "l2" else (square + huber**2).sqrt()


def di_star_gradient() -> list[Row]:
    """The tractable loss with an exact critic has the gradient of the divergence, for location and scale; three near misses have not."""
    model, rows = a_world((1, 1, 2)), []
    for divergence in DIVERGENCES:
        name, method = f"di_star, {divergence}", di_star(model, divergence)
        a_generator(model)
        loss = expected_loss(method)
        found, exact = gradient(loss, model), gradient(exact_divergence(model, divergence), model)
        for quantity, index in (("scale", 0), ("location", 1)):
            rows.append(Row(name, f"gradient, {quantity}", exact[index].item(), found[index].item(), 1e-6))
        rows.append(Row(name, "gradient, largest gap", 0.0, off(found, exact), 1e-6))
        if divergence != "kl":
            rows.append(Row(name, "value", 0.0, loss.item(), 1e-6))
            for wrong in (y_detached, critic_detached, naive):
                with mock.patch("alignbench.methods.di_star.score_divergence", wrong):
                    control = gradient(expected_loss(method), model)
                quantity = f"gradient, scale, {wrong.__name__}, apart"
                rows.append(Row(name, quantity, exact[0].item(), control[0].item(), 0.1 * abs(exact[0].item()), differs=True))
        generate(model, torch.full(model.shape, model.mean, dtype=torch.float64), model.std)
        exact_critic(model)
        rows.append(Row(name, "gradient at the reference", 0.0, gradient(expected_loss(method), model).abs().max().item(), 1e-6))
    return rows + sid(model)


def some_turn(model: GaussianWorld, rows: int, kind: type[Turn] = GeneratorTurn) -> Turn:
    z, eps = (torch.randn(rows, *model.shape, generator=Quick(0, 0).one(name), dtype=torch.float64) for name in ("z", "eps"))
    none = torch.zeros(rows, dtype=torch.long)
    return kind(("a prompt",) * rows, z[:, None], none, eps, none + NOISE_TIME)


def sid(model: GaussianWorld) -> list[Row]:
    """DI* with l2 and SiD's normaliser is SiD's generator loss at alpha = 1 (mingyuanzhou/SiD-LSG), sample by sample."""
    a_generator(model)
    method, turn = di_star(model, "l2", normalise="sid"), some_turn(model, 16)
    model.copies["critic"]["shift"].data.add_(0.1)  # whatever the critic
    alpha, sigma = model.alpha_sigma(turn.t)
    cond = model.encode(turn.prompts)
    images = method.generated(turn, cond)
    x_t = alpha * images + sigma * turn.eps
    with model.frozen("critic"):
        y_fake, y_real = model.x0(x_t, turn.t, cond, "critic"), model.x0(x_t, turn.t, cond, None)
    weight = (images - y_real).abs().mean(dim=[1, 2, 3], keepdim=True).clip(min=0.00001).detach()
    theirs = ((y_real - y_fake) * ((y_real - images) - 1.0 * (y_real - y_fake)) / weight).sum() / 16
    ours = method.loss(turn)[0]
    return [
        Row("di_star, l2, sid", "value, SiD's", theirs.item(), ours.item(), 1e-9),
        Row("di_star, l2, sid", "gradient, SiD's, largest gap", 0.0, off(gradient(ours, model), gradient(theirs, model)), 1e-9),
    ]


def guidance_placement() -> list[Row]:
    """Guidance inside the divergence, or as a reward beside it with the divergence's own w(t): one gradient for kl, two for the others."""
    guidance, rows = 3.0, []
    model = Prompted(shape=(1, 1, 2), mean=0.5, std=0.7).double()
    model.grow("policy", COPY)
    for divergence in DIVERGENCES:
        inside, outside = (di_star(model, divergence, guidance=guidance, placement=each) for each in ("inside", "outside"))
        a_generator(model)
        within, beside = (gradient(expected_loss(each), model) for each in (inside, outside))
        total = exact_divergence(model, divergence) - (guidance - 1) * weight_of(divergence) * guidance_reward(model)
        name, exact = f"di_star, {divergence}", gradient(total, model)
        rows.append(Row(name, "gradient outside, largest gap", 0.0, off(beside, exact), 1e-6))
        if divergence != "kl":
            guided = gradient(exact_divergence(model, divergence, guidance), model)
            rows.append(Row(name, "gradient inside, largest gap", 0.0, off(within, guided), 1e-6))
        same = divergence == "kl"
        rows.append(
            Row(
                name,
                "inside = outside, largest gap" if same else "inside | outside, apart",
                0.0,
                off(within, beside),
                1e-9 if same else 0.05,
                not same,
            )
        )
    return rows


PROOFS: tuple[Callable[[], list[Row]], ...] = (
    policy_gradients,
    tilted_reference,
    log_odds,
    given_pairs,
    di_star_optima,
    di_star_gradient,
    guidance_placement,
)


def main() -> int:
    torch.set_num_threads(1)
    began, missed = time.perf_counter(), 0
    print(f"{'method':<38} {'quantity':<44} {'exact':>12} {'reached':>12} {'error':>9}")
    for proof in PROOFS:
        start = time.perf_counter()
        for row in proof():
            missed += not row.holds
            end = "" if row.holds else f"  MISSED: must be {'more' if row.differs else 'at most'} {row.tolerance:.1e} away"
            print(f"{row.method:<38} {row.quantity:<44} {row.exact:>12.6g} {row.reached:>12.6g} {row.error:>9.1e}{end}", flush=True)
        print(f"    {proof.__name__}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{'every row holds' if not missed else f'{missed} rows are missed'}, {time.perf_counter() - began:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
