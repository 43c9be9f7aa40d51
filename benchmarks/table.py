"""Every method, LoRA and full: alignbench against the plain loop, in processes of their own that share one core."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine_rate
import numpy as np
from remote import Remote, each_of, remote, say, together, usual
from sides import Case, Ours, Usual
from verdicts import WANTED, apart, ratio

METHODS = tuple(WANTED["images"])
SIDES = ("ours", "plain")
PHASES = ("rollout", "update")


def total(times: dict[str, float], kind: str) -> float:
    return times[f"rollout_{kind}"] + times[f"update_{kind}"]


def cases(folder: Path, extent: str) -> list[tuple[Case, list[int]]]:
    """What is measured, with the plain loop's micro-batches; extent: full or quick."""
    found = []
    for method in METHODS:
        for adapter in WANTED["adapters"][extent]:
            images, steps = WANTED["images"][method], WANTED["steps"].get(method, 1)
            case = Case(folder, method, adapter, images, steps, WANTED["micro_batch"], WANTED["rows"])
            found.append((case, WANTED["plain_micro_batch"][extent]))
            if extent == "full" and method in WANTED["later"]:
                found.append((replace(case, later=True), WANTED["later"][method]))
    return found


def held(case: Case, theirs: list[int]) -> dict[int, dict[str, float]]:
    """How far losses and gradients of both sides lie apart, over two steps in float64, by the plain loop's micro-batch; raises SystemExit.

    In fp32 the size of a forward pass alone changes a gradient by 2e-5 of its length.
    """
    short, found = replace(case, steps=min(case.steps, 2)), {}
    with remote(lambda: Ours(short)) as (ours,):
        ours.ask("exact")
        ours.ask("given")
        ours.begin("taken")
        for micro_batch in theirs:
            with remote(lambda micro_batch=micro_batch: usual(replace(short, micro_batch=micro_batch))) as (plain,):
                plain.ask("exact")
                plain.ask("taken")
            if not found:
                ours.pipe.recv()
            with remote(lambda: Apart(case.folder)) as (only,):
                found[micro_batch] = only.ask("epoch")
    for micro_batch, between in found.items():
        for what, far in between.items():
            if far > WANTED["same"]:
                name = replace(case, micro_batch=micro_batch).name
                raise SystemExit(f"{name}: the two sides' {what} differ by {far:.1e}; nothing is compared")
    return found


def measured(case: Case, theirs: list[int], repeats: int, rates: dict[str, float]) -> list[dict[str, Any]]:
    """alignbench at `case` against the plain loop at each of the micro-batches `theirs`."""
    between, others = held(case, theirs), [replace(case, micro_batch=micro_batch) for micro_batch in theirs]
    with remote(lambda: Ours(case)) as (ours,):
        ours.ask("given")
        with remote(*[lambda other=other: usual(other) for other in others]) as plain:
            sides = [ours, *plain]
            together(sides)  # warms up
            times = list(zip(*(together(sides) for _ in range(repeats)), strict=True))
            within, counted = [middle(ours), *each_of(plain, "inside")], each_of(sides, "operations")

    def spent(index: int) -> dict[str, Any]:
        row: dict[str, Any] = {"repeats": [round(total(each, "processor") / case.images, 5) for each in times[index]]}
        for phase in PHASES:
            processor = statistics.median(each[f"{phase}_processor"] for each in times[index])
            floor = sum(counted[index][phase][kind] / rates[kind] for kind in rates)
            row[phase] = {
                "processor_seconds_an_image": processor / case.images,
                "wall_seconds_an_image": within[index][phase]["wall_seconds"] / case.images,
                **{f"{who}_share": within[index][phase][f"{who}_share"] for who in ("denoiser", "decoder")},
                "gflop_an_image": sum(counted[index][phase].values()) / case.images / 1e9,
                "floor_seconds_an_image": floor / case.images,
                "of_the_floor": processor / floor if floor else None,
            }
        return row

    return [
        {
            "name": other.name,
            "method": case.method,
            "adapter": case.adapter,
            "later": case.later,
            "micro_batch": {"ours": {"images": case.micro_batch, "rows": case.rows}, "plain": other.micro_batch},
            "images": case.images,
            "steps": case.steps,
            "apart": between[other.micro_batch],
            **ratio(*([total(each, "processor") for each in times[which]] for which in (0, index))),
            "ours": spent(0),
            "plain": spent(index),
        }
        for index, other in enumerate(others, 1)
    ]


