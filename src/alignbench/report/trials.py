"""What a search leaves beside its winners: trials.csv with every trial, and trials.png, each method's knob against the metric."""

import csv
import io
from typing import Any

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLUMNS = ("method", "trial", "knob", "value", "state", "metric", "gain", "runs")


def trials_csv(rows: list[dict[str, Any]]) -> bytes:
    """rows: of COLUMNS; the gain of a failed trial is None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def trials_png(rows: list[dict[str, Any]], logarithmic: dict[str, bool], best: dict[str, int]) -> bytes:
    """rows: as in trials_csv; logarithmic: by method, whether its knob is; best: by method, the number of its winner."""
    methods = list(logarithmic)
    with matplotlib.style.context(["default", {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}]):
        figure = Figure(figsize=(3.4 * len(methods), 2.8), dpi=110, layout="constrained")
        for axes, method in zip(figure.subplots(1, len(methods), squeeze=False)[0], methods, strict=True):
            own = [row for row in rows if row["method"] == method]
            done = [row for row in own if row["gain"] is not None]
            axes.axhline(0, color="#888888", linewidth=0.8)
            axes.plot([row["value"] for row in done], [row["gain"] for row in done], "o", color="#4477aa")
            for row in own:
                if row["gain"] is None:
                    axes.axvline(row["value"], color="#cc3311", linestyle=":", linewidth=1)
                if row["trial"] == best.get(method):
                    axes.plot(row["value"], row["gain"], "o", color="#ee7733", markersize=9)
            if logarithmic[method]:
                axes.set_xscale("log")
            axes.set_title(method, loc="left")
            axes.set_xlabel(own[0]["knob"])
            axes.set_ylabel(f"change of {own[0]['metric']}")
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
