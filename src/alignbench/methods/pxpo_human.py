"""PXPO from a person's heat maps (2404.04356): what is painted over images of a run credits each place of their trajectories."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignbench.labels import heat, read_items, trajectories
from alignbench.methods.base import Method, Metrics
from alignbench.objectives import Reduce, clipped_surrogate, per_unit
from alignbench.policy import summed
from alignbench.ranges import Count, Positive, Text
from alignbench.rng import Draws
from alignbench.schedule import Minibatches, Updates
from alignbench.tables import Rollout, Transition


class PXPOHuman(Method):
    """A site's advantage is what was painted above it, from -1 to 1; images without a heat map are left out. No reward is asked."""

    def __init__(self, *, path: Text, batch: Count, inner_epochs: Count, clip: Positive, reduce: Reduce, **base: Any):
        """path: a labels folder with heat maps; batch: images an optimiser step; clip: of a site's ratio, as PXPO's. Ratios are to the
        weights that training starts from, which should have made the images. Raises MissingAsset, ValueError for a set of another sampler.
        """
        super().__init__(**base)
        shape = (self.policy.sampler.steps + 1, *self.policy.model.shape)
        x, painted = trajectories(path, vars(self.policy.sampler), shape), heat(path)
        if len(painted) < batch:
            raise ValueError(f"method.batch={batch}: {path}/heat has {len(painted)} heat maps; paint more, or lower it")
        prompts = [group.prompt for group in read_items(path).groups for _ in group.images]
        self.x, self.prompts = x[list(painted)], [prompts[image] for image in painted]
        self.heat = torch.cat([F.adaptive_avg_pool2d(each[None], shape[2:]) for each in painted.values()])  # [images,h,w]
        self.updates: Updates = Updates(
            len(painted) // batch * batch, 1, batch, inner_epochs, self.policy.trained_steps, self.micro_batch, self.processes
        )
        self.clip, self.reduce = clip, reduce
        self.rollout: Rollout | None = None

    @property
    def queries(self) -> int:
        return 0

    def plan(self) -> dict[str, int]:
        """The one pass over the labelled trajectories, in the first epoch of a process, is left out."""
        return {"policy": 3 * self.updates.trained_rows * self.policy.sampler.evaluations}

    def collect(self, prompts: list[str], draws: Draws) -> Minibatches:
        self.collected = {}
        if self.rollout is None:
            model = self.policy.model
            x = self.x.to(self.policy.shelf, model.dtype)
            rollout = Rollout(x, x.new_zeros(len(x), x.shape[1] - 1, *x.shape[3:]), model.encode(self.prompts).to(x.device))
            self.rollout = replace(rollout, log_prob=self.policy.reference.log_prob(rollout, "channels"))
        return self.updates.of(self.rollout, self.heat.to(self.rollout.x), draws.one("minibatches"))

    def loss(self, batch: Transition) -> tuple[Tensor, Metrics]:
        channels, height, width = self.policy.model.shape
        log_p = summed(self.policy.at(batch).log_prob(batch.y), "channels")  # [N,h,w] log p(x_{t-1}^ij | x_t, c), in nats
        log_ratio = per_unit(log_p - batch.log_prob, channels, self.reduce)
        loss = per_unit(clipped_surrogate(log_ratio, batch.advantage, self.clip).sum((1, 2)), height * width, self.reduce).mean()
        metrics = {
            "log_ratio": log_ratio.detach().mean(),
            "clipped": (log_ratio.detach().exp() - 1).abs().gt(self.clip).float().mean(),
            "approx_kl": 0.5 * (log_p - batch.log_prob).detach().sum((1, 2)).square().mean(),
        }
        return loss, metrics

    def idle(self, batch: Transition) -> bool:
        return not bool(batch.advantage.any())
