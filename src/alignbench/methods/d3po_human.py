"""D3PO from a person's choices (2311.13231, section 5): DPO on the steps of images labelled with `alignbench label`."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from alignbench.labels import preferences, read_items, trajectories
from alignbench.methods.base import Method, Metrics
from alignbench.objectives import Reduce, per_unit, preference, preference_metrics
from alignbench.ranges import Count, Decay, Positive, Text
from alignbench.rng import Draws
from alignbench.schedule import Minibatches, Updates
from alignbench.tables import Pair, Rollout, Transition


class D3POHuman(Method):
    """The chosen image of a group is preferred to each other one; groups without a preference are left out. No reward is asked."""

    def __init__(self, *, path: Text, batch: Count, inner_epochs: Count, beta: Positive, clip: Decay | None, reduce: Reduce, **base: Any):
        """path: a labels folder; batch: pairs an optimiser step; beta and clip are in the unit of `reduce`. Ratios are to the weights that
        training starts from, whoever made the images. Raises MissingAsset, ValueError for a set of another sampler.
        """
        super().__init__(**base)
        shape = (self.policy.sampler.steps + 1, *self.policy.model.shape)
        self.x, items = trajectories(path, vars(self.policy.sampler), shape), read_items(path)
        self.prompts = [group.prompt for group in items.groups for _ in group.images]
        first = [sum(len(group.images) for group in items.groups[:index]) for index in range(len(items.groups))]
        self.pairs = [
            (first[group] + best, first[group] + other)
            for group, best in preferences(path)
            if best is not None
            for other in range(len(items.groups[group].images))
            if other != best
        ]
        if len(self.pairs) < batch:
            raise ValueError(f"method.batch={batch}: {path} decides {len(self.pairs)} pairs; label more, or lower it")
        self.updates: Updates = Updates(
            len(self.pairs) // batch * batch, 1, batch, inner_epochs, self.policy.trained_steps, self.micro_batch, self.processes
        )
        self.beta, self.clip, self.reduce = beta, clip, reduce
        self.rollout: Rollout | None = None

    @property
    def queries(self) -> int:
        return 0

    def plan(self) -> dict[str, int]:
        """The reference's one pass over the labelled trajectories, in the first epoch of a process, is left out."""
        return {"policy": 6 * self.updates.trained_rows * self.policy.sampler.evaluations}

    def collect(self, prompts: list[str], draws: Draws) -> Minibatches:
        self.collected = {}
        if self.rollout is None:
            model = self.policy.model
            x = self.x.to(self.policy.shelf, model.dtype)
            rollout = Rollout(x, x.new_zeros(len(x), x.shape[1] - 1), model.encode(self.prompts).to(x.device))
            self.rollout = replace(rollout, log_prob=self.policy.reference.log_prob(rollout, "image"))
        win, lose = torch.tensor(self.pairs, device=self.rollout.x.device).unbind(1)
        return self.updates.of_pairs(self.rollout, win, lose, torch.ones_like(win, dtype=torch.bool), draws.one("minibatches"))

    def loss(self, batch: Pair) -> tuple[Tensor, Metrics]:
        both = self.policy.log_ratio(Transition.cat([batch.win, batch.lose]), "image")  # in one forward: half as many, twice as large
        win, lose = per_unit(both, self.policy.dimensions, self.reduce).chunk(2)  # [N] log p_theta / p_ref of the steps taken
        loss = (batch.weight * preference(win, lose, self.beta, self.clip)).mean()
        return loss, preference_metrics(win, lose, batch.weight, self.clip)
