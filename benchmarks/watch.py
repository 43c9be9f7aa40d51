"""Where a side's time and memory go: seconds inside its denoisers and its VAE's decoder, floating-point operations, bytes held."""

import time
from pathlib import Path
from typing import Any

from sides import Side
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Watch:
    """Processor seconds inside the denoisers' forward and backward passes, and inside the decoder's forward passes.

    A backward pass counts from where the gradient reaches a denoiser's output to its end: what lies before in the graph is the denoiser.
    """

    def __init__(self, networks: list[nn.Module], decoder: nn.Module):
        self.seconds, self.decoding, self._entered, self._reached = 0.0, 0.0, 0.0, 0.0
        self._hooks = [network.register_forward_pre_hook(self._enter) for network in networks]
        self._hooks += [network.register_forward_hook(self._leave) for network in networks]
        self._hooks += [decoder.register_forward_pre_hook(self._enter), decoder.register_forward_hook(self._decoded)]

    def _enter(self, *_: Any) -> None:
        self._entered = time.process_time()

    def _leave(self, network: nn.Module, given: Any, output: Any) -> None:
        self.seconds += time.process_time() - self._entered
        if output.sample.requires_grad:
            output.sample.register_hook(self._reach)

    def _decoded(self, *_: Any) -> None:
        self.decoding += time.process_time() - self._entered

    def _reach(self, gradient: Tensor) -> None:
        self._reached = self._reached or time.process_time()

    def backward(self, loss: Tensor) -> None:
        self._reached = 0.0
        loss.backward()
        if self._reached:
            self.seconds += time.process_time() - self._reached

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def inside(side: Side) -> dict[str, dict[str, float]]:
    """Shares of the denoisers and of the decoder in the processor seconds of collecting, and of learning by hand, without a trainer."""
    found, watch = {}, Watch(side.networks(), side.decoder())
    for phase, work in {"rollout": side.collect, "update": lambda: side.update(watch.backward)}.items():
        watch.seconds, watch.decoding, began = 0.0, 0.0, time.process_time()
        work()
        whole = time.process_time() - began
        found[phase] = {"denoiser_share": watch.seconds / whole, "decoder_share": watch.decoding / whole}
    watch.close()
    return found


def operations(side: Side) -> dict[str, dict[str, int]]:
    """Floating-point operations of collecting and of learning: convolutions, and all matrix products."""
    found = {}
    for name, work in {"rollout": side.collect, "update": lambda: side.update(Tensor.backward)}.items():
        with FlopCounterMode(display=False) as counter:
            work()
        counts = {str(key): value for key, value in counter.get_flop_counts().get("Global", {}).items()}
        convolutions = sum(value for key, value in counts.items() if "convolution" in key)
        found[name] = {"convolution": convolutions, "matmul": sum(counts.values()) - convolutions}
    return found


def memory(what: str) -> int:
    """Bytes that this process holds of its own (RssAnon) or of files (RssFile), or has held at most of both (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024
