"""RWR: reward-weighted regression on the policy's own samples (DDPO, 2305.13301, section 5; Lee et al., 2302.12192), dense and sparse."""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from alignbench.methods.base import Method, Metrics
from alignbench.objectives import of_scored, reward_weights
from alignbench.ranges import Count, Fraction, NonNegative
from alignbench.rng import Draws, normal
from alignbench.schedule import Draw, Steps
from alignbench.tables import Noised


class RWR(Method):
    """The usual eps regression, each sample weighted by its reward; the guided eps is trained, as in the paper."""

    def __init__(
        self,
        *,
        images: Count,
        images_per_prompt: Count,
        batch: Count,
        steps: Count,
        form: Literal["dense", "sparse"],
        inverse_temperature: NonNegative,
        percentile: Fraction,
        **base: Any,
    ):
        """images: collected an epoch; batch, steps: rows an optimiser step and optimiser steps an epoch. dense: weights softmax(inverse
        temperature x reward) over a prompt's images, times their number; sparse: 1 at or above a prompt's percentile, else 0.
        """
        super().__init__(**base)
        self.updates: Steps = Steps(images, images_per_prompt, batch, steps, self.micro_batch, self.processes)
        self.form, self.inverse_temperature, self.percentile = form, inverse_temperature, percentile

    def plan(self) -> dict[str, int]:
        sampler, updates = self.policy.sampler, self.updates
        return {"policy": (updates.images * sampler.steps + 3 * updates.batch * updates.count) * sampler.evaluations}

    def collect(self, prompts: list[str], draws: Draws) -> Draw:
        rollout, reward = self.sample(prompts, "image", draws.each("rollout", range(len(prompts))))
        weighted = partial(reward_weights, form=self.form, inverse_temperature=self.inverse_temperature, percentile=self.percentile)
        weight = of_scored(reward, prompts, weighted)
        self.collected = {"reward": reward.nanmean().item(), "effective_images": (weight.sum().square() / weight.square().sum()).item()}
        x0, steps, model = rollout.x[:, -1], self.updates, self.policy.model

        def rows(step: int, part: Tensor) -> Noised:
            own = draws.each("noise", (step * steps.batch + part).tolist())
            image = torch.randint(len(x0), (steps.batch,), generator=draws.each("images", [step])[0])[part].to(x0.device)
            t = torch.stack([torch.randint(model.train_times, (), generator=each) for each in own]).to(x0.device)
            return Noised(x0[image], normal(model.shape, own, like=x0), t, rollout.cond[image], weight[image].to(x0))

        return self.updates.of(rows)

    def loss(self, batch: Noised) -> tuple[Tensor, Metrics]:
        model = self.policy.model
        alpha, sigma = model.alpha_sigma(batch.t)
        x_t = alpha * batch.x0 + sigma * batch.eps
        eps = model.eps(x_t, batch.t, batch.cond, "policy", self.policy.sampler.guidance)
        error = (eps - batch.eps).square().flatten(1).mean(1)
        return (batch.weight * error).mean(), {"eps_error": error.detach().mean()}

    def idle(self, batch: Noised) -> bool:
        return not bool(batch.weight.any())
