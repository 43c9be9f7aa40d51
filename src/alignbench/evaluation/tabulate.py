"""What a comparison says, computed from runs' images alone: levels and changes with intervals, contrasts, wins, fronts, hacking gaps."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from alignbench.evaluation.aggregates import change, contrast, level, profile
from alignbench.evaluation.compared import Cell
from alignbench.evaluation.crossed import Bootstrap, CrossedInterval
from alignbench.evaluation.fronts import front_area, matched_reward, non_dominated
from alignbench.evaluation.improvement import Improvement, holm, win_matrix
from alignbench.evaluation.overoptimisation import fit_gains, hacking_gap

THRESHOLDS = 21  # of a performance profile
BEYOND = 1.1  # times the largest divergence: how far areas go, so that its own point has one


def told(interval: CrossedInterval | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    return {"value": interval.value, "low": interval.low, "high": interval.high, "p": interval.p, "over": interval.over}


def tabulate(cells: Sequence[Cell], ranked_by: str | None, how: Bootstrap, power: float) -> dict[str, Any]:
    """Everything of one comparison as plain numbers.

    ranked_by: the metric that methods are compared by, trained on by none of them; None: there is no such metric, and no ranking.
    """
    scored = np.logical_and.reduce([cell.scored() for cell in cells])
    kept = None if scored.all() else tuple(np.flatnonzero(scored).tolist())
    if scored.sum() < 2:
        raise ValueError(f"{int(scored.sum())} prompts have an image with a score by every judge in every run; a table needs two or more")
    cells = [replace(cell, kept=kept) for cell in cells]
    rows = [_row(cell, how, power) for cell in cells]
    found: dict[str, Any] = {"ranked_by": ranked_by, "rows": rows, "left_out": int((~scored).sum())}
    if ranked_by is None:
        return found
    order = sorted(range(len(cells)), key=lambda n: -rows[n]["metrics"][ranked_by]["change"]["value"])
    found["rows"] = [rows[n] for n in order]
    cells = [cells[n] for n in order]
    wins = win_matrix({"reference": cells[0].start(ranked_by), **{cell.label: cell.values(ranked_by) for cell in cells}}, how)
    found |= {
        "contrasts": _contrasts(cells, ranked_by, how, power),
        "wins": [{"a": a, "b": b, **_wins(one)} for (a, b), one in wins.items()],
        "fronts": _fronts(cells, ranked_by, how),
        "profiles": _profiles(cells, ranked_by, how),
    }
    return found


def _row(cell: Cell, how: Bootstrap, power: float) -> dict[str, Any]:
    metrics = {}
    for name, label in cell.labels.items():
        after = cell.change(name)
        moved = level(after, how, kind="mean")
        metrics[name] = {
            "label": label,
            "reference": float(np.nanmean(cell.start(name))),
            "mean": told(level(cell.values(name), how, kind="mean")),
            "change": told(moved),
            "change_iqm": told(level(after, how, kind="iqm")),
            "detectable": moved.detectable(power),
        }
    about = [run.about for run in cell.runs]
    return {
        "label": cell.label,
        "method": cell.method,
        "cell": about[0]["cell"],
        "reward": about[0]["choices"]["reward"],
        "seeds": cell.seeds,
        "failed": cell.failed,
        "reward_queries": [each["meters"]["reward_queries"] for each in about],
        "network_evaluations": [sum(each["meters"]["network_evaluations"].values()) for each in about],
        "epochs": [each["epochs"] for each in about],
        "metrics": metrics,
        "gap": told(_gap(cell, cell.named("held out"), how)),
        "gold_gap": told(_gap(cell, cell.named("gold"), how)),
        "peak": _peak(cell, how),
        "along": _along(cell),
        "sets": _sets(cell),
    }


def _gap(cell: Cell, others: list[str], how: Bootstrap) -> CrossedInterval | None:
    """None where nothing was trained on or nobody was held out; a judge that gives all the reference's images one score has no unit."""
    able = [name for name in (*cell.named("trained"), *others) if np.nanstd(cell.start(name)) > 0]
    trained, others = [name for name in cell.named("trained") if name in able], [name for name in others if name in able]
    if not trained or not others:
        return None
    scores = {name: (cell.values(name), cell.start(name)) for name in able}
    return hacking_gap(scores[trained[0]], {name: scores[name] for name in others}, how)


def _peak(cell: Cell, how: Bootstrap) -> dict[str, Any] | None:
    """The best checkpoint by the held-out judges: its epochs, its change, and how much better than the last it is."""
    if any(run.about["peak"] is None for run in cell.runs):
        return None
    metrics = {}
    for name in cell.labels:
        gained = cell.values(name, "peak") - cell.values(name)
        metrics[name] = {
            "change": told(level(cell.change(name, "peak"), how, kind="mean")),
            "gained": told(level(gained, how, kind="mean")),
        }
    return {"epochs": [run.about["peak"] for run in cell.runs], "metrics": metrics}


