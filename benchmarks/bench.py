"""How fast alignbench is, beside the plain loop of public scripts, on this machine's processor.

    python benchmarks/bench.py                     # all, at most 40 minutes on 2 cores; writes benchmarks/results/<machine>.json
    python benchmarks/bench.py --quick             # LoRA alone, three repeats, at most 5 minutes; writes nothing
    python benchmarks/bench.py --only table        # one part: table, processes, scaling, startup, sweep

Both sides take the same optimiser steps on a small pipeline of SD's shape (bench.py checks losses' gradients to 1e-5 first), by turns, in
processes of their own with one thread. A ratio is ours over the plain loop's; below 1 we are faster.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine_rate
import numpy as np
import scipy.stats
import torch
from architectures import small
from remote import remote, say, usual
from scaling import scaling
from sides import Case, Ours
from startup import startup, sweep
from torch import distributed

RESULTS = Path(__file__).parent / "results"
METHODS = ("ddpo", "d3po", "pxpo", "kl_rlhf", "pso", "di_star")
CHANGED = 0.15  # of a ratio: what is called a change
GATES = {  # the upper end of the ratio's interval, at most
    "ddpo lora, micro-batch 4": 1.0,
    "ddpo full, micro-batch 4": 1.0,
    "ddpo lora, micro-batch 1": 0.88,
    "ddpo full, micro-batch 1": 0.88,
    "d3po lora, micro-batch 4": 0.85,
    "d3po full, micro-batch 4": 0.85,
    "d3po lora later, micro-batch 4": 1.0,
    "d3po full later, micro-batch 4": 1.0,
    "two processes": 0.75,
}


# ---- numbers


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """The geometric mean of the repeats' ratios, with its 95 % interval (Student's t over the logarithms of pairs)."""
    logs = np.log(np.array(ours) / np.array(theirs))
    half = scipy.stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)) if len(logs) > 1 else math.nan
    low, mean, high = (float(math.exp(logs.mean() + each)) for each in (-half, 0.0, half))
    return {"ratio": mean, "low": low, "high": high}


def total(times: dict[str, float], kind: str) -> float:
    return times[f"rollout_{kind}"] + times[f"update_{kind}"]


def gap(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The length of the difference between two gradients, as a share of the second's."""
    if one.keys() != other.keys():
        raise SystemExit(f"the two sides have gradients of different weights: {sorted(one.keys() ^ other.keys())[:3]}")

    def length(arrays: list[np.ndarray]) -> float:
        return math.sqrt(sum(float(np.square(each, dtype=np.float64).sum()) for each in arrays))

    return length([one[key] - other[key] for key in one]) / length(list(other.values()))


# ---- the table


def measured(case: Case, theirs: int, repeats: int, rates: dict[str, float]) -> dict[str, Any]:
    """alignbench at `case` against the plain loop at micro-batch `theirs`."""
    other = replace(case, micro_batch=theirs)
    with remote(lambda: Ours(case)) as (ours,):
        ours.ask("given")
        with remote(lambda: usual(case)) as (same,):  # at one micro-batch: another one's rounding alone is 2e-5 in fp32
            apart = gap(ours.ask("gradients"), same.ask("gradients"))
        if apart > 1e-5:
            raise SystemExit(f"{other.name}: the two sides' gradients differ by {apart:.1e} of their length; nothing is compared")
        with remote(lambda: usual(other)) as (plain,):
            times: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
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
        "micro_batch": {"ours": case.micro_batch, "plain": theirs},
        "images": case.images,
        "steps": case.steps,
        "gradients_apart": apart,
        **ratio(*([total(each, "processor") for each in times[side]] for side in ("ours", "plain"))),
        "wall": ratio(*([total(each, "wall") for each in times[side]] for side in ("ours", "plain"))),
    }
    for side, epochs in times.items():
        row[side] = {"repeats": [round(total(each, "processor") / case.images, 5) for each in epochs]}
        for phase in ("rollout", "update"):
            processor = statistics.median(each[f"{phase}_processor"] for each in epochs)
            floor = sum(counted[side][phase][kind] / rates[kind] for kind in rates)
            row[side][phase] = {
                "processor_seconds_an_image": processor / case.images,
                "wall_seconds_an_image": statistics.median(each[f"{phase}_wall"] for each in epochs) / case.images,
                "denoiser_share": within[side][phase] / processor if processor > 1e-3 else None,
                "gflop_an_image": sum(counted[side][phase].values()) / case.images / 1e9,
                "floor_seconds_an_image": floor / case.images,
                "of_the_floor": processor / floor if floor else None,
            }
    return row


