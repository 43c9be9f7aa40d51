"""What the trainer's switches change: an epoch of DDPO with LoRA with each of them, against itself without."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from remote import remote, say, together
from sides import Case, Ours
from table import PHASES, total
from verdicts import WANTED, paired, ratio


def switches(folder: Path, extent: str) -> list[dict[str, Any]]:
    """On one core; the first epoch of each side warms up, and compiles."""
    case, found = Case(folder, "ddpo", "lora", **WANTED["switched"]), []
    say("\nwith a switch : without, processor seconds")
    for name, words in WANTED["switches"].items():
        with remote(lambda words=words: Ours(replace(case, words=tuple(words))), lambda: Ours(case)) as sides:
            first, _ = (each.ask("epoch") for each in sides)
            turns = [together(sides) for _ in range(WANTED["repeats"]["switches"])]
            memory = [each.ask("memory") for each in sides]
        row: dict[str, Any] = {"name": name, **ratio(*([total(each[side], "processor") for each in turns] for side in (0, 1)))}
        for phase in PHASES:
            row[phase] = ratio(*([each[side][f"{phase}_processor"] for each in turns] for side in (0, 1)))
        row |= {"first_epoch_seconds": total(first, "wall"), "peak_bytes_of_both": memory}
        found.append(row)
        say(switched(row))
    return found


def switched(row: dict[str, Any]) -> str:
    phases = ", ".join(f"{phase} {row[phase]['ratio']:.3f}" for phase in PHASES)
    memory = " : ".join(f"{each / 1e6:.0f}" for each in row["peak_bytes_of_both"])
    return f"{paired(row)}  {phases}, first epoch {row['first_epoch_seconds']:.0f} s, {memory} MB"
