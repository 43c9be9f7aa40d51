"""LoRA adapters inside a frozen network (peft), switched without touching requires_grad."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

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


def layers(network: nn.Module) -> list[Any]:
    """The layers that hold adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    # not isinstance: of an ABC with so many subclasses it leaves a megabyte of cached answers behind
    return [layer for layer in network.modules() if BaseTunerLayer in type(layer).__mro__]


def switch(layers: list[Any], who: str | None) -> None:
    """Make `who` the active adapter of a network's layers; None switches all adapters off, which leaves the untouched base.

    Sets peft's own flags directly: its public `set_adapter` and `disable_adapters` also flip requires_grad, which would make an inactive
    network's weights fall out of the optimiser's graph.
    """
    for layer in layers:
        layer._disable_adapters = who is None
        layer._active_adapter = [] if who is None else [who]


def parameters(network: nn.Module, who: str) -> dict[str, nn.Parameter]:
    """The adapter's weights by name."""
    return {name: parameter for name, parameter in network.named_parameters() if "lora_" in name and f".{who}." in f".{name}."}


def kohya(network: nn.Module, who: str) -> dict[str, Tensor]:
    """A UNet's adapter by the names of kohya's scripts, which ComfyUI and A1111 read: lora_unet_<module>.lora_down, .lora_up, .alpha.

    A reader scales by alpha / rank, and takes alpha = rank where none is written.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    weights = {}
    for name, layer in network.named_modules():
        if isinstance(layer, BaseTunerLayer) and who in layer.lora_A:
            key = f"lora_unet_{name.replace('.', '_')}"
            weights[f"{key}.lora_down.weight"] = layer.lora_A[who].weight
            weights[f"{key}.lora_up.weight"] = layer.lora_B[who].weight
            weights[f"{key}.alpha"] = torch.tensor(float(layer.lora_alpha[who]))
    return {key: value.detach().cpu().contiguous() for key, value in weights.items()}


def merged(network: nn.Module, who: str) -> nn.Module:
    """A copy of the network with the adapter added into its weights (rounded to their precision), and no adapters left."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    alone = copy.deepcopy(network)
    for name, layer in list(alone.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            if who in layer.lora_A:
                layer.merge(adapter_names=[who])
            alone.set_submodule(name, layer.get_base_layer())
    return alone
