"""How alignbench's epoch of DDPO grows with images, steps, resolution and rank, and its memory with steps.

Images, steps and rank are held against a straight line. Of resolution, convolutions grow with the pixels and attention with their square:
it is held against a parabola in the pixels.
"""

from pathlib import Path
from typing import Any

import numpy as np
from architectures import small
from remote import remote, say
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


def scaling(folder: Path, extent: str) -> dict[str, Any]:
    with remote(lambda: Sized(folder)) as (maker,):
        maker.ask("epoch")
    found: dict[str, Any] = {}
    say(f"\n{'DDPO, LoRA: processor seconds an epoch of':<44}{'':<36}furthest from its curve")
    for name, values in GROWN.items():
        seconds, memory = [], []
        for value in values:
            numbers = WANTED["grown"]["least"] | {name: value}
            case = Case(
                folder / f"at-{numbers['resolution']}",
                "ddpo",
                "lora",
                numbers["images"],
                numbers["steps"],
                WANTED["grown"]["micro_batch"],
                rank=numbers["rank"],
            )
            with remote(lambda case=case: Ours(case)) as (ours,):
                epochs = [ours.ask("epoch") for _ in range(WANTED["repeats"]["grown"] + 1)][1:]
                memory.append(ours.ask("memory"))
            seconds.append(min(total(each, "processor") for each in epochs))  # what else runs on the machine only ever adds
        x = [float(value**2 if name == "resolution" else value) for value in values]
        off = off_the_curve(x, seconds, degree=2 if name == "resolution" else 1)
        found[name] = {"values": list(values), "seconds": seconds, "off_the_curve": off, "peak_bytes": memory}
        points = ", ".join(f"{value}: {second:.2f}" for value, second in zip(values, seconds, strict=True))
        say(f"{name:<12}{points:<68}{off:.1%}")
    steps = found["steps"]["peak_bytes"]
    say(f"peak memory at {GROWN['steps']} steps: {', '.join(f'{each / 1e6:.1f}' for each in steps)} MB")
    return found
