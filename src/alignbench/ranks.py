"""Which part of a job this process does, and everybody's results put together again. One process: all of it, and nothing to gather."""

from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from alignbench.config import MissingAsset
from alignbench.tables import Table

T = TypeVar("T", bound=Table)


def world() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if world() > 1 else 0


def mine(count: int) -> list[int]:
    """The indices below `count` that this process takes: equally many everywhere, the last repeated where they do not divide."""
    each = -(-count // world())
    return [min(index, count - 1) for index in range(rank() * each, (rank() + 1) * each)]


def gathered(part: Tensor, count: int) -> Tensor:
    """The processes' parts in the order of `mine`: [count,...], on every process, where this process's part is."""
    if world() == 1:
        return part
    own = part.cuda() if distributed.get_backend() == "nccl" else part  # which carries nothing from the host's memory
    parts = [torch.empty_like(own) for _ in range(world())]
    distributed.all_gather(parts, own.contiguous())
    return torch.cat(parts)[:count].to(part.device)


def summed(value: Tensor) -> Tensor:
    """The sum of the processes' tensors; all take part."""
    if world() > 1:
        distributed.all_reduce(value)
    return value


def agree(failure: Exception | None) -> None:
    """Raise here what failed here or, with its message, what failed in another process; all processes take part."""
    if world() > 1:
        said: list[Any] = [None] * world()
        distributed.all_gather_object(said, failure and (isinstance(failure, MissingAsset), str(failure)))
        if failure is None and (other := next((each for each in said if each), None)):
            failure = (MissingAsset if other[0] else ValueError)(other[1])
    if failure is not None:
        raise failure


def most(value: float) -> float:
    """The largest of the processes' values; all take part."""
    if world() == 1:
        return value
    values: list[Any] = [None] * world()
    distributed.all_gather_object(values, value)
    return max(values)


def gathered_table(part: T, count: int) -> T:
    """`gathered`, column by column."""
    return part.each(lambda column: gathered(column, count))
