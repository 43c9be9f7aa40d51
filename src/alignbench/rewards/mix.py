"""Several judges at once: their weighted sum, or one of them drawn at random for all images of a prompt; each judge normalised."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate, chain

import torch
from torch import Tensor, nn

from alignbench.ranges import Index, NonNegative, Positive
from alignbench.rewards.base import Reward
from alignbench.rewards.content import contents


class Mix(Reward):
    """sum_j weight_j (score_j - mean_j) / std_j; a judge whose std is null counts as it is."""

    name = "mix"
    differentiable = True  # these two say what can be mixed; what a mix can do depends on its judges
    spatial = True
    range = (-float("inf"), float("inf"))
    unit = "weighted sum of standard deviations"
    licence = "those of its judges"
    backbones = ()
    datasets = ()

    def __init__(self, *, judges: list[Reward], weights: list[float], means: list[float], stds: list[Positive | None]):
        """weights, means, stds: one a judge; means and stds: of its scores on the reference's images."""
        super().__init__()
        for key, numbers in (("weights", weights), ("means", means), ("stds", stds)):
            if len(numbers) != len(judges) or not judges:
                raise ValueError(
                    f"reward.{key}: {len(numbers)} for {len(judges)} judges; give reward.judges, weights, means, stds one each"
                )
        self.judges = nn.ModuleList(judges)
        self.weights, self.means, self.stds = list(weights), list(means), list(stds)
        self.differentiable = all(judge.differentiable for judge in judges)  # type: ignore[misc]
        self.spatial = all(judge.spatial for judge in judges)  # type: ignore[misc]
        self.grouped = self.grouped or any(judge.grouped for judge in judges)  # type: ignore[misc]
        self.gold = any(judge.gold for judge in judges)  # type: ignore[misc]
        self.licence = "; ".join(dict.fromkeys(judge.licence for judge in judges))  # type: ignore[misc]
        members = [(judge.name, *judge.members) for judge in judges]
        self.stand_on(*map(_union, ([judge.backbones for judge in judges], [judge.datasets for judge in judges], members)))
        self.size_gb = sum(judge.size_gb for judge in judges)  # type: ignore[misc]

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        self._mapped()
        return self._summed(lambda judge: judge.map(images, prompts))

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self._summed(lambda judge: judge(images, prompts))

    def _summed(self, ask: Callable[[Reward], Tensor]) -> Tensor:
        return torch.stack([weight * self._normalised(index, ask) for index, weight in enumerate(self.weights)]).sum(0)

    def _normalised(self, index: int, ask: Callable[[Reward], Tensor]) -> Tensor:
        score, std = ask(self.judges[index]).float(), self.stds[index]  # type: ignore[arg-type]
        return score if std is None else (score - self.means[index]) / std

    def _mapped(self) -> None:
        if whole := [judge.name for judge in self.judges if not judge.spatial]:
            raise ValueError(f"reward={self.name} has no pixel map: {', '.join(map(str, whole))} among its judges scores whole images only")

    def identity(self) -> dict[str, str]:
        own, members = super().identity(), [judge.identity() for judge in self.judges]  # type: ignore[operator]
        numbers = f"weights={self.weights}, means={self.means}, stds={self.stds}"
        return own | {"settings": f"{own['settings']}, judges={json.dumps(members, sort_keys=True)}, {numbers}"}


def _union(names: list[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(names)))


class MixDrawn(Mix):
    """One judge, drawn at random, scores all images of a prompt that are asked about together; a mix only over many prompts.

    A draw is a function of seed, prompt and the 8-bit content of the prompt's images, in any order: it needs no state and is never another.
    """

    name = "mix_drawn"
    differentiable = True
    spatial = True
    unit = "standard deviations of the judge that was drawn"
    grouped = True

    def __init__(self, *, judges: list[Reward], weights: list[NonNegative], means: list[float], stds: list[Positive | None], seed: Index):
        """weights: how often each judge is drawn, up to a factor; means, stds: as for `Mix`; seed: of the draws."""
        super().__init__(judges=judges, weights=weights, means=means, stds=stds)
        if not sum(weights):
            raise ValueError("reward.weights: all are 0, so that reward=mix_drawn can draw no judge; set one above 0")
        self.seed = seed

    def drawn(self, prompt: str, images: list[bytes]) -> int:
        """Which judge scores the images with these contents."""
        text = f"{self.seed}:{len(images)}:{prompt}:".encode() + b"".join(sorted(images))
        share = int.from_bytes(hashlib.sha256(text).digest()[:6]) / 2**48  # in [0,1): 48 bits are exact in a float
        below = list(accumulate(self.weights))
        return bisect_right(below, share * below[-1])  # a judge of weight 0 has no share to fall in

    def draws(self, images: Tensor, prompts: list[str]) -> list[int]:
        """The judge of each image: one for all images of a prompt."""
        seen, groups = contents(images), dict[str, list[bytes]]()
        for prompt, content in zip(prompts, seen, strict=True):
            groups.setdefault(prompt, []).append(content)
        judge = {prompt: self.drawn(prompt, group) for prompt, group in groups.items()}
        return [judge[prompt] for prompt in prompts]

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        self._mapped()
        return self._asked(lambda judge, rows: judge.map(images[rows], [prompts[row] for row in rows]), self.draws(images, prompts))

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self._asked(lambda judge, rows: judge(images[rows], [prompts[row] for row in rows]), self.draws(images, prompts))

    def prefer(self, a: Tensor, b: Tensor, prompts: list[str]) -> Tensor:
        """P(a is preferred to b) [B] by one judge a pair, drawn whatever their order: Bradley-Terry on its normalised scores."""
        judges = [self.drawn(prompt, pair) for prompt, *pair in zip(prompts, contents(a), contents(b), strict=True)]
        first, second = (
            self._asked(lambda judge, rows, of=of: judge(of[rows], [prompts[row] for row in rows]), judges)  # type: ignore[misc]
            for of in (a, b)
        )
        return torch.sigmoid(first - second)

    def _asked(self, ask: Callable[[Reward, list[int]], Tensor], drawn: list[int]) -> Tensor:
        """The normalised scores of all rows, each judge asked once about the rows that it was drawn for."""
        asked = {index: [row for row, each in enumerate(drawn) if each == index] for index in sorted(set(drawn))}
        parts = [self._normalised(index, lambda judge, rows=rows: ask(judge, rows)) for index, rows in asked.items()]  # type: ignore[misc]
        back = torch.tensor([row for rows in asked.values() for row in rows]).argsort()
        return torch.cat(parts)[back.to(parts[0].device)]
