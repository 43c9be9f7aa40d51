"""DI*: Diff-Instruct* (2410.20898), RLHF of a one-step generator under a score divergence; with kl it is DI++ (2410.18881)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from alignbench.methods.base import Method, Metrics
from alignbench.models.base import Spec
from alignbench.objectives import Divergence, Reduce, per_unit, score_divergence
from alignbench.policy import Policy
from alignbench.ranges import Count, Decay, Index, NonNegative, Positive
from alignbench.rng import Draws, normal
from alignbench.schedule import Draw, Steps
from alignbench.tables import Table


@dataclass(frozen=True)
class Turn(Table):
    """The random draws of one turn's rows; the images are made inside the loss, by the generator of that moment."""

    prompts: tuple[str, ...]
    z: Tensor  # [N,T,C,h,w] starting noise, then the noise of the sampler's steps
    k: Tensor  # [N] the step whose x0-prediction is taken
    eps: Tensor  # [N,C,h,w] noise of the diffused sample
    t: Tensor  # [N] its time

    def __len__(self) -> int:
        return len(self.z)


class CriticTurn(Turn):
    """The online score network learns the generator's law; the generator stands still."""


class GeneratorTurn(Turn):
    """The generator learns; the online score network stands still."""


class DIStar(Method):
    """Generator g (`policy`), online score network s_psi (`critic`), frozen guided reference, and the generator's moving average (`ema`).

    The generator is the sampler's x0-prediction: one call (sampler=one_step), or any of a few (sampler=few_step), reached by the
    generator's own earlier steps without gradient.
    """

    copies = ("critic", "ema")

    def __init__(
        self,
        *,
        batch: Count,
        turns: Count,
        critic_turns: Count,
        divergence: Divergence,
        huber: Positive,
        normalise: Literal["none", "sid"],
        guidance: NonNegative,
        placement: Literal["inside", "outside"],
        reward_weight: NonNegative,
        reduce: Reduce,
        times: tuple[Index, Index],
        ema: Decay,
        critic_lr: Positive,
        **base: Any,
    ):
        """batch: rows a turn; turns: generator turns an epoch, each after `critic_turns` of the critic; huber: c of the pseudo-Huber, in x0
        units; normalise: sid divides each sample's divergence by its mean |x0 - x0_reference|; guidance: of the reference (alpha_cfg),
        inside the divergence (DI*-IN) or as a reward beside it (DI*-OUT); reward_weight: alpha_rew; times: t is uniform between them.
        """
        super().__init__(**base)
        if reward_weight > 0 and not self.judge.reward.differentiable:
            raise ValueError(f"method.reward_weight={reward_weight:g} needs a gradient, which reward={self.judge.reward.name} has not")
        self.updates: Steps = Steps(
            batch * turns * (critic_turns + 1), 1, batch, turns * (critic_turns + 1), self.micro_batch, self.processes
        )
        self.turns, self.critic_turns = turns, critic_turns
        self.divergence, self.huber, self.normalise = divergence, huber, normalise
        self.guidance, self.placement, self.reward_weight = guidance, placement, reward_weight
        self.reduce, self.times, self.ema = reduce, times, ema
        self.critic_lr = critic_lr

    def grow(self, spec: Spec) -> None:
        model = self.policy.model
        model.grow("critic", spec)  # as the reference
        model.grow("ema", spec, model.start)
        for parameter in model.trainable("ema").values():
            parameter.requires_grad_(False)
        with torch.no_grad():  # an adapter's first weights are random
            for average, current in self._averaged():
                average.copy_(current)

    def _averaged(self) -> Iterable[tuple[Tensor, Tensor]]:
        return zip(self.policy.model.trainable("ema").values(), self.policy.trainable().values(), strict=True)

    @property
    def evaluated(self) -> Policy:
        return self.policy.of("ema")

    @property
    def queries(self) -> int:
        return self.updates.batch * self.turns if self.reward_weight > 0 else 0

    def plan(self) -> dict[str, int]:
        generator, steps = self.policy.sampler.evaluations, self.policy.sampler.steps
        made = self.updates.batch * self.turns
        earlier = (self.critic_turns + 1) * made * (steps - 1) * generator
        guided = 1 if self.guidance == 1 else 2
        through = 1 if self.divergence == "kl" else 3  # a forward pass, or one that the gradient flows through
        return {
            "policy": earlier + (self.critic_turns + 3) * made * generator,
            "critic": self.critic_turns * made * 3 + made * through,
            "reference": made * (guided * through if self.placement == "inside" else through + guided - 1),
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        critic = list(self.policy.model.trainable("critic").values())
        return self.optimizer([{"params": list(self.policy.trainable().values())}, {"params": critic, "lr": self.critic_lr}])

    def collect(self, prompts: list[str], draws: Draws) -> Draw:
        model, steps = self.policy.model, self.policy.sampler.steps
        low, high = self.times
        self.collected = {}

        def rows(step: int, part: Tensor) -> Turn:
            index = (step * self.updates.batch + part).tolist()
            own = draws.each("turn", index)
            device = model.device
            noise = normal((steps + 1, *model.shape), own, like=torch.empty(0, device=device, dtype=model.dtype))
            uniform = torch.stack([torch.rand(2, generator=each) for each in own])
            kind = GeneratorTurn if (step + 1) % (self.critic_turns + 1) == 0 else CriticTurn
            return kind(
                prompts=tuple(prompts[i % len(prompts)] for i in index),  # fewer than rows come again
                z=noise[:, :-1],
                k=(uniform[:, 0] * steps).long().to(device),
                eps=noise[:, -1],
                t=(low + uniform[:, 1] * (high + 1 - low)).long().to(device),
            )

        return self.updates.of(rows)

    def generated(self, turn: Turn, cond: Tensor) -> Tensor:
        """x_0 = g(z, c) [N,C,h,w]: the x0-prediction of step k, from states that the generator itself reached."""
        model, sampler, x = self.policy.model, self.policy.sampler, turn.z[:, 0]
        with torch.no_grad():
            for step in range(sampler.steps - 1):
                at = torch.full_like(turn.k, step)
                there = sampler.step(model, x, at, cond, "policy")
                x = torch.where((turn.k > step)[:, None, None, None], there.mean + there.std * turn.z[:, step + 1], x)
        return sampler.x0(model, x, turn.k, cond, "policy")

    def loss(self, batch: Turn) -> tuple[Tensor, Metrics]:
        model, t = self.policy.model, batch.t
        cond = model.encode(batch.prompts)
        alpha, sigma = model.alpha_sigma(t)
        match batch:
            case CriticTurn():  # denoising score matching on the generator's samples, lambda(t) = sigma_t^2
                with torch.no_grad():
                    x_t = alpha * self.generated(batch, cond) + sigma * batch.eps
                loss = (model.eps(x_t, t, cond, "critic") - batch.eps).square().mean()
                return loss, {"critic_loss": loss.detach()}
            case GeneratorTurn():
                x0 = self.generated(batch, cond)
                x_t = alpha * x0 + sigma * batch.eps
                inside = self.guidance if self.placement == "inside" else 1.0
                with torch.set_grad_enabled(self.divergence != "kl"), model.frozen("critic"):
                    critic = model.x0(x_t, t, cond, "critic")
                    reference = model.x0(x_t, t, cond, None, inside)
                value = score_divergence(self.divergence, critic, reference, x0, self.huber)
                guided = reference.detach()
                if self.placement == "outside" and self.guidance != 1:
                    with torch.no_grad():
                        away = reference - model.x0(x_t, t, model.encode([""]).expand_as(cond), None)  # s(c) - s(empty)
                    one = torch.ones_like(alpha)
                    scale = {"kl": one, "l2": sigma.square() / 2, "pseudo_huber": alpha}[self.divergence]  # one w(t) for both terms
                    value = value - (self.guidance - 1) * (scale * away * x0).flatten(1).sum(1)
                    guided = guided + (self.guidance - 1) * away
                if self.normalise == "sid":
                    value = value / (x0.detach() - guided).abs().flatten(1).mean(1).clamp(min=1e-5)
                loss = per_unit(value, self.policy.dimensions, self.reduce).mean()
                metrics = {"score_gap": (critic - reference).detach().flatten(1).norm(dim=1).mean()}
                if self.reward_weight > 0:
                    reward = self.judge.score(model.decode(x0), list(batch.prompts))
                    loss = loss - self.reward_weight * torch.where(reward.isnan(), 0, reward).mean()  # no score: its divergence alone
                    metrics["reward"] = reward.detach().nanmean()
                return loss, metrics
        raise TypeError(f"not a turn: {type(batch).__name__}")

    def on_train_batch_end(self, outputs: Any, batch: Turn, index: int) -> None:
        """The average follows each optimiser step of the generator."""
        if isinstance(batch, GeneratorTurn) and (index + 1) % self.updates.accumulate == 0:
            with torch.no_grad():
                for average, current in self._averaged():
                    average.lerp_(current, 1 - self.ema)
