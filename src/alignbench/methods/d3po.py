"""D3PO: direct preference for denoising diffusion policy optimisation (Yang et al., 2311.13231): DPO on each denoising step."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alignbench.methods.base import Method, Metrics
from alignbench.objectives import Reduce, per_unit, preference, preference_metrics, ranked
from alignbench.ranges import Count, Decay, NonNegative, Positive, Share
from alignbench.rewards.base import Reward
from alignbench.rewards.judge import Judge
from alignbench.rng import Draws
from alignbench.schedule import Minibatches, Updates
from alignbench.tables import Pair, Transition


class D3PO(Method):
    """Images of one prompt share their starting noise; every step of the preferred one is preferred to the other's."""

    def __init__(
        self,
        *,
        images: Count,
        images_per_prompt: Count,
        batch: Count,
        inner_epochs: Count,
        beta: Positive,
        clip: Decay | None,
        reference: Literal["initial", "moving"],
        criteria: list[Reward],
        margin: NonNegative,
        reduce: Reduce,
        fraction: Share | None = None,
        **base: Any,
    ):
        """batch: pairs an optimiser step, of all pairs of a prompt's images; beta and clip are in the unit of `reduce`; clip: of the ratio
        to the reference (null: none); reference: where training starts, or the policy that made the epoch's images; criteria: more
        rewards: a winner is no worse by any, the reward included, and better by one; margin: two images closer than that by all are a tie;
        fraction: of a pair's trained steps, drawn for each update (null: all).
        """
        super().__init__(**base)
        self.updates: Updates = Updates(
            images, images_per_prompt, batch, inner_epochs, self.policy.trained_steps, self.micro_batch, self.processes, True, fraction
        )
        self.beta, self.clip, self.reference, self.margin, self.reduce = beta, clip, reference, margin, reduce
        self.criteria = nn.ModuleList(Judge(each, self.policy.model.meters, self.judge.guard) for each in criteria)

    @property
    def queries(self) -> int:
        return self.updates.images * len(self.judges)

    @property
    def judges(self) -> list[Judge]:
        return [self.judge, *self.criteria]

    def plan(self) -> dict[str, int]:
        each, anchor = self.policy.sampler.evaluations, self.policy.reference.who or "reference"
        policy = {"policy": (self.updates.images * self.policy.sampler.steps + 6 * self.updates.trained_rows) * each}
        return policy | ({anchor: self.spared} if self.reference == "initial" else {})

    @property
    def spared(self) -> int:
        compared = self.updates.images * int(self.policy.trained_steps.sum()) * self.policy.sampler.evaluations
        return compared if self.reference == "initial" else 0

    def collect(self, prompts: list[str], draws: Draws) -> Minibatches:
        each = self.updates.images_per_prompt
        start = self.policy.model.prior(draws.each("start", range(len(prompts) // each))).repeat_interleave(each, 0)
        rollout, reward = self.sample(prompts, "image", draws.each("rollout", range(len(prompts))), start)
        scores = torch.stack([reward, *(self.score(rollout, prompts, judge) for judge in self.judges[1:])], 1)  # [B,criteria]
        if self.reference == "initial":
            rollout = replace(rollout, log_prob=self.policy.reference_log_prob(rollout, "image"))
        win, lose, decided = ranked(scores, each, self.margin)
        self.collected = {"reward": reward.nanmean().item(), "decided": decided.float().mean().item()}
        return self.updates.of_pairs(rollout, win, lose, decided, draws.one("minibatches"))

    def loss(self, batch: Pair) -> tuple[Tensor, Metrics]:
        both = self.policy.log_ratio(Transition.cat([batch.win, batch.lose]), "image")  # in one forward: half as many, twice as large
        win, lose = per_unit(both, self.policy.dimensions, self.reduce).chunk(2)  # [N] log p_theta / p_ref of the steps taken
        loss = (batch.weight * preference(win, lose, self.beta, self.clip)).mean()
        return loss, preference_metrics(win, lose, batch.weight, self.clip)

    def idle(self, batch: Pair) -> bool:
        return not bool(batch.weight.any())
