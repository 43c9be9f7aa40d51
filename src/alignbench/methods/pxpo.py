"""PXPO: pixel-wise policy optimisation (2404.04356): DDPO with the reward, and so the credit, of each pixel of its own."""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from alignbench.methods.base import Method, Metrics
from alignbench.objectives import EPSILON, Reduce, clipped_surrogate, mean_and_std, of_scored, per_unit, score_function, standardise
from alignbench.policy import summed
from alignbench.ranges import Count, Positive, Share
from alignbench.rng import Draws
from alignbench.schedule import Minibatches, Updates
from alignbench.tables import Transition

Normalise = Literal["none", "batch", "per_pixel", "per_prompt", "group", "group_mean"]


class PXPO(Method):
    """Each latent site (i, j) is credited with the reward of the image region above it.

    The paper's estimator is sum_ij r_ij sum_t grad log p(x_{t-1}^ij | x_t, c): DDPO's without the cross terms r_ij grad log p^kl. It is
    biased: what site kl does at step t reaches pixel ij at step 0 through the network, and that is left out. Weights are shared, so a
    reward on one region may still change another.
    """

    def __init__(
        self,
        *,
        images: Count,
        images_per_prompt: Count,
        batch: Count,
        inner_epochs: Count,
        form: Literal["score_function", "importance_sampled"],
        clip: Positive,
        normalise: Normalise,
        advantage_clip: Positive,
        reduce: Reduce,
        fraction: Share | None = None,
        **base: Any,
    ):
        """form: the paper's, or a ratio clipped at each site (ours); clip: of a site's ratio, its log-ratio reduced over the channels as in
        `reduce`; normalise: over all sites of the batch; each site over the batch; all sites of a prompt's images; each site over the
        prompt's images, by its own std (group) or on one scale for all sites (group_mean). fraction: as DDPO's.
        """
        super().__init__(**base)
        if not self.judge.reward.spatial:
            raise ValueError(f"method=pxpo needs a pixel map, which reward={self.judge.reward.name} has not; reward=colour has")
        self.updates: Updates = Updates(
            images, images_per_prompt, batch, inner_epochs, self.policy.trained_steps, self.micro_batch, self.processes, fraction=fraction
        )
        if form == "score_function":
            self.updates.demand_one("method.form=score_function")
        self.form, self.clip = form, clip
        self.normalise, self.advantage_clip, self.reduce = normalise, advantage_clip, reduce

    def plan(self) -> dict[str, int]:
        return {
            "policy": (self.updates.images * self.policy.sampler.steps + 3 * self.updates.trained_rows) * self.policy.sampler.evaluations
        }

    def collect(self, prompts: list[str], draws: Draws) -> Minibatches:
        rollout = self.policy.rollout(prompts, "channels", draws.each("rollout", range(len(prompts))))
        pixels = self.score_map(rollout, prompts)  # [B,H,W]
        sites = F.adaptive_avg_pool2d(pixels[:, None], self.policy.model.shape[1:])[:, 0]  # [B,h,w]
        mean, std = mean_and_std(pixels.flatten(1).mean(1))
        self.collected = {"reward": mean, "reward_std": std}
        advantage = of_scored(sites, prompts, partial(normalised, how=self.normalise)).clamp(-self.advantage_clip, self.advantage_clip)
        return self.updates.of(rollout, advantage, draws.one("minibatches"))

    def loss(self, batch: Transition) -> tuple[Tensor, Metrics]:
        channels, height, width = self.policy.model.shape
        log_p = summed(self.policy.at(batch).log_prob(batch.y), "channels")  # [N,h,w] log p(x_{t-1}^ij | x_t, c), in nats
        log_ratio = per_unit(log_p - batch.log_prob, channels, self.reduce)
        if self.form == "score_function":
            sites = score_function(per_unit(log_p, channels, self.reduce), batch.advantage)
        else:
            sites = clipped_surrogate(log_ratio, batch.advantage, self.clip)
        loss = per_unit(sites.sum((1, 2)), height * width, self.reduce).mean()
        metrics = {
            "log_ratio": log_ratio.detach().mean(),
            "clipped": (log_ratio.detach().exp() - 1).abs().gt(self.clip).float().mean(),
            "approx_kl": 0.5 * (log_p - batch.log_prob).detach().sum((1, 2)).square().mean(),
        }
        return loss, metrics

    def idle(self, batch: Transition) -> bool:
        return not bool(batch.advantage.any())


def normalised(sites: Tensor, prompts: list[str], how: Normalise) -> Tensor:
    """A map [B,h,w] as an advantage of the same shape. A site that earns the same everywhere it is compared has none."""
    match how:
        case "none":
            return sites
        case "batch":
            return standardise(sites)
        case "per_pixel":
            return standardise(sites, over=(0,))
        case "per_prompt" | "group" | "group_mean":
            result = torch.zeros_like(sites)
            for prompt in dict.fromkeys(prompts):
                members = torch.tensor([each == prompt for each in prompts], device=sites.device)
                own = sites[members]
                match how:
                    case "per_prompt":
                        result[members] = standardise(own)
                    case "group":
                        result[members] = standardise(own, over=(0,))
                    case "group_mean":
                        result[members] = torch.where(own.amax(0) == own.amin(0), 0.0, own - own.mean(0))
            return result / (result.std(correction=0) + EPSILON) if how == "group_mean" else result
