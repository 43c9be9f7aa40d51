"""How an epoch is cut into optimiser steps, those into forward passes, and both between processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, comb
from typing import Any, Protocol, Self

import torch
from torch import Generator, Tensor

from alignbench import ranks
from alignbench.tables import Pair, Rollout, Transition


class Schedule(Protocol):
    """What the trainer and the plan ask of any method."""

    @property
    def images(self) -> int:
        """Prompts an epoch, repetitions counted."""

    @property
    def images_per_prompt(self) -> int:
        """How often each prompt is repeated, in a row."""

    @property
    def accumulate(self) -> int:
        """Forward passes an optimiser step."""

    def __len__(self) -> int:
        """Forward passes an epoch, of one process."""

    def at_once(self, rows: int) -> Self:
        """The same, of which a forward pass may hold so many rows."""

    def one_prompt(self) -> Self:
        """The same rows from one prompt's images."""


def largest_part(rows: int, at_most: int) -> int:
    """The most rows a forward pass may hold that cut `rows` into equal parts: accumulated gradients are then the mean over all rows."""
    return max(size for size in range(1, min(rows, at_most) + 1) if rows % size == 0)


def share(rows: int, processes: int, what: str) -> int:
    """A process's part of an update. Raises ValueError where the parts would be unequal."""
    if rows % processes:
        raise ValueError(f"trainer.devices: {processes} processes cannot share {what} equally; change one of them")
    return rows // processes


