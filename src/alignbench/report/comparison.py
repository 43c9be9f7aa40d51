"""A comparison's numbers as text for people (Markdown), as rows for programs (csv) and as a picture."""

import csv
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SHADES = ("#2468c0", "#c0392b", "#2f9e54", "#d9a514", "#8e44ad", "#16a085", "#e67e22", "#5b6770")
Interval = dict[str, Any]
OTHER = ("divergence", "diversity", "surprise")  # labels of what no judge gave


def markdown(made: dict[str, Any]) -> str:
    parts = [_comparison(one, made) for one in made["comparisons"]]
    if made["without_a_row"]:
        parts.append(f"No seed of these finished, so they have no row: {', '.join(made['without_a_row'])}.")
    return "\n\n".join(parts) + "\n"


def _comparison(one: dict[str, Any], made: dict[str, Any]) -> str:
    rows, metric = one["rows"], one["ranked_by"]
    parts = [f"# {one['model']} on {one['dataset']}", _caption(one, made), _main(rows, one, made)]
    if metric is None:
        parts.append("There is no judge that every row has and none was trained on: methods are not ranked. Add held-out judges to `eval`.")
    else:
        parts += [_against(one, made), _wins(one)]
    parts.append(_cost(rows))
    if metric is not None and one["fronts"]:
        parts.append(_fronts(one))
    if gaps := [row for row in rows if row["gap"] or row["gold_gap"]]:
        parts.append(_gaps(gaps))
    if metric is not None and (peaks := [row for row in rows if row["peak"]]):
        parts.append(_peaks(peaks, metric))
    if any(row["along"]["fits"] for row in rows):
        parts.append(_fits(rows))
    return "\n\n".join(parts)


def _caption(one: dict[str, Any], made: dict[str, Any]) -> str:
    """What was evaluated, and what the intervals are."""
    sampler = one["sampler"]
    taken = ", ".join(f"{key} {sampler[key]:g}" for key in ("eta", "guidance") if sampler[key] is not None)
    return (
        f"{one['test_images']} images of {one['prompts']} test prompts, each from its own noise (seed {one['noise']}), the same for every "
        f"row and for the reference; {sampler['name']}, {sampler['steps']} steps, {taken}; {one['track'].replace('_', '-')} track. "
        f"Intervals are {100 * made['level']:g} %, over {over(one['rows'])}. {budget(one['rows'])}"
        + (f" {one['left_out']} prompts are left out of all rows: some judge gave none of their images a score." if one["left_out"] else "")
    )


def brief(made: dict[str, Any], depth: int) -> str:
    """The main tables of each comparison, under headings of this depth: levels and changes, who differs, what it cost."""
    parts = []
    for one in made["comparisons"]:
        parts.append(f"# {one['model']} on {one['dataset']}\n\n{_caption(one, made)}\n\n{_main(one['rows'], one, made)}")
        parts += [_against(one, made)] if one["ranked_by"] is not None else []
        parts.append(_cost(one["rows"]))
    return re.sub("^#", "#" * depth, "\n\n".join(parts), flags=re.MULTILINE)


def over(rows: Sequence[dict[str, Any]]) -> str:
    if all(len(row["seeds"]) > 1 for row in rows):
        return "training seeds and prompts"
    alone = [row["label"] for row in rows if len(row["seeds"]) == 1]
    return f"training seeds and prompts (of {'; '.join(alone)}: one seed, so over prompts alone and no evidence of other trainings)"


def budget(rows: Sequence[dict[str, Any]]) -> str:
    """Whether the rows cost the same, by the two meters that every machine counts alike."""
    said: list[str] = []
    equal: list[str] = []
    for meter in ("reward_queries", "network_evaluations"):
        spent = {value for row in rows for value in row[meter]}
        name = meter.replace("_", " ")
        (equal if len(spent) == 1 else said).append(f"{name} {min(spent):,}" + (f" to {max(spent):,}" if len(spent) > 1 else ""))
    if equal:
        return f"Equal budget: {', '.join(equal)} each" + (f" (not equal: {', '.join(said)})." if said else ".")
    return f"Not at an equal budget: {', '.join(said)}; set budget=reward_queries or budget=network_evaluations."


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def shown(interval: Interval | None, bold: bool = False, sign: str = "+") -> str:
    """A value and its interval, with two digits of the interval's half width. sign: + for changes, - where only what is below 0 has one."""
    if interval is None:
        return "-"
    text = "{value:{s},.{d}f} [{low:{s},.{d}f}, {high:{s},.{d}f}]".format(**interval, d=decimals(interval), s=sign)
    return f"**{text}**" if bold and (interval["low"] > 0 or interval["high"] < 0) else text