def peaks(case: Case) -> dict[str, int]:
    """Peak memory of an epoch of each side above what the imports take, in bytes; each in a process that does nothing else."""
    found = {}
    for side, make in {"ours": lambda: Ours(case), "plain": lambda: usual(case)}.items():
        if side == "ours":
            with remote(make) as (first,):
                first.ask("given")
        with remote(make) as (only,):
            only.ask("epoch")
            found[side] = only.ask("memory")
    return found


def table(folder: Path, quick: bool) -> dict[str, Any]:
    rates = {}
    with remote(Rates) as (only,):
        rates = only.ask("epoch")
    say(f"this machine, one thread: {rates['matmul'] / 1e9:.1f} GFLOP/s in products, {rates['convolution'] / 1e9:.1f} in convolutions")
    heads = f"{'an image':>9}{'plain':>8}  {'in the denoiser':<16}{'x the floor':<14}MB"
    say(f"\n{'ours : plain, processor seconds':<40}{'ratio':>6}  {'95 %':<15}{heads}")
    rows = []
    for method in METHODS:
        for adapter in ("lora",) if quick else ("lora", "full"):
            images = {"ddpo": 4, "pxpo": 4, "kl_rlhf": 4, "d3po": 8, "pso": 16, "di_star": 8}[method]
            steps = 3 if quick else 5 if method == "d3po" else 10  # of a pair there are two images to the step
            case = Case(folder, method, adapter, images, steps, micro_batch=4)
            variants = [(case, 4)]
            if not quick:
                variants += [(case, 1)] if method == "ddpo" else []
                variants += [(replace(case, later=True), 4)] if method == "d3po" else []
            for variant, theirs in variants:
                row = measured(variant, theirs, 3 if quick else 7, rates)
                row["peak_bytes"] = {} if variant.later else peaks(replace(variant, micro_batch=theirs))
                rows.append(row)
                say(line(row))
    return {"rates": rates, "rows": rows}


class Rates:
    """The machine's own rates, asked for in a process of its own."""

    def epoch(self) -> dict[str, float]:
        return machine_rate.rates()


def line(row: dict[str, Any]) -> str:
    ours, plain = (sum(row[side][phase]["processor_seconds_an_image"] for phase in ("rollout", "update")) for side in ("ours", "plain"))
    phases = [row["ours"][phase] for phase in ("rollout", "update")]
    share = " ".join("   -" if each["denoiser_share"] is None else f"{each['denoiser_share']:4.0%}" for each in phases)
    floor = " ".join("   -" if each["of_the_floor"] is None else f"{each['of_the_floor']:4.1f}" for each in phases)
    memory = f"{row['peak_bytes']['ours'] / 1e6:.0f} : {row['peak_bytes']['plain'] / 1e6:.0f}" if row["peak_bytes"] else "-"
    interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['name']:<40}{row['ratio']:>6.3f}  {interval:<15}{ours:>9.3f}{plain:>8.3f}  {share:<16}{floor:<14}{memory}"


# ---- two processes


class Half:
    """One of two processes that share alignbench's epoch (gloo)."""

    def __init__(self, case: Case, rank: int, store: Path):
        os.environ["LOCAL_RANK"] = str(rank)  # the processes are here already: Lightning starts none
        distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
        from lightning.pytorch.strategies import DDPStrategy

        self.ours = Ours(case, DDPStrategy(process_group_backend="gloo"))

    def epoch(self) -> dict[str, float]:
        distributed.barrier()
        return self.ours.epoch()


