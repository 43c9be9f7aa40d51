"""A model and a sampler seen as a policy over denoising steps."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from alignbench.gaussian import Gaussian
from alignbench.models.base import Diffusion, Who
from alignbench.rng import Generators
from alignbench.samplers.base import Sampler
from alignbench.tables import Rollout, Transition

Over = Literal["image", "channels"]  # what a rollout's log-probability is summed over: [B,T] or the per-pixel map [B,T,h,w]


def summed(log_prob: Tensor, over: Over) -> Tensor:
    """Elementwise log-probability [N,C,h,w] -> [N] (image) or [N,h,w] (channels), in nats."""
    return log_prob.flatten(1).sum(1) if over == "image" else log_prob.sum(1)


class Policy(nn.Module):
    """`who` on `model`, sampled by `sampler`; `chunk` images go through the network at once in rollouts and decoding."""

    def __init__(self, model: Diffusion, sampler: Sampler, who: Who, chunk: int):
        super().__init__()
        self.model, self.sampler, self.who, self.chunk = model, sampler, who, chunk

    @property
    def reference(self) -> "Policy":
        """The same model and sampler with the untouched weights; nothing is copied."""
        return Policy(self.model, self.sampler, None, self.chunk)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The weights that training moves, by name; none of the reference's."""
        return {} if self.who is None else self.model.trainable(self.who)

    @property
    def trained_steps(self) -> Tensor:
        """Which steps have a likelihood: [T] bool."""
        return self.sampler.stochastic(self.model)

    @property
    def dimensions(self) -> int:
        """How many elements the log-probability of one step of one image sums over."""
        channels, height, width = self.model.shape
        return channels * height * width

    def at(self, rows: Transition) -> Gaussian:
        """The step from recorded states, with gradient."""
        return self.sampler.step(self.model, rows.x, rows.k, rows.cond, self.who)

    @torch.no_grad()
    def rollout(self, prompts: Sequence[str], over: Over, generators: Generators, x: Tensor | None = None) -> Rollout:
        """Sample one image a prompt; row i's noise comes from generators[i] alone. x: starting noise [B,C,h,w], else drawn first."""
        cond = self.model.encode(prompts)
        parts = []
        for start in range(0, len(prompts), self.chunk):
            rows = slice(start, start + self.chunk)
            own = generators[rows]
            parts.append(self._rollout(cond[rows], over, own, self.model.prior(own) if x is None else x[rows]))
        return Rollout.cat(parts)

    def _rollout(self, cond: Tensor, over: Over, generators: Generators, x: Tensor) -> Rollout:
        states, log_probs = [x], []
        for index, likely in enumerate(self.trained_steps.tolist()):
            step = self.sampler.step(self.model, x, torch.full((len(x),), index, device=x.device), cond, self.who)
            y = step.sample(generators)
            log_prob = step.log_prob(y) if likely else torch.zeros_like(y)
            log_probs.append(summed(log_prob, over))
            states.append(y)
            x = y
        return Rollout(x=torch.stack(states, 1), log_prob=torch.stack(log_probs, 1), cond=cond)

    def images(self, rollout: Rollout) -> Tensor:
        """Decoded images [B,3,H,W] in [0,1]."""
        return torch.cat([self.model.decode(part) for part in rollout.x[:, -1].split(self.chunk)])

    @torch.no_grad()
    def path_kl(self, rollout: Rollout) -> Tensor:
        """KL(policy || reference) along each trajectory: the sum of its closed-form step KLs, [B] in nats (DPOK, lemma 4.2's bound)."""
        total = torch.zeros(len(rollout), device=rollout.x.device)
        if self.who is None:
            return total
        nothing = torch.zeros(len(rollout), device=rollout.x.device)
        for start in range(0, len(rollout), self.chunk):
            images = torch.arange(start, min(start + self.chunk, len(rollout)), device=rollout.x.device)
            for k in self.trained_steps.nonzero().squeeze(1).tolist():
                rows = rollout.steps(images, torch.full_like(images, k), nothing)
                total[images] += self.at(rows).kl(self.reference.at(rows)).flatten(1).sum(1).to(total.dtype)
        return total
