"""PSO, online: pairwise sample optimisation of a few-step model (2410.03190): its preference loss on the sampler's own steps."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from alignbench.methods.base import Method, Metrics
from alignbench.objectives import Reduce, per_unit, preference, preference_metrics, ranked
from alignbench.ranges import Count, Decay, NonNegative, Positive, Share
from alignbench.rng import Draws
from alignbench.schedule import Minibatches, Updates
from alignbench.tables import Pair, Transition


class PSO(Method):
    """Images of one prompt start from independent noise; all sampled steps that have a likelihood are trained: all but the last."""

    def __init__(
        self,
        *,
        images: Count,
        images_per_prompt: Count,
        batch: Count,
        inner_epochs: Count,
        beta: Positive,
        clip: Decay | None,
        ties: Literal["second_wins", "masked"],
        margin: NonNegative,
        reduce: Reduce,
        fraction: Share | None = None,
        **base: Any,
    ):
        """batch: pairs an optimiser step, of all pairs of a prompt's images; beta and clip are in the unit of `reduce`; clip: of the ratio
        to the distilled model (null: none); ties: as in the released code, or left out of the mean; margin: rewards closer than that tie;
        fraction: of a pair's trained steps, drawn for each update (null: all).
        """
        super().__init__(**base)
        self.updates: Updates = Updates(
            images, images_per_prompt, batch, inner_epochs, self.policy.trained_steps, self.micro_batch, self.processes, True, fraction
        )
        self.beta, self.clip, self.ties, self.margin, self.reduce = beta, clip, ties, margin, reduce

    def plan(self) -> dict[str, int]:
        each, anchor = self.policy.sampler.evaluations, self.policy.reference.who or "reference"
        return {
            "policy": (self.updates.images * self.policy.sampler.steps + 6 * self.updates.trained_rows) * each,
            anchor: self.spared,
        }

    @property
    def spared(self) -> int:
        return self.updates.images * int(self.policy.trained_steps.sum()) * self.policy.sampler.evaluations

    def collect(self, prompts: list[str], draws: Draws) -> Minibatches:
        rollout, scores = self.sample(prompts, "image", draws.each("rollout", range(len(prompts))))
        rollout = replace(rollout, log_prob=self.policy.reference_log_prob(rollout, "image"))
        win, lose, decided = ranked(scores[:, None], self.updates.images_per_prompt, self.margin)
        self.collected = {"reward": scores.nanmean().item(), "decided": decided.float().mean().item()}
        if self.ties == "second_wins":
            scored = ~(scores[win] + scores[lose]).isnan()
            win, lose, decided = torch.where(decided, win, lose), torch.where(decided, lose, win), scored
        return self.updates.of_pairs(rollout, win, lose, decided, draws.one("minibatches"))

    def loss(self, batch: Pair) -> tuple[Tensor, Metrics]:
        both = self.policy.log_ratio(Transition.cat([batch.win, batch.lose]), "image")  # in one forward: half as many, twice as large
        win, lose = per_unit(both, self.policy.dimensions, self.reduce).chunk(2)  # [N] log p_theta / p_ref of the steps taken
        loss = (batch.weight * preference(win, lose, self.beta, self.clip)).mean()
        return loss, preference_metrics(win, lose, batch.weight, self.clip)

    def idle(self, batch: Pair) -> bool:
        return not bool(batch.weight.any())
