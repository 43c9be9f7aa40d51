"""What a method does when processes share its work. Run by test_two_processes: `two_processes.py RANK WORLD FOLDER CASE...`."""

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from conftest import LORA, SANDBOX
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from methods_zoo import ZOO, Hill, fit, made, moved, prompts_of, weights
from torch import Tensor, distributed

from alignbench.evaluation.callbacks import History
from alignbench.methods.base import Method
from alignbench.models.stable_diffusion import StableDiffusion
from alignbench.rng import Draws
from alignbench.tables import Pair


class Rounded(Hill):
    """Many images are equally good."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return (super().forward(images, prompts) * 4).round()


class Together(Hill):
    """An image's score depends on the other images of its prompt."""

    grouped = True

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        own = super().forward(images, prompts)
        same = torch.tensor([[one == other for other in prompts] for one in prompts], dtype=own.dtype)
        return own - (same @ own) / same.sum(1) + 0.1 * same.sum(1)  # a prompt that is torn apart scores otherwise


SMALL = {"images": 4, "images_per_prompt": 2, "batch": 2}
LORAS: dict[str, dict[str, Any]] = {
    "ddpo": SMALL,
    "d3po": SMALL | {"batch": 1},
    "di_star": {"batch": 4, "critic_turns": 1},
    "kl_rlhf_value": SMALL,
}
MORE = ("ties/d3po", "ties/pso", "ties/rwr_sparse", "lonely/rwr_sparse", "uneven/ddpo", "grouped/ddpo")
CASES = [*ZOO, *(f"lora/{name}" for name in LORAS), *MORE]
UNEVEN = ("d3po_clip", "uneven/ddpo")  # images that two processes cannot share equally, though they can the rows of an update
UPDATES = 10


def a_case(case: str, processes: int) -> Method:
    kind, _, name = case.rpartition("/")
    rows = 10**6 if processes == 1 else 3  # a forward pass; it may change no result either
    if kind == "lora":
        model = StableDiffusion(path=SANDBOX, revision=None, init=None, gated=False, dtype="float32", schedule={}).double()
        torch.manual_seed(0)
        model.grow("policy", LORA)
        return moved(made(name, model=model, spec=LORA, processes=processes, micro_batch=rows, rate=1e-3, **LORAS[name]))
    changes: dict[str, Any] = {"reward": Rounded()} if kind == "ties" else {}
    if kind == "lonely":  # in some updates one process has all the rows that weigh anything, in some neither has any
        changes = {"percentile": 0.7}
    if kind == "grouped":  # three images each of two to a prompt: the second prompt's are in both processes
        changes = {"reward": Together(), "images": 6, "advantage": "none"}
    if kind == "uneven":
        changes = {"images": 7, "images_per_prompt": 1, "batch": 7}
    return moved(made(name, processes=processes, micro_batch=rows, **changes))


class Seen(Callback):
    """The loss and the gradient of every update, before it is clipped, of those weights that the optimiser then gets one for."""

    def __init__(self) -> None:
        self.losses: list[list[float]] = [[]]
        self.gradients: list[dict[str, Tensor]] = []

    def watch(self, method: Method) -> None:
        loss = method.loss

        def watched(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
            value, metrics = loss(batch)
            self.losses[-1].append(value.item())
            return value, metrics

        method.loss = watched  # type: ignore[method-assign]

    def on_before_optimizer_step(self, trainer: Any, method: Any, optimizer: Any) -> None:
        named = method.named_parameters()
        self.gradients.append({name: each.grad.clone() for name, each in named if each.grad is not None})
        self.losses.append([])

    def on_train_batch_end(self, trainer: Any, method: Any, outputs: Any, batch: Any, index: int) -> None:
        given = {name for name, each in method.named_parameters() if each.grad is not None}
        if (index + 1) % method.updates.accumulate == 0:
            self.gradients[-1] = {name: value for name, value in self.gradients[-1].items() if name in given}


def record(case: str, processes: int, folder: Path) -> dict[str, Any]:
    """Of this process: losses of its rows, everybody's mean gradients, weights after at least ten updates, the meters, the history."""
    method, seen = a_case(case, processes), Seen()
    pairs = [batch.weight for batch in method.collect(prompts_of(method), Draws(0, 0)) if isinstance(batch, Pair)]
    method = a_case(case, processes)
    seen.watch(method)
    meters = method.policy.model.meters
    history = History(meters, method.learned, lambda: ({}, []), 0, lambda rows: None)
    epochs = -(-UPDATES * method.updates.accumulate // len(method.updates))
    options = {"strategy": DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)} if processes > 1 else {}
    options |= {"devices": processes}
    fit(method, epochs, folder, history, seen, **options)
    return {
        "losses": [sum(each) / len(each) for each in seen.losses if each],
        "gradients": seen.gradients,
        "weights": weights(method),
        "meters": meters.state(),
        "planned": [epochs * method.queries, epochs * sum(method.plan().values())],
        "rows": history.rows,
        "pairs": torch.cat(pairs) if pairs else None,
    }


def main(rank: int, world: int, folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # the processes are here already: Lightning starts none
    store = f"file://{folder / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    for case in cases:
        name = case.replace("/", "-")
        done = record(case, world, folder / name)
        torch.save(done, folder / f"{name}-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
