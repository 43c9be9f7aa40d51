"""DRaFT-K: the reward's own gradient through the last K denoising steps (Clark et al., 2309.17400), with a KL to the reference on them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignbench.methods.base import Method, Metrics
from alignbench.objectives import Reduce, per_unit
from alignbench.ranges import Count, NonNegative
from alignbench.rng import Draws, normal
from alignbench.schedule import Draw, Steps
from alignbench.tables import Table


@dataclass(frozen=True)
class Noise(Table):
    """The random draws behind some images, which the policy of the moment makes inside the loss."""

    prompts: tuple[str, ...]
    z: Tensor  # [N,T+1,C,h,w] starting noise, then the noise of each step

    def __len__(self) -> int:
        return len(self.z)


class DRaFT(Method):
    """max E[r(x_0)] - kl * KL(path || reference's path), by gradients that go back K steps and no further."""

    def __init__(self, *, batch: Count, steps: Count, last: Count, kl: NonNegative, reduce: Reduce, **base: Any):
        """batch, steps: images an optimiser step, and optimiser steps an epoch; last: K, the denoising steps that are trained; kl: weight
        of the step KLs' sum over those of the K steps that have a likelihood, in the unit of `reduce`.
        """
        super().__init__(**base)
        policy, depth = self.policy, self.policy.sampler.steps
        if not self.judge.reward.differentiable:
            raise ValueError(f"method=draft needs a gradient, which reward={self.judge.reward.name} has not")
        if last > depth:
            raise ValueError(f"method.last={last}: the sampler has {depth} steps; set at most that many")
        self.updates: Steps = Steps(batch * steps, 1, batch, steps, self.micro_batch, self.processes)
        self.first = depth - last
        likely = policy.trained_steps.tolist()
        self.charged = [kl > 0 and index >= self.first and likely[index] for index in range(depth)]
        if kl > 0 and not any(self.charged):
            raise ValueError(
                f"method.kl={kl:g}: none of the last {last} steps has a likelihood, so no KL is measured; "
                "raise method.last or sampler.eta, or set method.kl=0"
            )
        self.kl, self.reduce = kl, reduce
        self.silent = False  # whether no image of the last batch had a score

    def plan(self) -> dict[str, int]:
        sampler, images = self.policy.sampler, self.updates.images
        policy = images * (self.first + 3 * (sampler.steps - self.first)) * sampler.evaluations
        # the gradient of a later step's KL goes through the reference too, into the states that the policy led to
        anchor = images * sum(1 if index == self.first else 3 for index, there in enumerate(self.charged) if there) * sampler.evaluations
        return {"policy": policy} | ({self.policy.reference.who or "reference": anchor} if anchor else {})

    def collect(self, prompts: list[str], draws: Draws) -> Draw:
        model, batch = self.policy.model, self.updates.batch
        self.collected = {}

        def rows(step: int, part: Tensor) -> Noise:
            index = (step * batch + part).tolist()
            like = torch.empty(0, device=model.device, dtype=model.dtype)
            z = normal((self.policy.sampler.steps + 1, *model.shape), draws.each("image", index), like)
            return Noise(tuple(prompts[i] for i in index), z)

        return self.updates.of(rows)

    def loss(self, batch: Noise) -> tuple[Tensor, Metrics]:
        model, sampler, x = self.policy.model, self.policy.sampler, batch.z[:, 0]
        cond, kl = model.encode(batch.prompts), torch.zeros(len(batch), device=x.device, dtype=x.dtype)
        for index, charged in enumerate(self.charged):
            k = torch.full((len(x),), index, device=x.device)
            with torch.set_grad_enabled(index >= self.first):
                step = sampler.step(model, x, k, cond, self.policy.who)
                if charged:
                    kl = kl + step.kl(sampler.step(model, x, k, cond, model.start)).flatten(1).sum(1)
                x = step.mean + step.std * batch.z[:, index + 1]
        reward = self.judge.score(model.decode(x), list(batch.prompts))
        self.silent = bool(reward.isnan().all())
        loss = -torch.where(reward.isnan(), 0, reward).mean()  # no score: its KL alone
        metrics = {"reward": reward.detach().nanmean()}
        if self.kl > 0:
            loss = loss + self.kl * per_unit(kl, self.policy.dimensions, self.reduce).mean()
            metrics["step_kl"] = kl.detach().mean() / sum(self.charged)
        return loss, metrics

    def idle(self, batch: Noise) -> bool:
        """Known once the images are made, so of the batch that `loss` saw last."""
        return self.kl == 0 and self.silent
