"""The training loader: one Lightning epoch is one collection from the current policy."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol


class Batches(Protocol):
    """A sized iterable of minibatches."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...

    def some(self, count: int, last: bool) -> Any: ...


class Rollouts:
    """A sized iterable for `Trainer.fit`. Sized, or Lightning would prefetch the next collection before this epoch's last update."""

    def __init__(self, collect: Callable[[], Batches], batches: int):
        """collect: makes this epoch's minibatches, in the same autocast as the trainer's steps; batches: how many there will be."""
        self.collect, self.batches = collect, batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        # every context that `collect` opens is closed when it returns: a `no_grad` held across a yield would leak into the update
        yield from self.collect()
