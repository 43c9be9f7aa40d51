"""A comparison's run folders, each read once: what each says of itself, its pictures, its history, its machine, why it has no result."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from alignbench.report.record import read_about, read_config, read_metrics, read_run, read_samples


@dataclass(frozen=True)
class Trained:
    """A run's folder, read once."""

    folder: Path

    @property
    def finished(self) -> bool:
        return (self.folder / "samples.parquet").is_file()

    @cached_property
    def about(self) -> dict[str, Any]:
        return read_about(self.folder) if self.finished else read_run(self.folder)

    @cached_property
    def pictured(self) -> dict[tuple[int, str], dict[str, Any]]:
        """The rows of kept pictures, by prompt and side."""
        return {(row["prompt_id"], row["who"]): row for row in read_samples(self.folder) if row["image"] and row["k"] == 0}

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Of validation, in the order of training; of what was only evaluated, nothing."""
        there = (self.folder / "metrics.jsonl").is_file()
        return [row for row in read_metrics(self.folder) if row["split"] == "validation"] if there else []

    @cached_property
    def timing(self) -> dict[str, Any]:
        path = self.folder / "timing.json"
        return json.loads(path.read_bytes()) if path.is_file() else {}

    @property
    def config(self) -> str:
        said = read_config(self.folder) if (self.folder / "config.yaml").is_file() else self.about.get("config", {})
        return yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=100)

    @property
    def reason(self) -> str:
        """Why there is no result: the last line of error.txt."""
        path = self.folder / "error.txt"
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "not finished; the command that began it continues it")


def machines(runs: Sequence[Trained]) -> dict[str, Any]:
    """What timing.json of all runs says."""
    timings = [run.timing for run in runs if run.timing]
    versions: dict[str, set[str]] = {}
    for each in timings:
        for name, version in each.get("versions", {}).items():
            versions.setdefault(name, set()).add(version)
    devices = [each["device"] for each in timings if "device" in each]
    seconds = {stage: sum(each.get("seconds", {}).get(stage, 0.0) for each in timings) for stage in ("building", "training", "evaluation")}
    return {
        "runs": len(timings),
        "devices": {device: devices.count(device) for device in sorted(set(devices))},
        "threads": sorted({each["threads"] for each in timings if "threads" in each}),
        "versions": {name: sorted(found) for name, found in sorted(versions.items())},
        "seconds": seconds,
    }
