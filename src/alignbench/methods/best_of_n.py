"""Best of n: no training; of n samples of the reference the one that the reward likes best. n = 1 is the reference itself."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alignbench.methods.base import Method, Metrics
from alignbench.policy import Over, Policy
from alignbench.ranges import Count
from alignbench.rewards.judge import Judge
from alignbench.rng import Draws, Generators
from alignbench.schedule import Draw, Steps
from alignbench.tables import Rollout


class Best(Policy):
    """Rolls out n times from each generator and keeps the trajectory with the highest score; the first is the reference's own."""

    def __init__(self, policy: Policy, judge: Judge, n: int):
        super().__init__(policy.model, policy.sampler, policy.model.start, policy.chunk, policy.offload)
        self.judge, self.n = judge, n

    @property
    def choosing(self) -> dict[str, Any]:
        return {"best of": self.n, "judge": self.judge.identity} if self.n > 1 else {}

    def rollout(self, prompts: Sequence[str], over: Over, generators: Generators, x: Tensor | None = None) -> Rollout:
        texts = list(prompts)
        best = super().rollout(texts, over, generators, x)
        if self.n == 1:
            return best
        highest = self._scored(best, texts)
        for _ in range(self.n - 1):
            other = super().rollout(texts, over, generators, x)
            score = self._scored(other, texts)
            better = (score > highest) | (highest.isnan() & ~score.isnan())
            highest = torch.where(better, score, highest)
            better = better.to(best.x.device)
            best = Rollout(
                x=torch.where(better[:, None, None, None, None], other.x, best.x),
                log_prob=torch.where(better.reshape(-1, *[1] * (best.log_prob.ndim - 1)), other.log_prob, best.log_prob),
                cond=best.cond,
            )
        return best

    @torch.no_grad()
    def _scored(self, rollout: Rollout, prompts: list[str]) -> Tensor:
        return self.judge.score_in_parts(self.images(rollout), prompts, self.chunk)

    def path_kl(self, rollout: Rollout) -> Tensor:
        """The upper bound log n - (n - 1) / n on the KL of the best of n to the reference, in nats (Beirami et al., 2401.01879)."""
        return torch.full((len(rollout),), math.log(self.n) - (self.n - 1) / self.n, device=rollout.x.device)


class BestOfN(Method):
    """The anchor rows of a table: the model as it is, and what a reward is worth with it alone, at n times its cost."""

    def __init__(self, *, n: Count, **base: Any):
        super().__init__(**base)
        self.n = n
        self.updates = Steps(0, 1, self.processes, 0, self.micro_batch, self.processes)

    @property
    def evaluated(self) -> Policy:
        return Best(self.policy, self.judge, self.n)

    @property
    def optimises(self) -> bool:
        return self.n > 1

    def plan(self) -> dict[str, int]:
        return {}

    def collect(self, prompts: list[str], draws: Draws) -> Draw:
        raise NotImplementedError("the best of n does not train")

    def loss(self, batch: Any) -> tuple[Tensor, Metrics]:
        raise NotImplementedError("the best of n does not train")
