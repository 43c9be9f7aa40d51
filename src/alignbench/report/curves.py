"""The report's curves: SVG text from the rows of metrics.jsonl, for pages with the CSS colours --ink, --muted, --line and --accent."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, MUTED, LINE, ACCENT = "#010203", "#010204", "#010205", "#010206"  # stand for the page's colours until the SVG is written
STYLE: list[Any] = [
    "default",  # whatever matplotlibrc this machine has
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "alignbench",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "figure.facecolor": "none",
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.formatter.useoffset": False,
        "grid.color": LINE,
        "grid.linewidth": 0.7,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
    },
]


def reward_against_kl(rows: Sequence[dict[str, Any]], reward: str) -> str | None:
    """Validation reward over the divergence from the reference, in the order of training; None where no row has both."""
    return _validation(rows, "kl", "KL to the reference, nats", reward)


def reward_against_queries(rows: Sequence[dict[str, Any]], reward: str) -> str | None:
    """Validation reward over what it cost in images shown to the judge; None without validation rows."""
    return _validation(rows, "reward_queries", "reward queries", reward)


def reward_against_evaluations(rows: Sequence[dict[str, Any]], reward: str) -> str | None:
    """Validation reward over what it cost in network evaluations, for a method that asks no judge; None without validation rows."""
    return _validation(rows, "network_evaluations", "network evaluations", reward)


def training_reward(rows: Sequence[dict[str, Any]], reward: str) -> str | None:
    """Mean reward of each epoch's own rollouts; None where no row has one."""
    points = [(row["epoch"], row["reward"]) for row in rows if row["split"] == "train" and "reward" in row]
    return _svg(points, "epoch", reward, name="training", ends=()) if points else None


def _validation(rows: Sequence[dict[str, Any]], x: str, label: str, reward: str) -> str | None:
    kept = [row for row in rows if row["split"] == "validation" and x in row and "reward" in row]
    if not kept:
        return None
    ends = [f"epoch {row['epoch']}" for row in (kept[0], kept[-1])][: len(kept)]
    return _svg([(row[x], row["reward"]) for row in kept], label, reward, name=x.replace("_", "-"), ends=ends)


def _svg(points: Sequence[tuple[float, float]], xlabel: str, ylabel: str, *, name: str, ends: Sequence[str]) -> str:
    x, y = zip(*points, strict=True)
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(x, y, color=ACCENT, linewidth=1.8, marker="o", markersize=5 if ends else 3, clip_on=False)
        for label, here, other, side in zip(ends, (0, -1), (-1, 0), ("left", "right"), strict=False):
            above = y[here] >= y[other]  # the label stands away from where the curve goes
            axes.annotate(
                label,
                (x[here], y[here]),
                xytext=(0, 8 if above else -8),
                textcoords="offset points",
                ha=side,
                va="bottom" if above else "top",
            )
        axes.margins(x=0.04, y=0.18 if ends else 0.08)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=all(isinstance(value, int) for value in x), min_n_ticks=2))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}".replace("-", "\N{MINUS SIGN}")))
        axes.tick_params(length=0)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """The drawing alone, to stand in an HTML page: no prologue, no namespaces, its own ids, the page's colours, any width."""
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r"<defs>\s*<style.*?</defs>", "", body, count=1, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour, variable in ((INK, "ink"), (MUTED, "muted"), (LINE, "line"), (ACCENT, "accent")):
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg {view[0] if view else ""} aria-hidden="true" focusable="false">{body}'.rstrip()