def _sets(cell: Cell) -> list[dict[str, Any]]:
    """Of each measure of the policy's images as a set its value for each finished seed."""
    found: dict[tuple[str, str, str], list[float | None]] = {}
    for run in cell.runs:
        for row in run.about["sets"]:
            if row["who"] == "policy":
                found.setdefault((row["space"], row["against"], row["name"]), []).append(row["value"])
    return [{"space": space, "against": against, "name": name, "values": values} for (space, against, name), values in found.items()]


def _along(cell: Cell) -> dict[str, Any]:
    points, divergence = cell.along(), cell.named("divergence")
    fits = {}
    for name in cell.named("trained", "gold", "held out") if divergence and points else ():
        there = [(kl, gain) for point in points if (kl := point[divergence[0]]) is not None and (gain := point[name]) is not None]
        if sum(kl > 0 for kl, _ in there) >= 3:
            one = fit_gains(*zip(*there, strict=True))
            fits[name] = {"alpha": one.alpha, "beta": one.beta, "residual": one.residual, "peak": one.peak}
    return {"points": points, "fits": fits}


def _contrasts(cells: Sequence[Cell], metric: str, how: Bootstrap, power: float) -> list[dict[str, Any]]:
    """Each method against the reference and against each other, with Holm's correction over all of them."""
    found: list[tuple[str, str, CrossedInterval]] = []
    for cell in cells:
        found.append((cell.label, "reference", change(cell.values(metric), cell.start(metric), how, kind="mean")))
    for a, b in combinations(cells, 2):
        found.append((a.label, b.label, contrast(a.change(metric), b.change(metric), how, kind="mean")))
    corrected = holm([one.p for *_, one in found])
    return [
        {"a": a, "b": b, "difference": told(one), "holm": p, "detectable": one.detectable(power)}
        for (a, b, one), p in zip(found, corrected, strict=True)
    ]


def _wins(one: Improvement) -> dict[str, Any]:
    return {"win": one.win.value, "tie": one.tie.value, "loss": one.loss.value, "probability": told(one.probability)}


def _fronts(cells: Sequence[Cell], metric: str, how: Bootstrap) -> list[dict[str, Any]]:
    """Of each method over its settings, and of all: change of `metric` over divergence, the area under it, and change at one divergence."""
    able = [cell for cell in cells if cell.named("divergence")]
    if not able:
        return []
    axis = able[0].named("divergence")[0]
    x = {cell.label: level(cell.values(axis), how, kind="mean").value for cell in able}
    limit = BEYOND * max(x.values())
    if not limit > 0:
        return []
    methods = list(dict.fromkeys(cell.method for cell in able))
    most = {method: max(x[cell.label] for cell in able if cell.method == method) for method in methods}
    at = min(value for value in most.values() if value > 0)
    found = []
    for name in [*methods, *(["all"] if len(methods) > 1 else [])]:
        own = sorted((cell for cell in able if name in (cell.method, "all")), key=lambda cell: x[cell.label])
        points = [(cell.values(axis), cell.change(metric)) for cell in own]
        y = [float(np.nanmean(after)) for _, after in points]
        start = np.zeros_like(points[0][0])
        shared = all((cell.trainings, cell.failed) == (own[0].trainings, own[0].failed) for cell in own)
        found.append(
            {
                "method": name,
                "divergence": axis,
                "limit": limit,
                "points": [
                    {"label": cell.label, "x": x[cell.label], "y": height, "on_front": on}
                    for cell, height, on in zip(own, y, non_dominated([x[cell.label] for cell in own], y), strict=True)
                ],
                "area": told(front_area(points, how, base=0.0, limit=limit, shared=shared)),
                "at": at,
                "matched": told(matched_reward([(start, start), *points], how, at=at, shared=shared)) if name != "all" else None,
            }
        )
    return found


def _profiles(cells: Sequence[Cell], metric: str, how: Bootstrap) -> dict[str, Any]:
    """The share of (seed, prompt) whose mean is above each of some thresholds."""
    start = np.nanmean(cells[0].start(metric), axis=1, keepdims=True).T[..., None]  # [1,P,1]
    tables = {"reference": start, **{cell.label: cell.values(metric) for cell in cells}}
    means = np.concatenate([np.nanmean(values, axis=2).ravel() for values in tables.values()])
    thresholds = np.linspace(float(means.min()), float(means.max()), THRESHOLDS).tolist()
    found = {}
    for label, values in tables.items():
        one = profile(values, thresholds, how)
        found[label] = {"share": one.share, "low": one.low, "high": one.high}
    return {"thresholds": thresholds, "of": found}
