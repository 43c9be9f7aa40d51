"""report.html of many runs: one file that needs no other, from what `table` computed and what is in the runs' folders."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import jinja2
from markupsafe import Markup

from alignbench.report import charts
from alignbench.report.comparison import OTHER, budget, decimals, over, plain
from alignbench.report.comparison_charts import along, curves, front
from alignbench.report.folders import Trained, machines
from alignbench.report.page import SIDES, breakable, number
from alignbench.report.page import shown as visible
from alignbench.report.pictures import SMALL, Album
from alignbench.report.record import picture_path
from alignbench.report.summary import summary

HERE = Path(__file__).parent


class Claim(TypedDict):
    """What somebody says, and what these runs say of it."""

    says: str
    source: str
    verdict: str
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Block:
    """A table of words: its head, its lines, and the text beneath."""

    title: str
    head: list[str]
    body: list[list[str]]
    text: str


def page(
    made: dict[str, Any],
    folders: Sequence[Path],
    *,
    title: str = "",
    intro: str = "",
    claims: Sequence[Claim] = (),
    blocks: Sequence[Block] = (),
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
    }
    style, script = ((HERE / f"comparison_page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return environment.get_template("comparison_page.html").render(
        made=made,
        title=title or " and ".join(dict.fromkeys(f"{one['model']} on {one['dataset']}" for one in made["comparisons"])) + ", compared",
        intro=[part.strip() for part in intro.split("\n\n") if part.strip()],
        claims=claims,
        blocks=blocks,
        comparisons=shown_comparisons,
        failed=[run for run in runs if not run.finished],
        machine=machines(runs) if machine else None,
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
        "curves": curves(rows, metric, of_row),
        "front": front(one),
        "along": along(one),
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


def _tint(probability: float) -> int:
    """Of 11 shades, the middle one for 1/2; full from 3/4 on, and down to 1/4."""
    return max(0, min(10, 5 + round(20 * (probability - 0.5))))


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
    scores = [f"{name} {_score(row[name])}" for name in names if row.get(name) is not None]
    return {"seed": run.about["seed"] if who == SIDES[1] else None, "picture": kept, "scores": scores}


def _score(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
