"""LoRA adapters inside a frozen network (peft), switched without touching requires_grad."""

import torch
from torch import nn

from alignbench.models.base import Spec


def grow(network: nn.Module, who: str, spec: Spec) -> None:
    """Inject an adapter named `who`: B = 0, so the network starts unchanged; dropout 0, so that it stays a function."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, target_modules=list(spec.targets), lora_dropout=0.0, init_lora_weights="gaussian"
    )
    before = {id(parameter): parameter.requires_grad for parameter in network.parameters()}
    try:
        inject_adapter_in_model(config, network, adapter_name=who)
    except ValueError as error:
        raise ValueError(f"lora.targets={list(spec.targets)}: {error}") from error
    for parameter in network.parameters():  # peft freezes and thaws by its own rule; ours: what was there stays, the new is trained
        new = id(parameter) not in before
        parameter.requires_grad_(new or before[id(parameter)])
        if new and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()  # an update of a 16-bit weight is mostly rounded away


def switch(network: nn.Module, who: str | None) -> None:
    """Make `who` the active adapter; None switches all adapters off, which leaves the untouched base.

    Sets peft's own flags directly: its public `set_adapter` and `disable_adapters` also flip requires_grad, which would make an inactive
    network's weights fall out of the optimiser's graph.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in network.modules():
        if isinstance(layer, BaseTunerLayer):
            layer._disable_adapters = who is None
            layer._active_adapter = [] if who is None else [who]


def parameters(network: nn.Module, who: str) -> dict[str, nn.Parameter]:
    """The adapter's weights by name."""
    return {name: parameter for name, parameter in network.named_parameters() if "lora_" in name and f".{who}." in f".{name}."}
