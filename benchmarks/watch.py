"""Where a side's time and memory go: seconds inside its denoisers and its VAE's decoder, floating-point operations, bytes held."""

import math
import time
from pathlib import Path
from typing import Any

from sides import Side
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Watch:
    """Processor seconds inside the denoisers' forward and backward passes, and inside the decoder's forward passes, while it is entered.

    A backward pass counts from where the gradient reaches a denoiser's output to its end: what lies before in the graph is the denoiser.
    """

    def __init__(self, networks: list[nn.Module], decoder: nn.Module):
        self.networks, self.decoder = networks, decoder
        self.passes: list[tuple[str, float, float]] = []  # who it was in, when it ended, how long it took
        self._entered, self._reached = 0.0, 0.0

    def __enter__(self) -> "Watch":
        self._hooks = [network.register_forward_pre_hook(self._enter) for network in (*self.networks, self.decoder)]
        self._hooks += [network.register_forward_hook(self._denoised) for network in self.networks]
        self._hooks += [self.decoder.register_forward_hook(lambda *_: self._passed("decoder", self._entered))]
        self._usual = usual = Tensor.backward

        def backward(loss: Tensor, *given: Any, **named: Any) -> None:
            self._reached = 0.0
            usual(loss, *given, **named)
            if self._reached:
                self._passed("denoiser", self._reached)

        Tensor.backward = backward  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: Any) -> None:
        Tensor.backward = self._usual  # type: ignore[method-assign]
        for hook in self._hooks:
            hook.remove()

    def seconds(self, who: str, after: float, until: float) -> float:
        return sum(seconds for name, ended, seconds in self.passes if name == who and after < ended <= until)

    def _passed(self, who: str, began: float) -> None:
        now = time.process_time()
        self.passes.append((who, now, now - began))

    def _enter(self, *_: Any) -> None:
        self._entered = time.process_time()

    def _denoised(self, network: nn.Module, given: Any, output: Any) -> None:
        self._passed("denoiser", self._entered)
        if output.sample.requires_grad:
            output.sample.register_hook(self._reach)

    def _reach(self, gradient: Tensor) -> None:
        self._reached = self._reached or time.process_time()


def inside(side: Side) -> dict[str, dict[str, float]]:
    """Of an epoch's rollout and of its update, trainer and all: the denoisers' and the decoder's shares of the processor seconds, and the
    seconds of the wall.
    """
    with Watch(side.networks(), side.decoder()) as watch:
        times = side.epoch()
    over = side.clock.until["rollout"]
    found = {}
    for phase, (after, until) in {"rollout": (0.0, over), "update": (over, math.inf)}.items():
        whole = times[f"{phase}_processor"]
        found[phase] = {f"{who}_share": watch.seconds(who, after, until) / whole for who in ("denoiser", "decoder")}
        found[phase]["wall_seconds"] = times[f"{phase}_wall"]
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
