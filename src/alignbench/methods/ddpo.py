"""DDPO: denoising diffusion policy optimisation (Black et al., 2305.13301), importance-sampled (IS) and score-function (SF)."""

from collections import deque
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from alignbench.gaussian import Gaussian
from alignbench.methods.base import Method, Metrics
from alignbench.objectives import (
    Reduce,
    clipped_surrogate,
    group_advantage,
    mean_and_std,
    of_scored,
    per_unit,
    score_function,
    standardise,
)
from alignbench.policy import summed
from alignbench.ranges import Count, NonNegative, Positive, Share
from alignbench.rng import Draws
from alignbench.schedule import Minibatches, Updates
from alignbench.tables import Transition


class PromptStatistics:
    """Running mean and std of each prompt's last rewards (DDPO, section 4.3); too few, and the batch's own serve instead."""

    def __init__(self, buffer: int, enough: int):
        self.buffer, self.enough = buffer, enough
        self.rewards: dict[str, deque[float]] = {}

    def advantage(self, reward: Tensor, prompts: list[str]) -> Tensor:
        """Remember rewards [B], then standardise them by what is known of their prompts: [B]."""
        for value, prompt in zip(reward.tolist(), prompts, strict=True):
            self.rewards.setdefault(prompt, deque(maxlen=self.buffer)).append(value)
        advantage = standardise(reward)
        for row, prompt in enumerate(prompts):
            if len(self.rewards[prompt]) >= self.enough:
                advantage[row] = standardise(reward[row], by=torch.tensor(self.rewards[prompt], device=reward.device)).squeeze()
        return advantage


class DDPO(Method):
    """Policy gradient on the denoising steps; the reward arrives at the last one."""

    def __init__(
        self,
        *,
        images: Count,
        images_per_prompt: Count,
        batch: Count,
        inner_epochs: Count,
        form: Literal["importance_sampled", "score_function"],
        clip: Positive,
        advantage: Literal["per_prompt", "group", "group_mean", "batch", "none"],
        advantage_clip: Positive,
        buffer: Count,
        enough: Count,
        reduce: Reduce,
        kl: NonNegative,
        fraction: Share | None = None,
        **base: Any,
    ):
        """images: collected an epoch; batch: images an optimiser step; advantage: what rewards are standardised by (per_prompt: by the last
        `buffer` rewards of the prompt, once there are `enough`); kl: weight of the step KL; clip and kl are in the unit of `reduce`;
        fraction: of an image's trained steps, drawn for each update (null: all).
        """
        super().__init__(**base)
        self.updates: Updates = Updates(
            images, images_per_prompt, batch, inner_epochs, self.policy.trained_steps, self.micro_batch, self.processes, fraction=fraction
        )
        if form == "score_function":
            self.updates.demand_one("method.form=score_function")
        self.form, self.clip, self.advantage, self.advantage_clip = form, clip, advantage, advantage_clip
        self.statistics = PromptStatistics(buffer, enough)
        self.reduce, self.kl = reduce, kl

    def plan(self) -> dict[str, int]:
        each = self.policy.sampler.evaluations
        policy = {"policy": (self.updates.images * self.policy.sampler.steps + 3 * self.updates.trained_rows) * each}
        compared = self.updates.images * int(self.policy.trained_steps.sum())
        anchor = {self.policy.reference.who or "reference": compared * each} if self.kl > 0 else {}
        return policy | anchor

    def collect(self, prompts: list[str], draws: Draws) -> Minibatches:
        rollout, reward = self.sample(prompts, "image", draws.each("rollout", range(len(prompts))))
        advantage = of_scored(reward, prompts, self.standardised)
        if self.kl > 0:  # once a trajectory, however often it is learned from
            rollout = replace(rollout, anchor=self.policy.reference.means(rollout))
        mean, std = mean_and_std(reward)
        self.collected = {"reward": mean, "reward_std": std}
        return self.updates.of(rollout, advantage.clamp(-self.advantage_clip, self.advantage_clip), draws.one("minibatches"))

    def standardised(self, reward: Tensor, prompts: list[str]) -> Tensor:
        """Rewards [B] as advantages [B]."""
        match self.advantage:
            case "per_prompt":
                return self.statistics.advantage(reward, prompts)
            case "group":
                return group_advantage(reward, prompts, spread="group")
            case "group_mean":
                return group_advantage(reward, prompts, spread="batch")
            case "batch":
                return standardise(reward)
        return reward

    def loss(self, batch: Transition) -> tuple[Tensor, Metrics]:
        step = self.policy.at(batch)
        log_p = summed(step.log_prob(batch.y), "image")  # [N] log p_theta(x_{t-1} | x_t, c), in nats
        log_ratio = per_unit(log_p - batch.log_prob, self.policy.dimensions, self.reduce)
        if self.form == "importance_sampled":
            loss = clipped_surrogate(log_ratio, batch.advantage, self.clip).mean()  # DDPO-IS with PPO's clip
        else:
            loss = score_function(per_unit(log_p, self.policy.dimensions, self.reduce), batch.advantage).mean()  # DDPO-SF
        metrics = {
            "log_ratio": log_ratio.detach().mean(),
            "clipped": (log_ratio.detach().exp() - 1).abs().gt(self.clip).float().mean(),
            "approx_kl": 0.5 * (log_p - batch.log_prob).detach().square().mean(),
        }
        if batch.anchor is not None:
            kl = step.kl(Gaussian(batch.anchor, step.std)).flatten(1).sum(1)  # [N] nats, from the reference's step
            loss = loss + self.kl * per_unit(kl, self.policy.dimensions, self.reduce).mean()
            metrics["step_kl"] = kl.detach().mean()
        return loss, metrics

    def idle(self, batch: Transition) -> bool:
        return self.kl == 0 and not bool(batch.advantage.any())

    def get_extra_state(self) -> dict[str, list[float]]:
        return {prompt: list(rewards) for prompt, rewards in self.statistics.rewards.items()}

    def set_extra_state(self, state: dict[str, list[float]]) -> None:
        self.statistics.rewards = {prompt: deque(rewards, maxlen=self.statistics.buffer) for prompt, rewards in state.items()}
