"""How alignbench's epoch of DDPO grows with images, steps, resolution and rank, and its memory with steps.

Images, steps and rank are held against a straight line. Of resolution, convolutions grow with the pixels and attention with their square:
it is held against a parabola in the pixels.
"""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from architectures import small
from remote import each_of, remote, say
from sides import Case, Ours
from table import total
from verdicts import WANTED

GROWN = WANTED["grown"]["values"]


class Sized:
    """Makes the small pipeline for other resolutions."""

    def __init__(self, folder: Path):
        self.folder = folder

    def epoch(self) -> None:
        for size in GROWN["resolution"]:
            small(self.folder / f"at-{size}", size)


def off_the_curve(x: list[float], y: list[float], degree: int = 1) -> float:
    """How far the furthest point lies from the polynomial of least squared relative errors, as a share of the point."""
    y = np.array(y)
    curve = np.polynomial.Polynomial.fit(x, y, degree, w=1 / y)
    return float(np.abs(curve(np.array(x)) / y - 1).max())


def grown(folder: Path, numbers: dict[str, int]) -> Case:
    at, micro_batch = folder / f"at-{numbers['resolution']}", WANTED["grown"]["micro_batch"]
    return Case(at, "ddpo", "lora", numbers["images"], numbers["steps"], micro_batch, rank=numbers["rank"])


def peak(case: Case) -> float:
    """Peak memory of two epochs in bytes, the median of several processes as in the table."""
    with remote(*[lambda: Ours(case)] * WANTED["peaks"]["full"]) as several:
        each_of(several, "two epochs")
        return statistics.median(each.ask("memory") for each in several)


def scaling(folder: Path, extent: str) -> dict[str, Any]:
    with remote(lambda: Sized(folder)) as (maker,):
        maker.ask("epoch")
    found: dict[str, Any] = {}
    say(f"\n{'DDPO, LoRA: processor seconds an epoch of':<44}{'':<36}furthest from its curve")
    for name, values in GROWN.items():
        cases = [grown(folder, WANTED["grown"]["least"] | {name: value}) for value in values]
        with remote(*[lambda case=case: Ours(case) for case in cases]) as sizes:
            # by turns: where the machine is slowed down for a while, it is so for every size, and each has another turn
            epochs = [[total(each.ask("epoch"), "processor") for each in sizes] for _ in range(WANTED["repeats"]["grown"] + 1)][1:]
        seconds = [min(each) for each in zip(*epochs, strict=True)]  # what else runs on the machine only ever adds
        x = [float(value**2 if name == "resolution" else value) for value in values]
        off = off_the_curve(x, seconds, degree=2 if name == "resolution" else 1)
        found[name] = {"values": list(values), "seconds": seconds, "off_the_curve": off}
        points = ", ".join(f"{value}: {second:.2f}" for value, second in zip(values, seconds, strict=True))
        say(f"{name:<12}{points:<68}{off:.1%}")
    found["steps"]["peak_bytes"] = steps = [peak(grown(folder, WANTED["grown"]["least"] | {"steps": value})) for value in GROWN["steps"]]
    say(f"peak memory at {GROWN['steps']} steps: {', '.join(f'{each / 1e6:.1f}' for each in steps)} MB")
    return found
