"""The rows that flow between the stages: Rollout -> Transition, Pair, Noised, NoisedPair -> loss. Columns of a table share an axis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Table:
    """Frozen columns: tensors, tables, prompts, or None where there is none; `.to` is what Lightning needs to move a batch."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """With every tensor changed."""

        def changed(column: object) -> object:
            return change(column) if isinstance(column, Tensor) else column.each(change) if isinstance(column, Table) else column

        return type(self)(**{f.name: changed(getattr(self, f.name)) for f in fields(self)})

    def to(self, *args: object, **kwargs: object) -> Self:
        return self.each(lambda column: column.to(*args, **kwargs))  # type: ignore[call-overload]

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """One after the other; of tables whose columns are tensors, or None in all."""

        def joined(columns: list[Any]) -> Any:
            return None if columns[0] is None else torch.cat(columns)

        return cls(*(joined([getattr(part, f.name) for part in parts]) for f in fields(cls)))


@dataclass(frozen=True)
class Rollout(Table):
    """What a policy did for B prompts in T steps."""

    x: Tensor  # [B,T+1,C,h,w] states, from noise to the final latent
    log_prob: Tensor  # [B,T] or [B,T,h,w] in nats, SUMMED over the reduced dimensions; 0 where a step has no likelihood
    cond: Tensor  # [B,L,D] prompt embeddings
    anchor: Tensor | None = None  # [B,T,C,h,w] what the reference says at each trained step, where a loss compares with it

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
            anchor=None if self.anchor is None else self.anchor[image, k],
        )


@dataclass(frozen=True)
class Transition(Table):
    """Single steps x -> y; rows may come from any image and any step."""

    x: Tensor  # [N,C,h,w]
    y: Tensor  # [N,C,h,w]
    k: Tensor  # [N] index of the step
    cond: Tensor  # [N,L,D]
    log_prob: Tensor  # [N] or [N,h,w] under the policy that made the rollout, in nats, summed
    advantage: Tensor  # [N] or [N,h,w]
    anchor: Tensor | None = None  # [N,C,h,w] what the reference says there

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Pair(Table):
    """Two steps with one k, the first from the image that is preferred."""

    win: Transition
    lose: Transition
    weight: Tensor  # [N] 0 for two equally good images, else such that an update's weights have mean 1

    def __len__(self) -> int:
        return len(self.win)


@dataclass(frozen=True)
class Noised(Table):
    """Clean latents and the noise to put on them: what a denoiser regresses on."""

    x0: Tensor  # [N,C,h,w]
    eps: Tensor  # [N,C,h,w]
    t: Tensor  # [N] time, as the model counts it
    cond: Tensor  # [N,L,D]
    weight: Tensor  # [N]

    def __len__(self) -> int:
        return len(self.x0)


@dataclass(frozen=True)
class NoisedPair(Table):
    """Two images of a prompt under one noise at one time, the first the one that is preferred; they have one weight."""

    win: Noised
    lose: Noised

    def __len__(self) -> int:
        return len(self.win)
