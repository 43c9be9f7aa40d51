"""A results file as a picture: `python benchmarks/picture.py benchmarks/results/<machine>.json`, which writes one beside it."""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PHASES = {"rollout": "#2468c0", "update": "#9cbce6"}


def draw(found: dict[str, Any]) -> Figure:
    """Of each row alignbench's seconds an image over the plain loop's, and on the right the ratio with its interval."""
    rows = found["table"]["rows"][::-1]
    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    seconds, ratios = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for at, row in enumerate(rows):
        for side, place in (("ours", 0.19), ("plain", -0.19)):
            left = 0.0
            for phase, colour in PHASES.items():
                width = row[side][phase]["processor_seconds_an_image"]
                seconds.barh(at + place, width, 0.36, left, color=colour if side == "ours" else ("#777777", "#c4c4c4")[phase == "update"])
                left += width
        ratios.plot([row["low"], row["high"]], [at, at], color=PHASES["rollout"], linewidth=2)
        ratios.plot(row["ratio"], at, "o", color=PHASES["rollout"], markersize=5)
        ratios.annotate(
            f"{row['ratio']:.2f}", (row["ratio"], at), (5, 5), textcoords="offset points", fontsize=8, color="#444444", ha="right"
        )
    seconds.margins(y=0.01)
    seconds.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=9)
    seconds.set_xlabel("processor seconds an image: rollout, update (lighter)\nblue alignbench, grey the plain loop", fontsize=9)
    ratios.axvline(1, color="#888888", linewidth=0.8)
    ratios.set_xlim(min(row["low"] for row in rows) - 0.05, max(1.0, *(row["high"] for row in rows)) + 0.05)
    ratios.set_xlabel("alignbench : plain loop, 95 %\nleft of 1 alignbench is faster", fontsize=9)
    for axes in (seconds, ratios):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure


if __name__ == "__main__":
    results = Path(sys.argv[1])
    draw(json.loads(results.read_text())).savefig(results.with_suffix(".png"), dpi=110)
