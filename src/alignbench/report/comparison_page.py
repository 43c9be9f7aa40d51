"""report.html of many runs: one file that needs no other, from what `table` computed and what is in the runs' folders."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import jinja2
import numpy as np
import yaml
from markupsafe import Markup

from alignbench.report import charts
from alignbench.report.comparison import OTHER, budget, decimals, over, plain, shown
from alignbench.report.page import SIDES, breakable, number
from alignbench.report.page import shown as visible
from alignbench.report.pictures import SMALL, Album
from alignbench.report.record import picture_path, read_about, read_config, read_metrics, read_run, read_samples
from alignbench.report.summary import summary

HERE = Path(__file__).parent
ROLES = ((7, "", "trained"), (4, "dashed", "gold"), (6, "dotted", "held out"))  # of judges along training: shade, line, label
AGAINST = {"kl": "KL to the reference, nats", "reward_queries": "reward queries", "network_evaluations": "network evaluations"}


class Claim(TypedDict):
    """What somebody says, and what these runs say of it."""

    says: str
    source: str
    verdict: str
    value: float | None
    low: float | None
    high: float | None


class Part(TypedDict):
    """A table of words that stands before the comparisons."""

    title: str
    head: list[str]
    body: list[list[str]]
    text: str


@dataclass(frozen=True)
class Trained:
    """A run's folder, read once."""

    folder: Path
    finished: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "finished", (self.folder / "samples.parquet").is_file())

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


