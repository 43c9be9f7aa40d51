"""SFT: the usual diffusion loss on given pictures, or on the reference's own best samples; the papers' first baseline."""

from typing import Any

import torch
from torch import Tensor

from alignbench.config import ConfigError
from alignbench.datasets.pictures import Pictures
from alignbench.methods.base import Method, Metrics
from alignbench.ranges import Count, Fraction
from alignbench.rng import Draws, normal
from alignbench.schedule import Draw, Steps
from alignbench.tables import Noised


class SFT(Method):
    """eps regression at uniform times; some prompts are dropped, which keeps the unconditional branch that guidance needs."""

    def __init__(
        self,
        *,
        images: Count,
        images_per_prompt: Count,
        batch: Count,
        steps: Count,
        drop_prompt: Fraction,
        pictures: Pictures | None,
        **base: Any,
    ):
        """pictures: where images come from; null: each epoch `images` samples of the reference, of which each prompt's best by the reward
        is kept. batch, steps: rows an optimiser step and optimiser steps an epoch.
        """
        super().__init__(**base)
        self.updates: Steps = Steps(images, images_per_prompt, batch, steps, self.micro_batch, self.processes)
        self.drop_prompt, self.pictures = drop_prompt, pictures

    @property
    def queries(self) -> int:
        return self.updates.images if self.pictures is None else 0

    @property
    def sources(self) -> tuple[str, ...]:
        return self.pictures.datasets if self.pictures is not None else ()

    def plan(self) -> dict[str, int]:
        sampler, updates, anchor = self.policy.sampler, self.updates, self.policy.reference.who or "reference"
        sampled = {anchor: updates.images * sampler.steps * sampler.evaluations} if self.pictures is None else {}
        return {"policy": 3 * updates.batch * updates.count} | sampled

    def collect(self, prompts: list[str], draws: Draws) -> Draw:
        model, steps = self.policy.model, self.updates
        if self.pictures is not None:
            images, texts = self.pictures.draw(steps.images, draws.one("pictures"))
            if tuple(images.shape[2:]) != tuple(model.decode(model.prior([draws.one("size")])).shape[2:]):
                raise ConfigError(f"pictures of {images.shape[3]}x{images.shape[2]} pixels do not fit the model; set method.pictures.size")
            with torch.no_grad():
                x0 = torch.cat([model.latents(part.to(model.device)) for part in images.split(self.policy.chunk)])
            weight = torch.ones(len(x0), device=x0.device, dtype=x0.dtype)
            self.collected = {}
        else:
            rollout, reward = self.sample(prompts, "image", draws.each("rollout", range(len(prompts))), policy=self.policy.reference)
            best = reward.nan_to_num(-torch.inf).reshape(-1, steps.images_per_prompt).argmax(1)
            best = (best + torch.arange(0, len(reward), steps.images_per_prompt, device=reward.device)).to(rollout.x.device)
            x0, texts = rollout.x[best, -1], [prompts[row] for row in best.tolist()]
            weight = 1 - reward[best].isnan().to(x0)  # a prompt of which no image has a score teaches nothing
            self.collected = {"reward": reward[best].nanmean().item()}

        def rows(step: int, part: Tensor) -> Noised:
            own = draws.each("noise", (step * steps.batch + part).tolist())
            image = torch.randint(len(x0), (steps.batch,), generator=draws.each("images", [step])[0])[part]
            t = torch.stack([torch.randint(model.train_times, (), generator=each) for each in own]).to(x0.device)
            dropped = [torch.rand((), generator=each).item() < self.drop_prompt for each in own]
            cond = model.encode(["" if gone else texts[i] for i, gone in zip(image.tolist(), dropped, strict=True)])
            image = image.to(x0.device)
            return Noised(x0[image], normal(model.shape, own, like=x0), t, cond, weight[image])

        return self.updates.of(rows)

    def loss(self, batch: Noised) -> tuple[Tensor, Metrics]:
        model = self.policy.model
        alpha, sigma = model.alpha_sigma(batch.t)
        error = (model.eps(alpha * batch.x0 + sigma * batch.eps, batch.t, batch.cond, "policy") - batch.eps).square().flatten(1).mean(1)
        return (batch.weight * error).mean(), {"eps_error": error.detach().mean()}

    def idle(self, batch: Noised) -> bool:
        return not bool(batch.weight.any())