def decimals(interval: Interval) -> int:
    scale = (interval["high"] - interval["low"]) / 2 or abs(interval["value"]) or 1.0
    return min(max(0, 1 - math.floor(math.log10(scale))), 6)


def plain(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def _names(rows: Sequence[dict[str, Any]], *, judges: bool) -> list[str]:
    """The metrics of judges, or those that no judge gave."""
    found = {name: row["metrics"][name]["label"] for row in rows for name in row["metrics"]}
    return [name for name, label in found.items() if (label not in OTHER) == judges]


def _changes(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """A column a metric: its head, and the cells of the reference and of each row."""
    head, body = [], [[plain(next(row["metrics"][name]["reference"] for row in rows if name in row["metrics"])) for name in names]]
    for name in names:
        roles = {row["metrics"][name]["label"] for row in rows if name in row["metrics"]} - {name, "trained"}
        head.append(f"{name} ({', '.join(sorted(roles))})" if roles else name)
    for row in rows:
        cells = []
        for name in names:
            found = row["metrics"].get(name)
            mark = " †" if found and found["label"] == "trained" else ""
            judged = bool(found) and found["label"] in ("gold", "held out")  # a related judge's verdict is none
            cells.append(f"{plain(found['mean']['value'])} ({shown(found['change'], bold=judged)}){mark}" if found else "-")
        body.append(cells)
    return head, body


def _main(rows: Sequence[dict[str, Any]], one: dict[str, Any], made: dict[str, Any]) -> str:
    head, (start, *body) = _changes(rows, _names(rows, judges=True))
    lines = [["reference", "-", "-", *start, "0", "0"]]
    for row, cells in zip(rows, body, strict=True):
        failed = f", {len(row['failed'])} failed" if row["failed"] else ""
        trained = [name for name, found in row["metrics"].items() if found["label"] == "trained"]
        spent = [_range(row["reward_queries"]), _range(row["network_evaluations"])]
        lines.append([row["label"], trained[0] if trained else "-", f"{len(row['seeds'])}{failed}", *cells, *spent])
    ranked = f" Rows are in the order of the change in {one['ranked_by']}." if one["ranked_by"] else ""
    return (
        _table(["method", "trained on", "seeds", *head, "reward queries", "network evaluations"], lines)
        + f"\n\nMean (paired change against the reference, with its interval; bold where that excludes 0).{ranked} † trained on: no "
        "evidence by itself, never ranked on. A seed without a result, failed or not finished, counts as the reference. Interquartile "
        "means and what could be detected at "
        f"{100 * made['power']:g} % power are in table.json and table.csv."
    )


def _cost(rows: Sequence[dict[str, Any]]) -> str:
    """Divergence and diversity, image by image and as sets."""
    head, (start, *body) = _changes(rows, _names(rows, judges=False))
    sets = list(dict.fromkeys((each["space"], each["against"], each["name"]) for row in rows for each in row["sets"]))
    lines = [["reference", *start, *("-" for _ in sets)]]
    for row, cells in zip(rows, body, strict=True):
        found = {(each["space"], each["against"], each["name"]): each["values"] for each in row["sets"]}
        means = [[value for value in found.get(key, []) if value is not None] for key in sets]
        lines.append([row["label"], *cells, *(f"{sum(values) / len(values):.3g}" if values else "-" for values in means)])
    named = [f"{name}, {space}" + (f", against {against}" if against != "reference" else "") for space, against, name in sets]
    return (
        f"## What it cost\n\n{_table(['method', *head, *named], lines)}\n\n"
        "Mean (change, with its interval); measures of sets are means over the seeds that finished, of a seed's images against the "
        "reference's unless said otherwise."
    )


def _range(values: Sequence[int]) -> str:
    return f"{min(values):,}" + (f" to {max(values):,}" if len(set(values)) > 1 else "")


def _against(one: dict[str, Any], made: dict[str, Any]) -> str:
    body = [
        [
            f"{each['a']} less {each['b']}",
            shown(each["difference"], bold=each["holm"] < 1 - made["level"]),
            f"{each['difference']['p']:.3f}",
            f"{each['holm']:.3f}",
            f"{each['detectable']:.3f}",
        ]
        for each in one["contrasts"]
    ]
    head = [f"change in {one['ranked_by']}", "difference", "p", "p, Holm", f"detectable at {100 * made['power']:g} %"]
    return (
        f"## Who differs\n\n{_table(head, body)}\n\nBold where Holm's correction over all of these leaves p below {1 - made['level']:.2g}."
    )


def _wins(one: dict[str, Any]) -> str:
    labels = list(dict.fromkeys(each["a"] for each in one["wins"]))
    found = {(each["a"], each["b"]): each for each in one["wins"]}

    def cell(a: str, b: str) -> str:
        if a == b:
            return "-"
        each = found[a, b]
        chance = each["probability"]
        shares = " / ".join(f"{100 * each[outcome]:.0f}" for outcome in ("win", "tie", "loss"))
        return f"{shares} ({chance['value']:.2f} [{chance['low']:.2f}, {chance['high']:.2f}])"

    body = [[a, *(cell(a, b) for b in labels)] for a in labels]
    return (
        f"## Wins by {one['ranked_by']}\n\n{_table(['row against column', *labels], body)}\n\n"
        "Win / tie / loss in % of images of one prompt and noise, over all pairs of seeds (probability of improvement: wins and half "
        "the ties)."
    )


def _fronts(one: dict[str, Any]) -> str:
    first = one["fronts"][0]
    body = [
        [
            front["method"],
            ", ".join(f"({point['x']:.1f}, {point['y']:+.3f}){'' if point['on_front'] else ' dominated'}" for point in front["points"]),
            shown(front["area"]),
            shown(front["matched"]),
        ]
        for front in one["fronts"]
    ]
    head = ["method", f"({first['divergence']}, change)", f"area up to {first['limit']:.1f}", f"change at {first['at']:.1f}"]
    return (
        f"## Change in {one['ranked_by']} against divergence\n\n{_table(head, body)}\n\n"
        "The area is that under the best change reached with so much divergence or less; sweep a method's knob (5 values or more) for a "
        "front rather than a point. The change at one divergence is read off straight lines from the reference through a method's points."
    )


def _gaps(rows: Sequence[dict[str, Any]]) -> str:
    body = [[row["label"], shown(row["gap"]), shown(row["gold_gap"])] for row in rows]
    return (
        f"## Hacking gap\n\n{_table(['method', 'trained less held out', 'trained less gold'], body)}\n\n"
        "Gain on the trained reward less the mean gain on held-out judges (or on gold), each in standard deviations of the reference's "
        "images. Above 0: the policy got better at its reward than at what the reward stands for."
    )


def _peaks(rows: Sequence[dict[str, Any]], metric: str) -> str:
    body = []
    for row in rows:
        found = row["peak"]["metrics"][metric]
        body.append([row["label"], ", ".join(map(str, row["peak"]["epochs"])), shown(found["change"]), shown(found["gained"])])
    head = ["method", "epoch of the peak, by seed", f"change in {metric} there", "less that of the last epoch"]
    return f"## The checkpoint that was best on validation prompts, by whom eval.peak names\n\n{_table(head, body)}"


def _fits(rows: Sequence[dict[str, Any]]) -> str:
    body = [
        [
            row["label"],
            name,
            f"{fit['alpha']:.4f}",
            f"{fit['beta']:.4f}",
            f"{fit['residual']:.4f}",
            f"{fit['peak'] ** 2:.1f}" if fit["peak"] else "-",
        ]
        for row in rows
        for name, fit in row["along"]["fits"].items()
    ]
    return (
        f"## Over-optimisation along training\n\n{_table(['method', 'judge', 'alpha', 'beta', 'rms', 'peak at KL'], body)}\n\n"
        "Least squares of gain = d (alpha - beta log d), d the square root of the KL in nats, on validation prompts (Gao et al., "
        "2210.10760)."
    )


def rows_csv(made: dict[str, Any]) -> str:
    """A line for each row and metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = ("value", "low", "high")
    writer.writerow(
        ["model", "dataset", "method", "seeds", "failed", "metric", "label", "reference"]
        + [f"{name}_{end}" for name in ("mean", "change", "change_iqm") for end in ends]
        + ["p", "detectable"]
    )
    for one in made["comparisons"]:
        for row in one["rows"]:
            for name, found in row["metrics"].items():
                writer.writerow(
                    [
                        one["model"],
                        one["dataset"],
                        row["label"],
                        len(row["seeds"]),
                        len(row["failed"]),
                        name,
                        found["label"],
                        found["reference"],
                    ]
                    + [found[part][end] for part in ("mean", "change", "change_iqm") for end in ends]
                    + [found["change"]["p"], found["detectable"]]
                )
    return out.getvalue()


# --- the picture


def picture(made: dict[str, Any]) -> bytes:
    """A PNG: for each comparison its front, its gains along training, its wins and its profiles."""
    ranked = [one for one in made["comparisons"] if one["ranked_by"]]
    style: list[Any] = [
        "default",
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e3e3e3",
            "axes.axisbelow": True,
        },
    ]
    with matplotlib.style.context(style):
        figure = Figure(figsize=(13, 4.0 * max(1, len(ranked))), dpi=110, layout="constrained")
        if not ranked:
            figure.text(0.5, 0.5, "nothing to rank methods by", ha="center")
        grid: Any = figure.subplots(max(1, len(ranked)), 4, squeeze=False) if ranked else []
        for axes, one in zip(grid, ranked, strict=False):
            shade = {row["label"]: SHADES[n % len(SHADES)] for n, row in enumerate(one["rows"])}
            _draw_front(axes[0], one, shade)
            _draw_along(axes[1], one, shade)
            _draw_wins(axes[2], one)
            _draw_profiles(axes[3], one, shade)
            axes[0].set_title(f"{one['model']} on {one['dataset']}", loc="left", fontsize=10)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _short(label: str) -> str:
    """The end of a long name: there are the settings in which rows differ."""
    return label if len(label) <= 26 else "…" + label[-25:]


def _draw_front(axes: Axes, one: dict[str, Any], shade: dict[str, str]) -> None:
    metric = one["ranked_by"]
    if not one["fronts"]:  # no divergence is measured: the changes alone
        for n, row in enumerate(one["rows"]):
            found = row["metrics"][metric]["change"]
            reach = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
            axes.errorbar(found["value"], n, xerr=reach, fmt="o", color=shade[row["label"]], capsize=3)
        axes.axvline(0, color="#888888", linewidth=0.8)
        axes.set_yticks(range(len(one["rows"])), [_short(row["label"]) for row in one["rows"]], fontsize=7)
        axes.set_ylim(len(one["rows"]) - 0.5, -0.5)
        axes.set_xlabel(f"change in {metric}")
        return
    fronts = [front for front in one["fronts"] if front["method"] != "all"]
    axes.axhline(0, color="#888888", linewidth=0.8)
    for row in one["rows"]:
        found = row["metrics"][metric]["change"]
        point = next((each for front in fronts for each in front["points"] if each["label"] == row["label"]), None)
        if point:
            reach = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
            axes.errorbar(point["x"], point["y"], yerr=reach, fmt="o", color=shade[row["label"]], capsize=3, label=_short(row["label"]))
    for front in fronts:
        on = [point for point in front["points"] if point["on_front"]]
        axes.plot([0, *(p["x"] for p in on)], [0, *(p["y"] for p in on)], color="#999999", linewidth=0.8, zorder=0)
    axes.set_xlabel(f"{one['fronts'][0]['divergence']} to the reference, nats")
    axes.set_ylabel(f"change in {metric}")
    axes.legend(fontsize=7)


def _draw_along(axes: Axes, one: dict[str, Any], shade: dict[str, str]) -> None:
    """Gains over training: the trained reward as a full line, the metric that methods are compared by dashed."""
    for row in one["rows"]:
        points, metrics = row["along"]["points"], row["metrics"]
        divergence = next((name for name, found in metrics.items() if found["label"] == "divergence"), None)
        trained = next((name for name, found in metrics.items() if found["label"] == "trained"), None)
        for name, line in ((trained, "-"), (one["ranked_by"], "--")):
            if name and points:
                axis = divergence or "epoch"
                drawn = [(point[axis], point[name]) for point in points if None not in (point[axis], point[name])]
                axes.plot(*zip(*drawn, strict=True) if drawn else ([], []), line, color=shade[row["label"]], marker=".", linewidth=1.3)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set_xlabel(f"{one['fronts'][0]['divergence'] if one['fronts'] else 'epoch'} along training")
    axes.set_ylabel("gain on validation prompts")
    axes.set_title(f"trained reward (full) and {one['ranked_by']} (dashed)", fontsize=9)


def _draw_wins(axes: Axes, one: dict[str, Any]) -> None:
    labels = list(dict.fromkeys(each["a"] for each in one["wins"]))
    values = np.full((len(labels), len(labels)), np.nan)
    for each in one["wins"]:
        values[labels.index(each["a"]), labels.index(each["b"])] = each["probability"]["value"]
    axes.imshow(values, vmin=0, vmax=1, cmap="RdBu")
    for (a, b), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(b, a, f"{value:.2f}", ha="center", va="center", fontsize=8, color="black" if 0.2 < value < 0.8 else "white")
    short = [_short(label) for label in labels]
    axes.set_xticks(range(len(labels)), short, rotation=35, ha="right", fontsize=7)
    axes.set_yticks(range(len(labels)), short, fontsize=7)
    axes.grid(False)
    axes.set_title("P(row improves on column)", fontsize=9)


def _draw_profiles(axes: Axes, one: dict[str, Any], shade: dict[str, str]) -> None:
    thresholds = one["profiles"]["thresholds"]
    for label, found in one["profiles"]["of"].items():
        colour = shade.get(label, "#444444")
        axes.plot(thresholds, found["share"], color=colour, label=_short(label), linestyle="-" if label in shade else ":")
        axes.fill_between(thresholds, found["low"], found["high"], color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel(f"{one['ranked_by']} of a seed's prompt")
    axes.set_ylabel("share above it")
    axes.legend(fontsize=7)
