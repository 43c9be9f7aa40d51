"""KL-regularised RLHF: DPOK (Fan et al., 2305.16381), a policy gradient with the steps' KL to the reference in the loss."""

import math
from dataclasses import fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alignbench.gaussian import Gaussian
from alignbench.methods.base import Method, Metrics
from alignbench.models.base import Spec
from alignbench.objectives import (
    Reduce,
    clipped_surrogate,
    group_advantage,
    hard_clamped,
    mean_and_std,
    of_scored,
    per_unit,
    standardise,
)
from alignbench.policy import summed
from alignbench.ranges import Count, NonNegative, Positive, Share
from alignbench.rng import Draws
from alignbench.schedule import Minibatches, Updates
from alignbench.tables import Rollout, Transition


class ValueRows(Transition):
    """Transitions that train the value baseline; the policy stands still."""


class Value(nn.Module):
    """V(x_t, c, t) [N]: the reward to expect from here. A multilayer perceptron on latent, mean prompt embedding and time."""

    def __init__(self, latent: int, prompt: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent + prompt + 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        angle = t.to(x.dtype)[:, None] * (math.pi / 1000)
        return self.layers(torch.cat([x.flatten(1), cond.mean(1).to(x.dtype), angle.sin(), angle.cos()], 1)).squeeze(1)


class KLRLHF(Method):
    """alpha E[-r] + beta sum_t KL(p_theta(. | x_t) || p_ref(. | x_t)); a step's KL is charged to that step alone, as in the paper."""

    def __init__(
        self,
        *,
        images: Count,
        images_per_prompt: Count,
        batch: Count,
        inner_epochs: Count,
        reward_weight: NonNegative,
        kl: NonNegative,
        clip: Positive,
        variant: Literal["exact", "released"],
        baseline: Literal["none", "group_mean", "batch_mean", "value"],
        value_epochs: Count,
        value_width: Count,
        value_lr: Positive,
        replay: Count,
        reduce: Reduce,
        fraction: Share | None = None,
        **base: Any,
    ):
        """reward_weight: alpha; kl: beta, of the steps' KL; clip: of the ratio; the last two in the unit of `reduce`. variant: exact, PPO's
        bound and the closed-form KL; released, a hard clamp and the mean square of the guided eps difference. baseline:
        group_mean and batch_mean subtract a mean and divide by the std of all rewards; value subtracts a network's guess, trained
        `value_epochs` passes before the policy. replay: epochs of trajectories to draw
        updates from. fraction: of an image's trained steps, drawn for each update (null: all).
        """
        super().__init__(**base)
        self.updates: Updates = Updates(
            images,
            images_per_prompt,
            batch,
            inner_epochs + (value_epochs if baseline == "value" else 0),
            self.policy.trained_steps,
            self.micro_batch,
            self.processes,
            fraction=fraction,
        )
        self.reward_weight, self.kl, self.clip, self.variant, self.reduce = reward_weight, kl, clip, variant, reduce
        self.baseline, self.value_epochs, self.value_width, self.value_lr = baseline, value_epochs, value_width, value_lr
        self.inner_epochs, self.replay = inner_epochs, replay
        self.remembered: list[tuple[Rollout, Tensor]] = []

    def grow(self, spec: Spec) -> None:
        if self.baseline == "value":
            model = self.policy.model
            self.value = Value(self.policy.dimensions, model.encode([""]).shape[-1], self.value_width).to(model.dtype)

    def plan(self) -> dict[str, int]:
        each, anchor = self.policy.sampler.evaluations, self.policy.reference.who or "reference"
        compared = self.updates.images * int(self.policy.trained_steps.sum())
        rows = self.inner_epochs * self.updates.images * self.updates.each
        again = 2 if self.kl > 0 and self.variant == "released" else 1
        policy = {"policy": (self.updates.images * self.policy.sampler.steps + 3 * again * rows) * each}
        return policy | ({anchor: compared * each} if self.kl > 0 else {})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        policy = list(self.policy.trainable().values())
        if self.baseline != "value":
            return self.optimizer(policy)
        return self.optimizer([{"params": policy}, {"params": list(self.value.parameters()), "lr": self.value_lr}])

    def collect(self, prompts: list[str], draws: Draws) -> Minibatches:
        rollout, reward = self.sample(prompts, "image", draws.each("rollout", range(len(prompts))))
        if self.kl > 0:  # once a trajectory, however often it is learned from
            reference = self.policy.reference
            rollout = replace(rollout, anchor=(reference.means if self.variant == "exact" else reference.noises)(rollout))
        mean, std = mean_and_std(reward)
        self.collected = {"reward": mean, "reward_std": std}
        match self.baseline:
            case "none":
                advantage = of_scored(reward, prompts, lambda own, _: own)
            case "value":
                advantage = reward  # NaN stays: 0 would teach the value network something
            case "group_mean":
                advantage = of_scored(reward, prompts, partial(group_advantage, spread="batch"))
            case "batch_mean":
                advantage = of_scored(reward, prompts, lambda own, _: standardise(own))
        self.remembered = [*self.remembered, (rollout, advantage)][-self.replay :]
        device = rollout.x.device  # a resumed run's memory comes from a file
        buffer = Rollout.cat([past.to(device) for past, _ in self.remembered])
        credit = torch.cat([past.to(device) for _, past in self.remembered])
        value_passes = self.updates.passes - self.inner_epochs

        def rows(turn: int, image: Tensor, k: Tensor, update: Tensor) -> Transition:
            made = buffer.steps(image, k, credit)
            return ValueRows(**{f.name: getattr(made, f.name) for f in fields(made)}) if turn < value_passes else made

        return Minibatches(self.updates, len(buffer), rows, draws.one("minibatches"), buffer.x.device)

    def loss(self, batch: Transition) -> tuple[Tensor, Metrics]:
        if isinstance(batch, ValueRows):
            known = ~batch.advantage.isnan()
            error = self._value(batch) - torch.where(known, batch.advantage, 0)
            loss = torch.where(known, error, 0).square().mean()
            return loss, {"value_loss": loss.detach()}
        step = self.policy.at(batch)
        log_ratio = self._per_unit(summed(step.log_prob(batch.y), "image") - batch.log_prob)
        advantage = batch.advantage
        if self.baseline == "value":
            advantage = torch.where(advantage.isnan(), 0, advantage - self._value(batch).detach())
        surrogate = clipped_surrogate if self.variant == "exact" else hard_clamped
        loss = self.reward_weight * surrogate(log_ratio, advantage, self.clip).mean()
        metrics = {
            "log_ratio": log_ratio.detach().mean(),
            "clipped": (log_ratio.detach().exp() - 1).abs().gt(self.clip).float().mean(),
        }
        if batch.anchor is not None:
            if self.variant == "exact":
                nats = step.kl(Gaussian(batch.anchor, step.std)).flatten(1).sum(1)
                divergence = self._per_unit(nats)
                metrics["step_kl"] = nats.detach().mean()
            else:
                gap = self.policy.eps(batch) - batch.anchor  # guided; the step's variance is left out
                divergence = self._per_unit(gap.square().flatten(1).sum(1))
                metrics["eps_gap"] = divergence.detach().mean()
            loss = loss + self.kl * divergence.mean()
        return loss, metrics

    def _per_unit(self, nats: Tensor) -> Tensor:
        return per_unit(nats, self.policy.dimensions, self.reduce)

    def _value(self, batch: Transition) -> Tensor:
        return self.value(batch.x, self.policy.sampler.time(self.policy.model, batch.k), batch.cond)

    def idle(self, batch: Transition) -> bool:
        return self.kl == 0 and self.baseline != "value" and not bool(batch.advantage.any())

    def get_extra_state(self) -> list[dict[str, Tensor]]:
        """What later epochs still draw from."""
        kept = self.remembered[1 - self.replay :] if self.replay > 1 else []
        return [{f.name: getattr(rollout, f.name) for f in fields(rollout)} | {"advantage": advantage} for rollout, advantage in kept]

    def set_extra_state(self, state: list[dict[str, Tensor]]) -> None:
        self.remembered = [(Rollout(**{key: each[key] for key in each if key != "advantage"}), each["advantage"]) for each in state]