def processes(folder: Path, quick: bool) -> dict[str, Any]:
    """DDPO with LoRA on two processes of one thread against the plain loop on two threads, by the wall."""
    case = Case(folder, "ddpo", "lora", images=8, steps=3 if quick else 5, micro_batch=4)
    with remote(lambda: Ours(case)) as (first,):
        first.ask("given")
    store = Path(tempfile.mkdtemp()) / "store"
    halves = [lambda rank=rank: Half(replace(case, processes=2), rank, store) for rank in range(2)]
    with remote(*halves) as both, remote(lambda: usual(case), threads=2) as (plain,):
        ours, theirs = [], []
        for turn in range(4 if quick else 8):
            for each in both:
                each.begin("epoch")
            mine = max(total(each.pipe.recv(), "wall") for each in both)
            other = total(plain.ask("epoch"), "wall")
            if turn:
                ours.append(mine / case.images)
                theirs.append(other / case.images)
    row = {"name": "two processes", **ratio(ours, theirs), "wall_seconds_an_image": {"ours": ours, "plain": theirs}}
    say(
        f"\ntwo processes against two threads, by the wall: {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}], "
        f"{statistics.median(ours):.3f} s an image against {statistics.median(theirs):.3f}"
    )
    return row


# ---- what became of it


def gates(found: dict[str, Any]) -> list[str]:
    """What a full run must reach, and did not."""
    rows = {row["name"]: row for row in [*found.get("table", {}).get("rows", []), *([found["processes"]] if "processes" in found else [])]}
    missed = [
        f"{name}: the ratio's upper end is {rows[name]['high']:.3f}, at most {most} is wanted"
        for name, most in GATES.items()
        if name in rows and not rows[name]["high"] <= most
    ]
    for name, row in rows.items():
        if (peak := row.get("peak_bytes")) and peak["ours"] > peak["plain"]:
            missed.append(f"{name}: peak memory {peak['ours'] / 1e6:.0f} MB, the plain loop's is {peak['plain'] / 1e6:.0f} MB")
        for phase in ("rollout", "update"):
            share = row.get("ours", {}).get(phase, {}).get("denoiser_share")
            if share is not None and share < 0.85:
                missed.append(f"{name}: {share:.0%} of the {phase} is in the denoiser, at least 85 % is wanted")
    return missed


def changes(found: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Ratios that are more than CHANGED away from those of the committed results."""

    def ratios(results: dict[str, Any]) -> dict[str, float]:
        rows = {row["name"]: row["ratio"] for row in results.get("table", {}).get("rows", [])}
        return rows | {key: results[key]["ratio"] for key in ("processes", "sweep") if key in results}

    now, then = ratios(found), ratios(before)
    return [
        f"{name}: {'slower' if now[name] > then[name] else 'faster'}, {now[name]:.3f} where {then[name]:.3f} is committed"
        for name in now
        if name in then and abs(now[name] / then[name] - 1) > CHANGED
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="LoRA alone, three repeats, no gates")
    parser.add_argument("--only", choices=["table", "processes", "scaling", "startup", "sweep"], action="append", default=[])
    parser.add_argument("--to", type=Path, default=RESULTS / f"{machine_rate.name()}.json", help="where the results are written")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    began, found = time.time(), {}
    parts = {"table": table, "processes": processes, "scaling": scaling, "startup": startup, "sweep": sweep}
    with tempfile.TemporaryDirectory() as work:
        torch.manual_seed(0)
        with remote(lambda: Made(Path(work))) as (maker,):  # in a child: this process never computes, so that its children may
            maker.ask("epoch")
        for name, part in parts.items():
            if name in options.only if options.only else not (options.quick and name in ("scaling", "sweep")):
                found[name] = part(Path(work), options.quick)
    found |= {"seconds": round(time.time() - began), "torch": torch.__version__, "threads": 1, "cores": os.cpu_count()}
    if options.to.exists():
        for change in changes(found, json.loads(options.to.read_text())):
            say(f"changed: {change}")
    if not options.quick and not options.only:
        options.to.parent.mkdir(exist_ok=True)
        options.to.write_text(json.dumps(found, indent=1) + "\n")
        say(f"\nwritten: {options.to}")
    say(f"{found['seconds']} s")
    missed = [] if options.quick else gates(found)
    for each in missed:
        say(f"missed: {each}")
    return 1 if missed else 0


class Made:
    """Makes the small pipeline."""

    def __init__(self, folder: Path):
        small(folder, 16)

    def epoch(self) -> None:
        return None


if __name__ == "__main__":
    sys.exit(main())
