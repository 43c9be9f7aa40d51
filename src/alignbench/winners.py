"""What a search leaves in its folder: every trial as a table and a picture, and each method's winner as a recipe, with its evidence."""

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from alignbench.check import read_choice
from alignbench.config import conf_folder
from alignbench.knobs import Settings, Side
from alignbench.report.record import write_atomically
from alignbench.report.trials import trials_csv, trials_png


def record(folder: Path, sides: list[Side], settings: Settings, command: str) -> None:
    """trials.csv, trials.png and each method's winner so far: written again after every batch."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for side in sides for row in side.rows]
    best = {side.method: found for side in sides if (found := side.best(settings.direction)) is not None}
    write_atomically(folder / "trials.csv", trials_csv(rows))
    logarithmic = {side.method: side.range.log for side in sides}
    write_atomically(folder / "trials.png", trials_png(rows, logarithmic, {method: row["trial"] for method, row in best.items()}))
    for side in sides:
        if side.method in best:
            write_atomically(folder / f"{side.method}.yaml", overlay(side, best[side.method], settings, command).encode())


def overlay(side: Side, best: dict[str, Any], settings: Settings, command: str) -> str:
    """The winner as conf/recipe/<method>@<model>.yaml: the recipe that its runs had, what the command set, and the knob."""
    base = side.bases[0]
    node: dict[str, Any] = dict(read_choice("recipe", base.choices["recipe"], conf_folder())) if "recipe" in base.choices else {}
    node = json.loads(json.dumps(node))  # ours to change
    for word in [*shlex.split(base.command)[3:], f"{side.knob}={best['value']!r}"]:
        key = word.partition("=")[0].lstrip("+")
        if key in base.choices or key == "seed":
            continue
        value: Any = base.config
        for part in key.split("."):
            value = value[part]
        _put(node, key, best["value"] if key == side.knob else value)
    seeds = ", ".join(str(base.config["seed"]) for base in side.bases)
    failed = sum(row["gain"] is None for row in side.rows)
    return "\n".join(
        [
            "# @package _global_",
            f"# {side.method} on {base.choices['model']}: {side.knob} found by a search, the rest as its runs had it",
            f"# {best['metric']} {best['gain']:+.6g} from the start to the last epoch on validation prompts, mean over seed {seeds}",
            f"# the best of {len(side.rows)} trials ({failed} failed) from {side.range.low:g} to {side.range.high:g}, {settings.sampler}",
            f"# runs: {best['runs']}",
            f"# {command}",
            yaml.safe_dump(node, sort_keys=False, allow_unicode=True),
        ]
    )


def _put(node: dict[str, Any], key: str, value: Any) -> None:
    *parts, last = key.split(".")
    for part in parts:
        node = node.setdefault(part, {})
    node[last] = value
