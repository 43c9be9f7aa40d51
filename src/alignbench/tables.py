"""The rows that flow between the stages: Rollout -> Transition (or Pair) -> loss. Tensors of a table share their first axis."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Table:
    """Frozen columns; `.to` is what Lightning needs to move a batch."""

    def to(self, *args: object, **kwargs: object) -> Self:
        return type(self)(**{f.name: getattr(self, f.name).to(*args, **kwargs) for f in fields(self)})


@dataclass(frozen=True)
class Rollout(Table):
    """What a policy did for B prompts in T steps."""

    x: Tensor  # [B,T+1,C,h,w] states, from noise to the final latent
    log_prob: Tensor  # [B,T] or [B,T,h,w] in nats, SUMMED over the reduced dimensions; 0 where a step has no likelihood
    cond: Tensor  # [B,L,D] prompt embeddings

    def __len__(self) -> int:
        return len(self.x)

    def steps(self, image: Tensor, k: Tensor, advantage: Tensor) -> "Transition":
        """Rows (image [N], step k [N]) with the images' advantage [B] or [B,h,w]."""
        return Transition(
            x=self.x[image, k],
            y=self.x[image, k + 1],
            k=k,
            cond=self.cond[image],
            log_prob=self.log_prob[image, k],
            advantage=advantage[image],
        )

    @classmethod
    def cat(cls, parts: "list[Rollout]") -> "Rollout":
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))


@dataclass(frozen=True)
class Transition(Table):
    """Single steps x -> y; rows may come from any image and any step."""

    x: Tensor  # [N,C,h,w]
    y: Tensor  # [N,C,h,w]
    k: Tensor  # [N] index of the step
    cond: Tensor  # [N,L,D]
    log_prob: Tensor  # [N] or [N,h,w] under the policy that made the rollout, in nats, summed
    advantage: Tensor  # [N] or [N,h,w]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Updates:
    """How the trajectories of an epoch are cut into optimiser steps, and those into forward passes.

    An optimiser step sees all trained steps of `batch` images, as in DDPO; its rows are shuffled across images AND steps and handed out
    `micro_batch` at a time, so that one forward pass holds many time steps.
    """

    images: int  # collected an epoch
    images_per_prompt: int
    batch: int  # images an optimiser step
    passes: int  # over the collection
    trained: Tensor  # [T] bool: the steps that have a likelihood
    at_most: int  # rows a forward pass may hold

    def __post_init__(self) -> None:
        if not self.trained.any():
            raise ValueError("no step of this sampler has a likelihood, so there is nothing to learn from; set sampler.eta above 0")
        for name in ("batch", "images_per_prompt"):
            if self.images % getattr(self, name):
                raise ValueError(f"method.images={self.images} must be a multiple of method.{name}={getattr(self, name)}")

    @property
    def rows(self) -> int:
        """Rows an optimiser step."""
        return self.batch * int(self.trained.sum())

    @property
    def micro_batch(self) -> int:
        """Rows a forward pass: the most that cut an update into equal parts, so that accumulated gradients are the mean over its rows."""
        return max(size for size in range(1, min(self.rows, self.at_most) + 1) if self.rows % size == 0)

    @property
    def accumulate(self) -> int:
        """Forward passes an optimiser step."""
        return self.rows // self.micro_batch

    def __len__(self) -> int:
        """Forward passes an epoch."""
        return self.passes * (self.images // self.batch) * self.accumulate

    @property
    def trained_rows(self) -> int:
        """Rows that get a gradient, an epoch."""
        return self.passes * self.images * int(self.trained.sum())

    def demand_one(self, who: str) -> None:
        """Raise ValueError, naming `who` demands it, unless an epoch is one optimiser step: an estimator without ratios is on-policy."""
        if self.passes > 1 or self.batch != self.images:
            raise ValueError(f"{who} is on-policy, one update a collection: set method.inner_epochs=1 and method.batch=method.images")

    def of(self, rollout: Rollout, advantage: Tensor, shuffle: Generator) -> "Minibatches":
        """This epoch's minibatches; advantage is [B] or [B,h,w]."""
        return Minibatches(self, rollout, advantage, shuffle)


@dataclass(frozen=True)
class Minibatches:
    """Lazy shuffled passes over a rollout's steps."""

    updates: Updates
    rollout: Rollout
    advantage: Tensor
    shuffle: Generator

    def __len__(self) -> int:
        return len(self.updates)

    def __iter__(self) -> Iterator[Transition]:
        steps, device = self.updates.trained.nonzero().squeeze(1), self.rollout.x.device
        for _ in range(self.updates.passes):
            for images in torch.randperm(len(self.rollout), generator=self.shuffle).split(self.updates.batch):
                rows = torch.cartesian_prod(images, steps)
                rows = rows[torch.randperm(len(rows), generator=self.shuffle)]
                for image, k in (part.unbind(1) for part in rows.split(self.updates.micro_batch)):
                    yield self.rollout.steps(image.to(device), k.to(device), self.advantage)
