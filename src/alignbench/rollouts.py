"""The training loader: one Lightning epoch is one collection from the current policy."""

from collections.abc import Callable, Iterator, Sequence


class Rollouts:
    """A sized iterable for `Trainer.fit`. Sized, or Lightning would prefetch the next collection before this epoch's last update."""

    def __init__(self, collect: Callable[[], Sequence], batches: int):
        """collect: makes this epoch's minibatches, in whatever context (autocast) the trainer's steps run in; batches: how many there are."""
        self.collect, self.batches = collect, batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator:
        # every context that `collect` opens is closed when it returns: a `no_grad` held across a yield would leak into the update
        yield from self.collect()
