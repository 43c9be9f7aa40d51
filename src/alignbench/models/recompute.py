"""Gradient checkpointing that is right for networks whose adapters and gradients are switched between the forward and the backward pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, *given: Any) -> Any:
    """`module(*given)` without keeping its activations: the backward pass makes them again. As diffusers' models take it.

    A block is computed again long after it ran: by then a LoRA may have been switched to the reference, and `Diffusion.frozen` may be over.
    So the second time happens as the first did. Which weights want a gradient matters too: it decides what a layer saves.
    """
    if torch.compiler.is_compiling():  # the compiled graph holds both passes, with the switches as they stood when it was made
        return checkpoint(module.__call__, *given, use_reentrant=False)
    switches, wanted = _switches(module), [(each, each.requires_grad) for each in module.parameters()]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _as_it_was(switches, wanted)

    # nothing draws random numbers in there: all is in eval mode
    return checkpoint(module.__call__, *given, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


Switches = list[tuple[Any, bool, list[str]]]  # an adapter's layer, whether adapters are off there, which is on
Wanted = list[tuple[nn.Parameter, bool]]


def _switches(module: nn.Module) -> Switches:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(each, each._disable_adapters, each._active_adapter) for each in module.modules() if isinstance(each, BaseTunerLayer)]


@contextmanager
def _as_it_was(switches: Switches, wanted: Wanted) -> Iterator[None]:
    now = [(layer, layer._disable_adapters, layer._active_adapter) for layer, _, _ in switches]
    wanted_now = [(parameter, parameter.requires_grad) for parameter, _ in wanted]
    _set(switches, wanted)
    try:
        yield
    finally:
        _set(now, wanted_now)


def _set(switches: Switches, wanted: Wanted) -> None:
    for layer, off, on in switches:
        layer._disable_adapters, layer._active_adapter = off, on
    for parameter, gradient in wanted:
        parameter.requires_grad_(gradient)