@dataclass(frozen=True)
class Updates:
    """Passes over an epoch's trajectories, as in DDPO: an optimiser step sees all trained steps of `batch` images (or pairs of images), or
    a fraction of them, drawn anew for each image and update (DanceGRPO, 2505.07818). All of an image's are drawn equally often, and the
    mean over rows stays what it was, in expectation over the draws.

    Its rows are shuffled across images AND steps, so that one forward pass holds many time steps.
    """

    images: int  # collected an epoch
    images_per_prompt: int
    batch: int  # images (pairs) an optimiser step
    passes: int  # over the collection
    trained: Tensor  # [T] bool: the steps that have a likelihood
    at_most: int  # rows a forward pass may hold
    processes: int
    paired: bool = False  # learn from all pairs of a prompt's images rather than from images
    fraction: float | None = None  # of an image's trained steps, for an update; None: all

    def __post_init__(self) -> None:
        if not self.trained.any():
            raise ValueError(
                "no step of this sampler has a likelihood, so there is nothing to learn from; "
                "set sampler.eta above 0 (flow_sde: sampler.noise), and sampler.window to null or around steps with noise"
            )
        if self.images % self.images_per_prompt:
            raise ValueError(f"method.images={self.images} must be a multiple of method.images_per_prompt={self.images_per_prompt}")
        if self.paired and self.images_per_prompt < 2:
            raise ValueError("method.images_per_prompt=1 makes no pairs; it must be at least 2")
        if self.items % self.batch:
            what = f"{self.items} pairs ({self.images_per_prompt} images a prompt)" if self.paired else f"method.images={self.images}"
            raise ValueError(f"{what} must be a multiple of method.batch={self.batch}")
        share(self.rows, self.processes, f"the {self.rows} rows of an update (method.batch={self.batch} x {self.each} trained steps)")

    @property
    def items(self) -> int:
        """What an epoch is a pass over: images, or all pairs of images of one prompt."""
        return self.images // self.images_per_prompt * comb(self.images_per_prompt, 2) if self.paired else self.images

    @property
    def each(self) -> int:
        """Steps of an image (pair) that an optimiser step learns from."""
        trained = int(self.trained.sum())
        return trained if self.fraction is None else max(1, ceil(self.fraction * trained - 1e-9))  # 0.07 x 100 > 7 in floats

    @property
    def rows(self) -> int:
        """Rows an optimiser step, of all processes together."""
        return self.batch * self.each

    @property
    def micro_batch(self) -> int:
        return largest_part(self.rows // self.processes, self.at_most)

    @property
    def accumulate(self) -> int:
        return self.rows // self.processes // self.micro_batch

    def __len__(self) -> int:
        return self.passes * (self.items // self.batch) * self.accumulate

    def at_once(self, rows: int) -> Self:
        return replace(self, at_most=rows)

    def one_prompt(self) -> Self:
        images = self.images_per_prompt
        return replace(self, images=images, batch=comb(images, 2) if self.paired else images, processes=1)

    @property
    def trained_rows(self) -> int:
        """Rows that get a gradient, an epoch."""
        return self.passes * self.items * self.each

    def demand_one(self, who: str) -> None:
        """Raise ValueError, naming `who` demands it, unless an epoch is one optimiser step: an estimator without ratios is on-policy."""
        if self.passes > 1 or self.batch != self.images:
            raise ValueError(f"{who} is on-policy, one update a collection: set method.inner_epochs=1 and method.batch=method.images")

    def of(self, rollout: Rollout, advantage: Tensor, shuffle: Generator) -> "Minibatches":
        """This epoch's minibatches of Transitions; advantage is [B] or [B,h,w]. Of a rollout with more than `images`, some are drawn."""

        credit = advantage.to(rollout.x.device)  # which need not be the reward's

        def rows(turn: int, image: Tensor, k: Tensor, update: Tensor) -> Transition:
            return rollout.steps(image, k, credit)

        return Minibatches(self, len(rollout), rows, shuffle, rollout.x.device)

    def of_pairs(self, rollout: Rollout, win: Tensor, lose: Tensor, decided: Tensor, shuffle: Generator) -> "Minibatches":
        """This epoch's minibatches of Pairs: images win [P] and lose [P]; where `decided` [P] is False the two are equally good."""
        device = rollout.x.device
        nothing = torch.zeros(len(rollout), device=device)
        win, lose, decided = win.to(device), lose.to(device), decided.to(device)

        def rows(turn: int, pair: Tensor, k: Tensor, update: Tensor) -> Pair:
            weight = decided[pair].to(rollout.x) * (len(update) / decided[update].sum().clamp(min=1)).to(rollout.x)
            return Pair(rollout.steps(win[pair], k, nothing), rollout.steps(lose[pair], k, nothing), weight)

        return Minibatches(self, len(win), rows, shuffle, device)


@dataclass(frozen=True)
class Minibatches:
    """Lazy shuffled passes over an epoch's items; each process yields its share of every update."""

    updates: Updates
    available: int  # items there are to draw from
    rows: Callable[[int, Tensor, Tensor, Tensor], Any]  # (pass, item [N], step k [N], the update's items [batch]) -> a table
    shuffle: Generator
    device: torch.device

    def __len__(self) -> int:
        return len(self.updates)

    def __iter__(self) -> Iterator[Any]:
        steps = self.updates.trained.cpu().nonzero().squeeze(1)
        for turn in range(self.updates.passes):
            order = torch.randperm(self.available, generator=self.shuffle)[: self.updates.items]
            for update in order.split(self.updates.batch):
                chosen = steps.expand(len(update), -1)
                if self.updates.each < len(steps):
                    drawn = torch.rand(chosen.shape, generator=self.shuffle).argsort(1)
                    chosen = steps[drawn[:, : self.updates.each]]
                rows = torch.stack([update[:, None].expand_as(chosen), chosen], 2).flatten(0, 1)
                rows = rows[torch.randperm(len(rows), generator=self.shuffle)][ranks.rank() :: self.updates.processes]
                for item, k in (part.unbind(1) for part in rows.to(self.device).split(self.updates.micro_batch)):
                    yield self.rows(turn, item, k, update.to(self.device))

    def some(self, count: int, last: bool) -> Any:
        """`count` rows of the first or the last pass, which may be of two kinds: for who asks what they take. Nothing is drawn."""
        steps, number = self.updates.trained.cpu().nonzero().squeeze(1), torch.arange(count)
        update = torch.arange(min(self.available, self.updates.batch))
        chosen = (number % self.available, steps[number % len(steps)], update)
        return self.rows(self.updates.passes - 1 if last else 0, *(each.to(self.device) for each in chosen))


@dataclass(frozen=True)
class Steps:
    """Optimiser steps on rows that are made when they are needed: no trajectories, no likelihood."""

    images: int  # prompts an epoch
    images_per_prompt: int
    batch: int  # rows an optimiser step
    count: int  # optimiser steps an epoch
    at_most: int  # rows a forward pass may hold
    processes: int

    def __post_init__(self) -> None:
        if self.images % self.images_per_prompt:
            raise ValueError(f"method.images={self.images} must be a multiple of method.images_per_prompt={self.images_per_prompt}")
        share(self.batch, self.processes, f"method.batch={self.batch}")

    @property
    def micro_batch(self) -> int:
        return largest_part(self.batch // self.processes, self.at_most)

    @property
    def accumulate(self) -> int:
        return self.batch // self.processes // self.micro_batch

    def __len__(self) -> int:
        return self.count * self.accumulate

    def at_once(self, rows: int) -> Self:
        return replace(self, at_most=rows)

    def one_prompt(self) -> Self:
        return replace(self, images=self.images_per_prompt)

    def of(self, rows: Callable[[int, Tensor], Any]) -> "Draw":
        """This epoch's minibatches; rows: (optimiser step, indices [N] in 0..batch) -> a table."""
        return Draw(self, rows)


@dataclass(frozen=True)
class Draw:
    """Lazy rows of every optimiser step; each process yields its share."""

    steps: Steps
    rows: Callable[[int, Tensor], Any]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.steps.count):
            for part in torch.arange(self.steps.batch)[ranks.rank() :: self.steps.processes].split(self.steps.micro_batch):
                yield self.rows(step, part)

    def some(self, count: int, last: bool) -> Any:
        """`count` rows of the first or the last optimiser step, which may be of two kinds: for who asks what they take."""
        return self.rows(self.steps.count - 1 if last else 0, torch.arange(count) % self.steps.batch)
