"""The curves, fronts and over-optimisation of a comparison, as charts: which numbers go where."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from alignbench.report import charts
from alignbench.report.folders import Trained

ROLES = ((7, "", "trained"), (4, "dashed", "gold"), (6, "dotted", "held out"))  # of judges along training: shade, line, label
AGAINST = {"kl": "KL to the reference, nats", "reward_queries": "reward queries", "network_evaluations": "network evaluations"}


def curves(rows: Sequence[dict[str, Any]], metric: str | None, of_row: Sequence[Sequence[Trained]]) -> list[dict[str, Any]]:
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


def front(one: dict[str, Any]) -> Markup | None:
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


def along(one: dict[str, Any]) -> list[dict[str, Any]]:
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
