"""trainer.micro_batch=auto: the most rows a forward pass may hold, from what passes of the method's own rows take of the memory."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar

import torch
from torch import Tensor

from alignbench import ranks
from alignbench.config import ConfigError
from alignbench.machine import amount, free_memory
from alignbench.methods.base import Method
from alignbench.rewards.base import Reward
from alignbench.rewards.judge import Guard
from alignbench.rng import Draws
from alignbench.rollouts import Batches
from alignbench.schedule import Steps

T = TypeVar("T")
MEASURED = (1, 2, 4, 8)  # rows; what more take is told from the last two


@dataclass(frozen=True)
class Fit:
    """Sizes in bytes; of several processes the most that one takes and the least that one has."""

    rows: int  # a forward pass
    update: int  # rows of an update, of one process
    takes: float  # at most while it learns from `rows`
    kept: float  # beside that: trajectories, gradients, the optimiser's two moments
    free: float

    def __str__(self) -> str:
        return f"{self.rows} of an update's {self.update} rows (auto: {amount(self.takes + self.kept)} of {amount(self.free)} free)"

    @property
    def facts(self) -> dict[str, float]:
        return {"rows": self.rows, "takes_bytes": self.takes, "kept_bytes": self.kept, "free_bytes": self.free}


def fit(method: Method, prompt: str, seed: int, share: float, precision: Callable[[], AbstractContextManager[None]]) -> Fit:
    """What fits in `share` of the memory that is free, by probing; the method, its weights and every generator stay as they are.

    prompt: of a few images that are sampled for it, and scored by nobody; precision: the update's. All processes take part. Raises
    ConfigError where one row is too much.
    """
    device, rows = method.policy.model.device, method.updates.at_once(1).accumulate
    free = _free(device, method.processes)
    with _undisturbed(method):
        with precision():
            batches, held = _collected(method, prompt, Draws(seed, 0))
        trained = [each for each in method.parameters() if each.requires_grad]
        copies = 3 + (method.processes > 1)  # the gradient and Adam's moments; what processes exchange
        kept = ranks.most(held + copies * sum(each.numel() * each.element_size() for each in trained))
        kinds = {type(batches.some(1, last)): last for last in (True, False)}.values()

        def learn(count: int, last: bool) -> None:
            with precision():
                loss, _ = method.loss(batches.some(count, last).to(device))
            torch.autograd.grad(loss, trained, allow_unused=True)  # as `backward`, which would leave gradients behind

        def measure(count: int) -> float:
            try:
                taken = max(used(device, lambda last=last: learn(count, last))[1] for last in kinds)  # type: ignore[misc]
            except torch.OutOfMemoryError:
                taken = inf
            if device.type == "cuda":
                torch.cuda.empty_cache()
            return ranks.most(taken)

        size, taken = largest(rows, share * free - kept, measure, confirm=device.type == "cuda")
    found = Fit(size, rows, taken, kept, free)
    if not size:
        raise ConfigError(
            f"trainer.micro_batch=auto: one row takes {'more than there is' if taken == inf else amount(taken)} beside {amount(kept)} of "
            f"gradients, moments and trajectories, and {share:.0%} of {amount(free)} may be taken (trainer.memory_share); set "
            "trainer.gradient_checkpointing=true, train a LoRA (adapter=lora), set trainer.offload_rollouts=true, or take a larger device"
        )
    return found


def largest(rows: int, budget: float, measure: Callable[[int], float], confirm: bool) -> tuple[int, float]:
    """The largest part that `rows` can be cut into equally and that fits, and what it takes; 0 and what one row takes where none fits.

    measure: bytes that so many rows take. confirm: try what is predicted to fit, and go down from there.
    """
    seen: dict[int, float] = {}
    sizes = [size for size in range(1, rows + 1) if rows % size == 0]
    for size in MEASURED:
        if size > rows or (len(seen) > 1 and predicted(seen, size) > budget):
            break
        taken = measure(size)
        if taken > budget:
            if size == 1:
                return 0, taken
            sizes = [each for each in sizes if each < size]
            break
        seen[size] = taken
    for size in reversed(sizes):
        taken = seen.get(size, predicted(seen, size))
        if taken > budget:
            continue
        if confirm and size not in seen:
            taken = measure(size)
        if taken <= budget:
            return size, taken
    raise AssertionError("one row fits")


def predicted(seen: dict[int, float], size: int) -> float:
    """On the line through the two largest that were measured: small ones are governed by what does not grow. Of one alone: so often it."""
    *_, (low, below), (high, above) = [(0, 0.0), *sorted(seen.items())]
    return above + max(above - below, 0.0) / (high - low) * (size - high)


def used(device: torch.device, work: Callable[[], T]) -> tuple[T, float, float]:
    """What `work` returns, the bytes that it took at most, and those that are still taken, beyond what was taken before.

    Counted by the allocator of a GPU or, on the CPU, from each allocation. Raises ConfigError on another device.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        made = work()
        return made, torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before
    if device.type != "cpu":
        raise ConfigError(f"trainer.micro_batch=auto: memory cannot be measured on {device.type}; give a number")
    ask = torch.autograd.ProfilerConfig(
        torch.autograd.ProfilerState.CPU, False, True, False, False, False, torch._C._profiler._ExperimentalConfig()
    )
    torch.autograd._enable_profiler_legacy(ask)  # the newer one writes lines of its own to the terminal
    try:
        made = work()
    finally:
        events: Any = torch.autograd._disable_profiler_legacy()
    now = most = 0
    for event in (each for thread in events for each in thread if each.kind() == "memory_alloc"):
        now += event.cpu_memory_usage()
        most = max(most, now)
    return made, most, now