def page(
    made: dict[str, Any],
    folders: Sequence[Path],
    *,
    title: str = "",
    intro: str = "",
    claims: Sequence[Claim] = (),
    parts: Sequence[Part] = (),
    machine: bool = True,
) -> str:
    """HTML. The same files give the same text; with machine=False it holds nothing of timing.json, which differs between machines.

    made: what `table.compared` gave for the runs in `folders`. ValueError: a file that is missing or damaged.
    """
    by_hash = {run.about["hash"]: run for run in sorted((Trained(Path(folder)) for folder in folders), key=lambda run: run.finished)}
    runs = sorted(by_hash.values(), key=lambda run: run.folder.name)  # the same run in two places is one, finished in one of them
    album = Album()
    shown_comparisons = [_comparison(one, made["level"], runs, album, f"c{n}") for n, one in enumerate(made["comparisons"], start=1)]
    addresses, side = album.addresses()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=jinja2.FileSystemLoader(HERE)
    )
    environment.filters |= {
        "rest": lambda addresses, seen: {n: each for n, each in enumerate(addresses) if n not in seen},
        "number": number,
        "count": "{:,}".format,
        "shown": visible,
        "breakable": breakable,
        "plain": plain,
        "decimals": decimals,
        "interval": shown,
    }
    style, script = ((HERE / f"comparison_page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return environment.get_template("comparison_page.html").render(
        made=made,
        title=title or " and ".join(dict.fromkeys(f"{one['model']} on {one['dataset']}" for one in made["comparisons"])) + ", compared",
        intro=[part.strip() for part in intro.split("\n\n") if part.strip()],
        claims=claims,
        parts=parts,
        comparisons=shown_comparisons,
        failed=[run for run in runs if not run.finished],
        machine=_machines(runs) if machine else None,
        addresses=addresses,
        side=side,
        sharp=side <= SMALL,
        seen=set(),  # pictures that already stand on the page, as it is written
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        percent=f"{100 * made['level']:g}",
        OTHER=OTHER,
        charts=charts,
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _comparison(one: dict[str, Any], level: float, runs: Sequence[Trained], album: Album, name: str) -> dict[str, Any]:
    """One comparison as the page shows it."""
    rows, metric = one["rows"], one["ranked_by"]
    of_row = [sorted((run for run in runs if run.finished and _fits(run, one, row)), key=lambda run: run.about["seed"]) for row in rows]
    moved = [row["metrics"][metric]["change"] for row in rows] if metric else []
    reach = (min(each["low"] for each in moved), max(each["high"] for each in moved)) if moved else (0.0, 0.0)
    return {
        **one,
        "id": name,
        "summary": summary(one, level),
        "reference": {name: each["reference"] for row in rows for name, each in row["metrics"].items()},
        "over": over(rows),
        "budget": budget(rows),
        "judged": _names(rows, judges=True),
        "costs": _names(rows, judges=False),
        "measured": list(dict.fromkeys((each["space"], each["against"], each["name"]) for row in rows for each in row["sets"])),
        "bars": [charts.bar((each["low"], each["value"], each["high"]), reach, n) for n, each in enumerate(moved)],
        "curves": _curves(rows, metric, of_row),
        "front": _front(one),
        "along": _along(one),
        "labels": list(dict.fromkeys(each["a"] for each in one.get("wins", []))),
        "won": {(each["a"], each["b"]): {**each, "tint": _tint(each["probability"]["value"])} for each in one.get("wins", [])},
        "grid": _grid(rows, metric, of_row, album),
        "of_row": of_row,
    }


def _fits(run: Trained, one: dict[str, Any], row: dict[str, Any]) -> bool:
    about = run.about
    return about["cell"] == row["cell"] and about["seed"] in row["seeds"] and about["choices"]["model"] == one["model"]


def _names(rows: Sequence[dict[str, Any]], *, judges: bool) -> dict[str, str]:
    """Metrics with what they are evidence of, of judges or of none; a judge that only some rows were trained on is named by the others."""
    found: dict[str, str] = {}
    for row in rows:
        for name, each in row["metrics"].items():
            if (each["label"] not in OTHER) == judges and found.get(name, "trained") == "trained":
                found[name] = each["label"]
    return found


def _curves(rows: Sequence[dict[str, Any]], metric: str | None, of_row: Sequence[Sequence[Trained]]) -> list[dict[str, Any]]:
    """Of each trained reward, then of the ranked metric, a chart over divergence and over each budget."""
    trained = [next((name for name, each in row["metrics"].items() if each["label"] == "trained"), None) for row in rows]
    wanted = [(name, "trained on", {n for n, own in enumerate(trained) if own == name}) for name in dict.fromkeys(trained) if name]
    if metric and metric not in trained:
        wanted.append((metric, next(row["metrics"][metric]["label"] for row in rows), set(range(len(rows)))))
    found = []
    for name, role, members in wanted:
        drawn_charts = []
        for x, axis in AGAINST.items():
            drawn = [line for n in sorted(members) if (line := _line(n, rows[n]["label"], of_row[n], x, name, role == "trained on"))]
            if any(across > 0 for line in drawn for across, _ in line.points):
                ends = "; ".join(f"{line.name} from {_pair(line.points[0])} to {_pair(line.points[-1])}" for line in drawn)
                drawn_charts.append(charts.lines(drawn, axis, f"{name} against {axis}: {ends}"))
        if drawn_charts:
            found.append({"name": name, "role": role, "charts": drawn_charts})
    return found


def _pair(point: tuple[float, float]) -> str:
    return f"{point[1]:.4g} at {point[0]:.4g}"


def _line(n: int, label: str, runs: Sequence[Trained], x: str, y: str, trained: bool) -> charts.Line | None:
    """The mean of the seeds at each epoch that all of them validated, and each seed's own way."""
    tables = []
    for run in runs:
        rows = [(row["epoch"], row.get(x), row.get(y, row.get("reward") if trained else None)) for row in run.history]
        tables.append(
            {epoch: (float(across), float(height)) for epoch, across, height in rows if across is not None and height is not None}
        )
    epochs = sorted(set.intersection(*map(set, tables))) if tables else []
    if not epochs:
        return None
    mean = [tuple(np.mean([table[epoch] for table in tables], axis=0).tolist()) for epoch in epochs]
    return charts.Line(shade=n, name=label, points=mean, thin=[list(table.values()) for table in tables] if len(tables) > 1 else [])


def _tint(probability: float) -> int:
    """Of 11 shades, the middle one for 1/2; full from 3/4 on, and down to 1/4."""
    return max(0, min(10, 5 + round(20 * (probability - 0.5))))


def _front(one: dict[str, Any]) -> Markup | None:
    fronts = [front for front in one.get("fronts", []) if front["method"] != "all"]
    spots, metric = [], one["ranked_by"]
    for n, row in enumerate(one["rows"]):
        if fronts and (axis := row["metrics"].get(fronts[0]["divergence"])):
            x, y = axis["mean"], row["metrics"][metric]["change"]
            ends = [tuple(each[end] for end in ("low", "value", "high")) for each in (x, y)]
            spots.append(charts.Spot(shade=n, name=row["label"], x=ends[0], y=ends[1]))
    if not spots:
        return None
    steps = [[(0.0, 0.0), *((point["x"], point["y"]) for point in front["points"] if point["on_front"])] for front in fronts]
    spoken = "; ".join(f"{spot.name}: {spot.y[1]:+.4g} at {spot.x[1]:.4g}" for spot in spots)
    return charts.front(
        spots, steps, AGAINST.get(fronts[0]["divergence"], fronts[0]["divergence"]), f"Change in {metric} against divergence: {spoken}"
    )


def _along(one: dict[str, Any]) -> list[dict[str, Any]]:
    """A chart of each row: gains on validation prompts of what was trained on, of gold and of held-out judges, along training."""
    drawn_rows = []
    for row in one["rows"]:
        points, metrics = row["along"]["points"], row["metrics"]
        axis = next((name for name, each in metrics.items() if each["label"] == "divergence"), "epoch")
        drawn = []
        for shade, dash, label in ROLES:
            for name in (name for name, each in metrics.items() if each["label"] == label):
                way = [(point[axis], point[name]) for point in points if None not in (point[axis], point[name])]
                if way:
                    drawn.append(charts.Line(shade=shade, name=f"{name}, {label}", points=way, dash=dash))
        if any(line.name.endswith(", trained") for line in drawn) and len(drawn) > 1:
            drawn_rows.append((row["label"], axis, drawn))
    heights = [height for _, _, drawn in drawn_rows for line in drawn for _, height in line.points]
    found = []
    for label, axis, drawn in drawn_rows:
        ends = "; ".join(f"{line.name}: {line.points[-1][1]:+.4g} at {line.points[-1][0]:.4g}" for line in drawn)
        where = AGAINST.get(axis, axis)
        names = [(line.shade, line.dash, line.name) for line in drawn]
        found.append({"label": label, "lines": names, "svg": charts.lines(drawn, where, f"{label}, gains at the end: {ends}", heights)})
    return found


def _grid(rows: Sequence[dict[str, Any]], metric: str | None, of_row: Sequence[Sequence[Trained]], album: Album) -> list[dict[str, Any]]:
    """A line for each pictured prompt: the reference, then of each row a picture for each seed, with what judges gave it."""
    every = [run for runs in of_row for run in runs]
    prompts = {prompt: row["prompt"] for run in every for (prompt, _), row in run.pictured.items()}
    found = []
    for prompt, text in sorted(prompts.items()):
        first = [run for run in every if (prompt, SIDES[0]) in run.pictured][:1]
        cells = [{"label": "reference", "seeds": [each for run in first if (each := _picture(run, prompt, SIDES[0], metric, album))]}]
        for row, runs in zip(rows, of_row, strict=True):
            cells.append(
                {"label": row["label"], "seeds": [each for run in runs if (each := _picture(run, prompt, SIDES[1], metric, album))]}
            )
        if cells[0]["seeds"] and any(cell["seeds"] for cell in cells[1:]):
            found.append({"text": text, "cells": cells})
    return found


def _picture(run: Trained, prompt: int, who: str, metric: str | None, album: Album) -> dict[str, Any] | None:
    row = run.pictured.get((prompt, who))
    kept = album.add(picture_path(run.folder, row["image"])) if row else None
    if row is None or kept is None:
        return None
    labels = {each["name"]: each["label"] for each in run.about["metrics"]}
    names = [name for name, label in labels.items() if label == "trained" or name == metric]
    scores = [f"{name} {row[name]:.3g}" for name in names if row.get(name) is not None]
    return {"seed": run.about["seed"] if who == SIDES[1] else None, "picture": kept, "scores": scores}


def _machines(runs: Sequence[Trained]) -> dict[str, Any]:
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
        "by_run": {run.folder: run.timing for run in runs},
    }
