"""Every method, LoRA and full: alignbench against the plain loop, by turns, in processes of their own with one thread."""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine_rate
import numpy as np
from remote import remote, say, usual
from sides import Case, Ours, Usual
from verdicts import WANTED, apart, ratio

METHODS = tuple(WANTED["images"])
SIDES = ("ours", "plain")
PHASES = ("rollout", "update")


def total(times: dict[str, float], kind: str) -> float:
    return times[f"rollout_{kind}"] + times[f"update_{kind}"]


def cases(folder: Path, extent: str) -> list[tuple[Case, int]]:
    """What is measured, with the plain loop's micro-batch; extent: full or quick."""
    found = []
    for method in METHODS:
        for adapter in WANTED["adapters"][extent]:
            images, steps = WANTED["images"][method], WANTED["steps"][extent].get(method, 1)
            case = Case(folder, method, adapter, images, steps, WANTED["micro_batch"], WANTED["rows"])
            plain = WANTED["plain_micro_batch"]
            found += [(case, micro_batch) for micro_batch in plain.get(extent, {}).get(method, plain["else"])]
            if extent == "full" and method in WANTED["later"]:
                found += [(replace(case, later=True), micro_batch) for micro_batch in plain["else"]]
    return found


def held(case: Case, theirs: int) -> dict[str, float]:
    """How far losses and gradients of both sides lie apart, over two steps in float64; raises SystemExit.

    In fp32 the size of a forward pass alone changes a gradient by 2e-5 of its length.
    """
    short = replace(case, steps=min(case.steps, 2))
    with remote(lambda: Ours(short)) as (ours,):
        ours.ask("exact")
        ours.ask("given")
        with remote(lambda: usual(replace(short, micro_batch=theirs))) as (plain,):
            plain.ask("exact")
            for side in (ours, plain):
                side.begin("taken")
            for side in (ours, plain):
                side.pipe.recv()
    with remote(lambda: Apart(case.folder)) as (only,):
        between = only.ask("epoch")
    for what, far in between.items():
        if far > WANTED["same"]:
            raise SystemExit(f"{case.name}: the two sides' {what} differ by {far:.1e}; nothing is compared")
    return between


def measured(case: Case, theirs: int, repeats: int, rates: dict[str, float]) -> dict[str, Any]:
    """alignbench at `case` against the plain loop at micro-batch `theirs`."""
    other, between = replace(case, micro_batch=theirs), held(case, theirs)
    with remote(lambda: Ours(case)) as (ours,):
        ours.ask("given")
        with remote(lambda: usual(other)) as (plain,):
            times: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
            for turn in range(repeats + 1):  # the first warms up
                order = (("ours", ours), ("plain", plain)) if turn % 2 else (("plain", plain), ("ours", ours))
                for name, side in order:
                    found = side.ask("epoch")
                    if turn:
                        times[name].append(found)
            within = {"ours": ours.ask("inside"), "plain": plain.ask("inside")}
            counted = {"ours": ours.ask("operations"), "plain": plain.ask("operations")}
    row: dict[str, Any] = {
        "name": other.name,
        "method": case.method,
        "adapter": case.adapter,
        "later": case.later,
        "micro_batch": {"ours": {"images": case.micro_batch, "rows": case.rows}, "plain": theirs},
        "images": case.images,
        "steps": case.steps,
        "apart": between,
        **ratio(*([total(each, "processor") for each in times[side]] for side in SIDES)),
        "wall": ratio(*([total(each, "wall") for each in times[side]] for side in SIDES)),
    }
    for side, epochs in times.items():
        row[side] = {"repeats": [round(total(each, "processor") / case.images, 5) for each in epochs]}
        for phase in PHASES:
            processor = statistics.median(each[f"{phase}_processor"] for each in epochs)
            floor = sum(counted[side][phase][kind] / rates[kind] for kind in rates)
            row[side][phase] = {
                "processor_seconds_an_image": processor / case.images,
                "wall_seconds_an_image": statistics.median(each[f"{phase}_wall"] for each in epochs) / case.images,
                **within[side][phase],
                "gflop_an_image": sum(counted[side][phase].values()) / case.images / 1e9,
                "floor_seconds_an_image": floor / case.images,
                "of_the_floor": processor / floor if floor else None,
            }
    return row


def peaks(case: Case, processes: int) -> dict[str, list[float]]:
    """Peak memory of an epoch of each side above what the imports take, in bytes, of processes that do nothing else, from the least."""
    with remote(lambda: Ours(case)) as (first,):
        first.ask("given")
    found = dict[str, list[float]]()
    for side, make in {"ours": lambda: Ours(case), "plain": lambda: usual(case)}.items():
        with remote(*[make] * processes) as several:
            for each in several:
                each.begin("epoch")
            for each in several:
                each.pipe.recv()
            found[side] = sorted(each.ask("memory") for each in several)
    return found


def table(folder: Path, extent: str) -> dict[str, Any]:
    with remote(Rates) as (only,):
        rates = only.ask("epoch")
    say(heading(rates))
    found = []
    for case, theirs in cases(folder, extent):
        row = measured(case, theirs, WANTED["repeats"][extent], rates)
        row["peak_bytes"] = {}
        if (several := WANTED["peaks"][extent]) and not case.later:
            # at one micro-batch; memory does not grow with steps (scaling.py), so that three are enough
            row["peak_bytes"] = peaks(replace(case, micro_batch=theirs, rows=None, steps=min(case.steps, 3)), several)
        found.append(row)
        say(line(row))
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