def _free(device: torch.device, processes: int) -> float:
    free = free_memory(device.index or 0 if device.type == "cuda" else None)
    if free is None:
        raise ConfigError(f"trainer.micro_batch=auto: how much memory is free on {device.type} is not known; give a number")
    if device.type == "cuda":  # what torch keeps for itself and nothing uses
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return -ranks.most(-free if device.type == "cuda" else -free / processes)


def _collected(method: Method, prompt: str, draws: Draws) -> tuple[Batches, float]:
    """An epoch from one prompt's images, and the bytes that a whole epoch's trajectories keep on the device."""
    whole, rewards = method.updates, [each.reward for each in method.judges]
    method.updates = few = whole.one_prompt()
    method.policy.model.encode([prompt, ""])  # embeddings are kept, and are no part of it
    try:
        for judge in method.judges:
            judge.reward = Unasked()
        batches, _, left = used(method.policy.model.device, lambda: method.collect([prompt] * few.images, draws))
    finally:
        for judge, reward in zip(method.judges, rewards, strict=True):
            judge.reward = reward
    grows = method.queries > 0 or isinstance(whole, Steps)  # labelled trajectories are all there already
    return batches, max(left, 0.0) * (whole.images / few.images if grows else 1)


@contextmanager
def _undisturbed(method: Method) -> Iterator[None]:
    """Afterwards all is as before: what the method and its judges remember, meters, generators."""
    owners = (method, *method.judges)
    before = [dict(vars(each)) for each in owners]
    remembered = copy.deepcopy(method.state_dict().get("_extra_state"))
    device = method.policy.model.device
    try:
        with method.policy.model.meters.paused(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for judge in method.judges:
                judge.guard = Guard("skip")  # nothing is kept aside, or looked up
            yield
    finally:
        if remembered is not None:
            method.set_extra_state(remembered)
        for each, values in zip(owners, before, strict=True):
            vars(each).update(values)


class Unasked(Reward):
    """Stands where a reward would be asked: each image gets another score, so that there is something to learn."""

    name, differentiable, spatial, range = "unasked", False, True, (0.0, float("inf"))
    unit = licence = ""
    backbones = datasets = ()

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.arange(len(images), dtype=torch.float32, device=images.device)

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self(images, prompts)[:, None, None].expand(-1, *images.shape[2:])
