"""A model and a sampler seen as a policy over denoising steps."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alignbench import ranks
from alignbench.gaussian import Gaussian
from alignbench.models.base import Diffusion, Who
from alignbench.rng import Generators, normal
from alignbench.samplers.base import Sampler
from alignbench.tables import Rollout, Transition

Over = Literal["image", "channels"]  # what a rollout's log-probability is summed over: [B,T] or the per-pixel map [B,T,h,w]


def summed(log_prob: Tensor, over: Over) -> Tensor:
    """Elementwise log-probability [N,C,h,w] -> [N] (image) or [N,h,w] (channels), in nats."""
    return log_prob.flatten(1).sum(1) if over == "image" else log_prob.sum(1)


class Policy(nn.Module):
    """`who` on `model`, sampled by `sampler`; `chunk` images go through the network at once in rollouts and decoding.

    offload: rollouts are kept in the host's memory; what is computed from them goes to the model's device part by part.
    """

    def __init__(self, model: Diffusion, sampler: Sampler, who: Who, chunk: int, offload: bool = False):
        super().__init__()
        self.model, self.sampler, self.who, self.chunk, self.offload = model, sampler, who, chunk, offload

    @property
    def reference(self) -> "Policy":
        """The same model and sampler with the weights that training starts from; nothing is copied."""
        return self.of(self.model.start)

    def of(self, who: Who) -> "Policy":
        """The same with other weights."""
        return Policy(self.model, self.sampler, who, self.chunk, self.offload)

    @property
    def shelf(self) -> torch.device:
        """Where rollouts are kept."""
        return torch.device("cpu") if self.offload else self.model.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The weights that training moves, by name; none of the reference's."""
        return {} if self.who is None or self.who == self.model.start else self.model.trainable(self.who)

    @property
    def moved(self) -> bool:
        """Whether training has changed it: until then it is the reference."""
        return self.who is not None and self.who != self.model.start and self.model.moved(self.who)

    @property
    def choosing(self) -> dict[str, Any]:
        """What its images depend on beside weights and sampler, as plain values; nothing, unless a judge chooses among them."""
        return {}

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

    def rollout(self, prompts: Sequence[str], over: Over, generators: Generators, x: Tensor | None = None) -> Rollout:
        """Sample one image a prompt; row i's noise comes from generators[i] alone. x: starting noise [B,C,h,w], else drawn first.

        Each process samples its share, and all get the whole. No gradients.
        """
        return ranks.gathered_table(Rollout.cat(list(self.chunks(prompts, over, generators, x))), len(prompts))

    def chunks(self, prompts: Sequence[str], over: Over, generators: Generators, x: Tensor | None = None) -> Iterator[Rollout]:
        """This process's share of a rollout, as it is made: `chunk` images at a time."""
        mine = ranks.mine(len(prompts))
        for start in range(0, len(mine), self.chunk):
            rows = mine[start : start + self.chunk]
            own = [  # a row repeated to fill this process's share must not draw from its own generator twice
                generators[row].clone_state() if start + i > 0 and mine[start + i - 1] == row else generators[row]
                for i, row in enumerate(rows)
            ]
            x_T = self.model.prior(own) if x is None else x[rows]
            yield self._rollout(self.model.encode([prompts[row] for row in rows]), over, own, x_T)

    @torch.no_grad()
    def _rollout(self, cond: Tensor, over: Over, generators: Generators, x: Tensor) -> Rollout:
        states, log_probs, trained = [x], [], self.trained_steps.tolist()
        on_host = torch.empty(0, dtype=x.dtype)
        noise = torch.stack([normal(x.shape[1:], generators, like=on_host) for _ in trained]).to(x.device)  # at once: no step waits
        for index, likely in enumerate(trained):
            step = self.sampler.step(self.model, x, torch.full((len(x),), index, device=x.device), cond, self.who)
            y = step.sample(noise[index])
            log_prob = step.log_prob(y) if likely else torch.zeros_like(y)
            log_probs.append(summed(log_prob, over))
            states.append(y)
            x = y
        return Rollout(x=torch.stack(states, 1), log_prob=torch.stack(log_probs, 1), cond=cond).to(self.shelf)

    def images(self, rollout: Rollout, rows: Sequence[int] | None = None) -> Tensor:
        """Decoded final images [B,3,H,W] in [0,1], or those of some rows."""
        final = rollout.x[:, -1] if rows is None else rollout.x[list(rows), -1]
        return torch.cat([self.model.decode(part.to(self.model.device)) for part in final.split(self.chunk)])

    def eps(self, rows: Transition) -> Tensor:
        """The guided noise prediction at recorded states [N,C,h,w], with gradient."""
        return self.model.eps(rows.x, self.sampler.time(self.model, rows.k), rows.cond, self.who, self.sampler.guidance)

    def log_ratio(self, rows: Transition, over: Over) -> Tensor:
        """log pi(y | x) of recorded steps, less the log-probability that stands in the rows: [N] or [N,h,w] in nats, with gradient."""
        return summed(self.at(rows).log_prob(rows.y), over) - rows.log_prob

    def log_prob(self, rollout: Rollout, over: Over) -> Tensor:
        """The log-probability of a rollout's steps under this policy, shaped as the rollout's own; no gradient."""
        return self._along(rollout, lambda rows: summed(self.at(rows).log_prob(rows.y), over))

    def reference_log_prob(self, own: Rollout, over: Over) -> Tensor:
        """The log-probability of this policy's own rollout under the reference. Before the first update that is the rollout's own, and
        nothing is computed.
        """
        return self.reference.log_prob(own, over) if self.moved else own.log_prob

    def means(self, rollout: Rollout) -> Tensor:
        """The mean of each trained step from a rollout's states: [B,T,C,h,w]; no gradient."""
        return self._along(rollout, lambda rows: self.at(rows).mean, like=rollout.x[:, 1:])

    def noises(self, rollout: Rollout) -> Tensor:
        """The guided noise prediction at each trained step's state: [B,T,C,h,w]; no gradient."""
        return self._along(rollout, self.eps, like=rollout.x[:, 1:])

    def path_kl(self, rollout: Rollout) -> Tensor:
        """KL(policy || reference) along each trajectory: the sum of its closed-form step KLs, [B] in nats (DPOK, lemma 4.2's bound)."""
        if self.who == self.model.start:
            return torch.zeros(len(rollout), device=rollout.x.device)
        return self._along(rollout, lambda rows: summed(self.at(rows).kl(self.reference.at(rows)), "image")).sum(1)

    @torch.no_grad()
    def _along(self, rollout: Rollout, value: Callable[[Transition], Tensor], like: Tensor | None = None) -> Tensor:
        """`value` of each trained step, shaped as `like` [B,T,...] (the log-probability), 0 where a step has no likelihood.

        Each process takes its share of the images.
        """
        mine = torch.tensor(ranks.mine(len(rollout)), device=rollout.x.device)
        total = torch.zeros_like(rollout.log_prob if like is None else like, dtype=rollout.x.dtype)[mine]
        nothing = torch.zeros(len(rollout), device=rollout.x.device)
        for part in torch.arange(len(mine), device=mine.device).split(self.chunk):
            for k in self.trained_steps.nonzero().squeeze(1).tolist():
                rows = rollout.steps(mine[part], torch.full_like(part, k), nothing).to(self.model.device)
                total[part, k] = value(rows).to(total)
        return ranks.gathered(total, len(rollout))
