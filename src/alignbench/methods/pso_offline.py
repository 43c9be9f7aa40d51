"""PSO, offline: given pictures against the distilled model's own samples, at its distilled time steps (2410.03190)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from alignbench.config import ConfigError
from alignbench.datasets.pictures import Pictures
from alignbench.methods.base import Method, Metrics
from alignbench.ranges import Count, NonNegative, Positive
from alignbench.rng import Draws, normal
from alignbench.schedule import Draw, Steps
from alignbench.tables import Noised, NoisedPair


class PSOOffline(Method):
    """With neg_defactor 1, prior_weight 0 and form preference it is Diffusion-DPO (2311.12908) on the distilled time steps alone."""

    def __init__(
        self,
        *,
        images: Count,
        batch: Count,
        steps: Count,
        form: Literal["preference", "hinge"],
        beta: Positive,
        neg_defactor: NonNegative,
        prior_weight: NonNegative,
        pictures: Pictures,
        **base: Any,
    ):
        """images: pictures an epoch, each with one sample of the distilled model; batch, steps: pairs an optimiser step and optimiser steps
        an epoch; form: against the distilled model's own loss, or a hinge without it; neg_defactor: what a sample's loss counts against
        a picture's; prior_weight: of the loss on the samples.
        """
        super().__init__(**base)
        self.updates: Steps = Steps(images, 1, batch, steps, self.micro_batch, self.processes)
        self.form, self.beta, self.neg_defactor, self.prior_weight = form, beta, neg_defactor, prior_weight
        self.pictures = pictures

    @property
    def queries(self) -> int:
        return 0

    @property
    def sources(self) -> tuple[str, ...]:
        return self.pictures.datasets

    def plan(self) -> dict[str, int]:
        sampler, rows, anchor = self.policy.sampler, self.updates.batch * self.updates.count, self.policy.reference.who or "reference"
        compared = 2 * rows if self.form == "preference" else 0
        return {"policy": 6 * rows * sampler.evaluations, anchor: (self.updates.images * sampler.steps + compared) * sampler.evaluations}

    def collect(self, prompts: list[str], draws: Draws) -> Draw:
        model, sampler, steps = self.policy.model, self.policy.sampler, self.updates
        pictures, texts = self.pictures.draw(steps.images, draws.one("pictures"))
        rollout = self.policy.reference.rollout(texts, "image", draws.each("rollout", range(len(texts))))
        with torch.no_grad():
            wanted = torch.cat([model.latents(part.to(model.device)) for part in pictures.split(self.policy.chunk)]).to(self.policy.shelf)
        if wanted.shape[1:] != rollout.x.shape[2:]:
            raise ConfigError(f"pictures of {pictures.shape[3]}x{pictures.shape[2]} pixels do not fit the model; set method.pictures.size")
        self.collected = {}

        def rows(step: int, part: Tensor) -> NoisedPair:
            own = draws.each("noise", (step * steps.batch + part).tolist())
            image = torch.randint(len(wanted), (steps.batch,), generator=draws.each("images", [step])[0])[part].to(wanted.device)
            k = torch.stack([torch.randint(sampler.steps, (), generator=each) for each in own]).to(wanted.device)
            t, eps, weight = sampler.time(model, k), normal(model.shape, own, like=wanted), torch.ones(len(part), device=wanted.device)
            win, lose = (Noised(x0[image], eps, t, rollout.cond[image], weight) for x0 in (wanted, rollout.x[:, -1]))
            return NoisedPair(win, lose)

        return self.updates.of(rows)

    def loss(self, batch: NoisedPair) -> tuple[Tensor, Metrics]:
        win, lose = (self._error(rows, "policy") for rows in (batch.win, batch.lose))
        margin = self.neg_defactor * lose - win
        if self.form == "preference":
            with torch.no_grad():
                anchor = self.policy.reference.who
                margin = margin - self.neg_defactor * self._error(batch.lose, anchor) + self._error(batch.win, anchor)
            loss = -F.logsigmoid(self.beta * margin)
        else:
            loss = F.relu(1 - self.beta * margin)
        metrics = {"margin": margin.detach().mean(), "win_error": win.detach().mean(), "lose_error": lose.detach().mean()}
        return (loss + self.prior_weight * lose).mean(), metrics

    def _error(self, rows: Noised, who: str | None) -> Tensor:
        """The released code's x0 error over (sigma / alpha)^2, which is the eps error: mean over the latent, [N]."""
        alpha, sigma = self.policy.model.alpha_sigma(rows.t)
        eps = self.policy.model.eps(alpha * rows.x0 + sigma * rows.eps, rows.t, rows.cond, who, self.policy.sampler.guidance)
        return (eps - rows.eps).square().flatten(1).mean(1)