def middle(side: Remote) -> dict[str, dict[str, float]]:
    """Of three epochs that are looked into, rollout and update each where the denoiser's share is the middle one."""
    asked = [side.ask("inside") for _ in range(3)]
    return {phase: sorted((each[phase] for each in asked), key=lambda each: each["denoiser_share"])[1] for phase in PHASES}


def peaks(case: Case, theirs: list[int], processes: int) -> Iterator[dict[str, list[float]]]:
    """Peak memory of two epochs of each side at each of the micro-batches `theirs`, above what the imports take, in bytes, of processes
    that do nothing else, from the least.

    Two epochs, since from the second on a run holds its optimiser's state beside a pass's activations; of two steps, since memory does
    not grow with them (scaling.py).
    """
    short = replace(case, steps=min(case.steps, 2))
    with remote(lambda: Ours(short)) as (first,):
        first.ask("given")
    for micro_batch in theirs:
        alike = replace(short, micro_batch=micro_batch, rows=None)
        found = dict[str, list[float]]()
        for side, make in {"ours": lambda alike=alike: Ours(alike), "plain": lambda alike=alike: usual(alike)}.items():
            with remote(*[make] * processes) as several:
                each_of(several, "two epochs")
                found[side] = sorted(each.ask("memory") for each in several)
        yield found


def table(folder: Path, extent: str, named: Sequence[str] = ()) -> dict[str, Any]:
    """named: of the rows whose names begin so; all where nothing is given."""
    with remote(Rates) as (only,):
        rates = only.ask("epoch")
    say(heading(rates))
    found = []
    for case, theirs in cases(folder, extent):
        if named and not case.name.startswith(tuple(named)):
            continue
        rows = measured(case, theirs, WANTED["repeats"][extent], rates)
        memory = peaks(case, theirs, several) if (several := WANTED["peaks"][extent]) and not case.later else [{}] * len(rows)
        for row, bytes_held in zip(rows, memory, strict=True):
            found.append(row | {"peak_bytes": bytes_held})
            say(line(found[-1]))
    return {"rates": rates, "rows": found}


class Apart:
    """Holds what both sides have taken against each other, in a process of its own: arrays that were freed in the parent would be the
    first memory of every child, and nobody's peak.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def epoch(self) -> dict[str, float]:
        found = []
        for side in (Ours, Usual):
            arrays = dict(np.load(self.folder / f"{side.__name__}.npz"))
            found.append((float(arrays.pop("loss")), arrays))
        return apart(*found)


class Rates:
    """The machine's own rates, asked for in a process of its own."""

    def epoch(self) -> dict[str, float]:
        return machine_rate.rates()


def heading(rates: dict[str, float]) -> str:
    products, convolutions = (rates[kind] / 1e9 for kind in ("matmul", "convolution"))
    heads = f"{'an image':>9}{'plain':>8}  {'in the denoiser':<16}{'x the floor':<14}MB"
    return (
        f"this machine, one thread: {products:.1f} GFLOP/s in products, {convolutions:.1f} in convolutions\n\n"
        f"{'ours : plain, processor seconds':<40}{'ratio':>6}  {'95 %':<15}{heads}"
    )


def line(row: dict[str, Any]) -> str:
    ours, plain = (sum(row[side][phase]["processor_seconds_an_image"] for phase in PHASES) for side in SIDES)
    phases = [row["ours"][phase] for phase in PHASES]
    share = " ".join(f"{each['denoiser_share']:4.0%}" if each["of_the_floor"] else "   -" for each in phases)
    floor = " ".join("   -" if each["of_the_floor"] is None else f"{each['of_the_floor']:4.1f}" for each in phases)
    memory = " : ".join(f"{statistics.median(each) / 1e6:.0f}" for each in row["peak_bytes"].values()) or "-"
    interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['name']:<40}{row['ratio']:>6.3f}  {interval:<15}{ours:>9.3f}{plain:>8.3f}  {share:<16}{floor:<14}{memory}"
