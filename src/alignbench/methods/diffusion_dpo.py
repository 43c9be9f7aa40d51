"""Diffusion-DPO: of given pairs of images the preferred one's noise is to be predicted better than the reference does it (2311.12908)."""

from typing import Any

import torch
from torch import Tensor

from alignbench import ranks
from alignbench.config import ConfigError
from alignbench.datasets.pairs import Pairs
from alignbench.methods.base import Method, Metrics
from alignbench.objectives import Reduce, per_unit, preference, preference_metrics
from alignbench.ranges import Count, Fraction, Positive
from alignbench.rng import Draws, Generators, normal
from alignbench.schedule import Draw, Steps
from alignbench.tables import Noised, NoisedPair


class DiffusionDPO(Method):
    """Equation 14 as the released code scales it: both images of a pair get one noise and one time. Nothing is sampled or scored."""

    def __init__(self, *, batch: Count, steps: Count, beta: Positive, reduce: Reduce, drop_prompt: Fraction, pairs: Pairs, **base: Any):
        """batch, steps: pairs an optimiser step, and optimiser steps an epoch; beta: in the unit of `reduce`, of half the squared error;
        drop_prompt: share of pairs that are learned from without their prompt.
        """
        super().__init__(**base)
        self.updates: Steps = Steps(batch * steps, 1, batch, steps, self.micro_batch, self.processes)
        self.beta, self.reduce, self.drop_prompt, self.pairs = beta, reduce, drop_prompt, pairs

    @property
    def queries(self) -> int:
        return 0

    @property
    def sources(self) -> tuple[str, ...]:
        return self.pairs.datasets

    def plan(self) -> dict[str, int]:
        return {"policy": 6 * self.updates.images, self.policy.reference.who or "reference": 2 * self.updates.images}

    def collect(self, prompts: list[str], draws: Draws) -> Draw:
        model, steps = self.policy.model, self.updates
        self.collected = {"decided": self.pairs.decided}
        with torch.no_grad():
            pixels = tuple(model.decode(model.prior([draws.one("size")])).shape[2:])

        def rows(step: int, part: Tensor) -> NoisedPair:
            index = (step * steps.batch + part).tolist()
            own = draws.each("noise", index)
            win, lose, texts, weight = self._drawn(draws.each("pairs", index), pixels)
            t = torch.stack([torch.randint(model.train_times, (), generator=each) for each in own]).to(model.device)
            dropped = [torch.rand((), generator=each).item() < self.drop_prompt for each in own]
            cond = model.encode(["" if gone else text for text, gone in zip(texts, dropped, strict=True)])
            eps, weight = normal(model.shape, own, like=win), weight.to(win)
            return NoisedPair(*(Noised(x0, eps, t, cond, weight) for x0 in (win, lose)))

        return self.updates.of(rows)

    def _drawn(self, generators: Generators, pixels: tuple[int, ...]) -> tuple[Tensor, Tensor, list[str], Tensor]:
        """A pair from each generator, as latents, of images of that many pixels; what is wrong with one is said by every process."""
        found: list[tuple[Tensor, Tensor, list[str], Tensor]] = []
        failure = None
        try:
            found = [self.pairs.draw(1, each) for each in generators]
            if tuple(found[0][0].shape[2:]) != pixels:
                given, wanted = ("x".join(map(str, reversed(size))) for size in (found[0][0].shape[2:], pixels))
                raise ConfigError(f"pairs of {given} pixels do not fit the model, which makes {wanted}; set method.pairs, or its size")
        except ConfigError as error:
            failure = error
        ranks.agree(failure)
        wins, loses, texts, weights = zip(*found, strict=True)
        win, lose = (self._latents(torch.cat(images)) for images in (wins, loses))
        return win, lose, [text for (text,) in texts], torch.cat(weights)

    @torch.no_grad()
    def _latents(self, images: Tensor) -> Tensor:
        model = self.policy.model
        return torch.cat([model.latents(part.to(model.device)) for part in images.split(self.policy.chunk)]).to(model.dtype)

    def loss(self, batch: NoisedPair) -> tuple[Tensor, Metrics]:
        win, lose = (self._error(rows, "policy") for rows in (batch.win, batch.lose))
        with torch.no_grad():
            win_ref, lose_ref = (self._error(rows, self.policy.reference.who) for rows in (batch.win, batch.lose))
        d, weight = self.policy.dimensions, batch.win.weight
        ratio_win, ratio_lose = (per_unit((ref - error) / 2, d, self.reduce) for error, ref in ((win, win_ref), (lose, lose_ref)))
        loss = (weight * preference(ratio_win, ratio_lose, self.beta, None)).mean()
        errors = {"win_error": win.detach().mean() / d, "lose_error": lose.detach().mean() / d}
        return loss, preference_metrics(ratio_win, ratio_lose, weight, None) | errors

    def _error(self, rows: Noised, who: str | None) -> Tensor:
        """|eps_theta(x_t) - eps|^2, unguided: [N]."""
        alpha, sigma = self.policy.model.alpha_sigma(rows.t)
        eps = self.policy.model.eps(alpha * rows.x0 + sigma * rows.eps, rows.t, rows.cond, who)
        return (eps - rows.eps).square().flatten(1).sum(1)

    def idle(self, batch: NoisedPair) -> bool:
        return not bool(batch.win.weight.any())
