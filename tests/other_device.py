"""A second device made of the first: tensors that are said to be on a GPU, and errors where a real one would mix the two."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

HOST, DEVICE = torch.device("cpu"), torch.device("cuda:0")
FREE = {Tensor.copy_, torch.nn.Module.load_state_dict, Tensor.__repr__}


def there(tensor: Tensor) -> bool:
    return getattr(tensor, "_there", False)


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def put(module: nn.Module) -> None:
    """On the device, with what it keeps beside its weights."""
    for each in (*module.parameters(), *module.buffers()):
        each._there = True  # type: ignore[attr-defined]


class OtherDevice(TorchFunctionMode):
    """Within it `.to`, `.cpu`, `.device` and `device=` mean HOST or DEVICE; `moved` lists the shapes that went there and back."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: dict[torch.device, list[tuple[int, ...]]] = {HOST: [], DEVICE: []}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return DEVICE if there(args[0]) else HOST
        given = list(tensors([args, kwargs]))
        wanted, name = kwargs.get("device"), getattr(func, "__name__", "")
        if wanted is not None:
            kwargs["device"] = "cpu"
        if func is Tensor.cpu:
            wanted = HOST
        elif func is Tensor.to:
            for each in args[1:]:
                wanted = each if isinstance(each, torch.device) else DEVICE if there(each) else HOST if isinstance(each, Tensor) else wanted
            args = tuple(HOST if isinstance(each, torch.device) else each for each in args)
        elif func not in FREE and name not in ("__get__", "__set__"):
            held = [each for each in given if each.dim() or there(each)]
            if func in (Tensor.__getitem__, Tensor.__setitem__):  # indices may be on the host where the table is not
                held = [args[0], *tensors(args[2:]), *(each for each in tensors(args[1]) if there(each))]
                held = [each for each in held if each.dim() or each is args[0]]
            if len({there(each) for each in held}) > 1:
                raise RuntimeError(f"{name}: tensors on two devices")
        on = torch.device(wanted) != HOST if wanted is not None else any(there(each) for each in given)
        if wanted is not None and given and on != there(given[0]):
            self.moved[DEVICE if on else HOST].append(tuple(given[0].shape))
            if func in (Tensor.to, Tensor.cpu):
                args = (args[0].view_as(args[0]), *args[1:])  # a tensor of its own
        made = func(*args, **kwargs)
        for each in tensors(made):
            if not any(each is old for old in given) or name.endswith("_"):
                each._there = on  # type: ignore[attr-defined]
        return made
