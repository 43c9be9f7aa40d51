"""report.html and samples/grid.png: a run's artefacts as one page and one picture. Reads the run's folder and nothing else."""

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import yaml
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from alignbench.report import curves
from alignbench.report.record import Record, picture_path, read_config, read_metrics, read_result, read_samples, write_atomically

SIDES = ("reference", "policy")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
ROLES = {
    "trained": "the reward it was trained on",
    "gold": "the gold standard",
    "held out": "held out from training",
    "related": "related to the reward it was trained on",
    "unknown": "not known to be held out",
}

NO_VERDICT = {
    "trained": "trained on: no verdict",
    "related": "not held out: no verdict",
    "unknown": "not known to be held out: no verdict",
    "divergence": "a cost: no verdict",
}


@dataclass(frozen=True)
class Pair:
    """One prompt and one noise, before and after: two rows of samples.parquet."""

    reference: dict[str, Any]
    policy: dict[str, Any]

    @property
    def prompt(self) -> str:
        return self.policy["prompt"]


def render(folder: Path | str) -> None:
    """Write report.html from the run's other files; the same files give the same bytes."""
    folder = Path(folder)
    result, history = read_result(folder), read_metrics(folder)
    metrics = [_metric(metric) for metric in result["metrics"]]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "count": "{:,}".format, "shown": shown, "breakable": breakable}
    page = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8")).render(
        result=result,
        command=result.get("command") or _command(result),
        level=f"{100 * result.get('level', 0.95):g}",
        metrics=metrics,
        headlines=[metric for label in ROLES for metric in metrics if metric["label"] == label and metric["interval"]],
        sets=_sets(result.get("sets", [])),
        prompts=_cards(folder, metrics),
        curves=_curves(history, result["choices"]["reward"]),
        config=yaml.safe_dump(read_config(folder), sort_keys=False, allow_unicode=True, width=100),
    )
    write_atomically(folder / "report.html", page.encode())


def grid_picture(folder: Path | str) -> None:
    """Write samples/grid.png, for a README: each pictured prompt's first pair under its caption, two prompts abreast."""
    pairs = [of_prompt[0] for of_prompt in _pairs(folder)]
    if not pairs:
        return
    side, gap, caption, head, abreast = 160, 8, 42, 26, min(2, len(pairs))
    wide, high = 2 * side + 4 * gap, side + caption + gap
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(fonts / "DejaVuSans.ttf", 13, layout_engine=ImageFont.Layout.BASIC)
    bold = ImageFont.truetype(fonts / "DejaVuSans-Bold.ttf", 13, layout_engine=ImageFont.Layout.BASIC)
    grid = Image.new("RGB", (abreast * wide, -(-len(pairs) // abreast) * high + head), "white")
    draw = ImageDraw.Draw(grid)
    for n, pair in enumerate(pairs):
        left, top = n % abreast * wide + 2 * gap, n // abreast * high + head
        for line, text in enumerate(_wrapped(shown(pair.prompt), font, 2 * side, lines=2)):
            draw.text((left, top + 4 + 17 * line), text, font=font, fill="#1c1b1a")
        for who, at in zip(SIDES, (left, left + side + gap // 2), strict=True):
            if n < abreast:
                draw.text((at, 8), who, font=bold, fill="#1c1b1a")
            with Image.open(picture_path(folder, getattr(pair, who)["image"])) as picture:
                sharp = Image.Resampling.NEAREST if picture.width <= side else Image.Resampling.LANCZOS
                grid.paste(picture.convert("RGB").resize((side, side), sharp), (at, top + caption))
    Record(folder).picture("grid.png", np.asarray(grid))


def number(value: float, decimals: int, signed: bool = False) -> str:
    text = f"{value:{'+' if signed else ''},.{decimals}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def shown(text: str) -> str:
    """What HTML may not hold, made visible; markup is escaped by the template."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def breakable(name: str) -> Markup:
    """A name that may wrap after its underscores."""
    return Markup("_<wbr>").join(shown(name).split("_"))


def _metric(metric: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: the record's own values, how many decimals to show, and what the interval allows to be said."""
    interval, larger = metric["interval"], metric["larger_is_better"]
    aside = NO_VERDICT.get(metric["label"], "")
    if not interval:
        change = verdict = "no interval"
    elif interval[0] <= 0 <= interval[1]:
        change = verdict = "undecided"
    else:
        change = "rose" if interval[0] > 0 else "fell"
        verdict = change if aside or larger is None else "better" if larger == (change == "rose") else "worse"
    role = ROLES.get(metric["label"], "")
    return {**metric, "change": change, "verdict": verdict, "aside": aside, "role": role, "decimals": _decimals(metric)}


def _sets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line of the table for each space and pair of sets, with its values by name."""
    lines: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault((row["space"], row["against"], row["who"]), {**row, "values": {}})
        line["values"][row["name"]] = row["value"]
    return list(lines.values())


def _decimals(metric: dict[str, Any]) -> int:
    """Enough to show the interval's half width to two digits, and on which side of 0 it lies."""
    low, high = metric["interval"] or (0.0, 0.0)
    scale = (high - low) / 2 or max(abs(metric[key] or 0) for key in (*SIDES, "difference")) or 1.0
    decimals = max(0, 1 - math.floor(math.log10(scale)))
    while decimals < 8 and any(end and not round(end, decimals) for end in (low, high)):
        decimals += 1
    return min(decimals, 8)


def _pairs(folder: Path | str) -> list[list[Pair]]:
    """The pictured pairs of each prompt, in the order of prompt and k."""
    rows = {(row["prompt_id"], row["k"], row["who"]): row for row in read_samples(folder) if row["image"]}
    prompts: dict[int, list[Pair]] = {}
    for prompt, k in sorted({(prompt, k) for prompt, k, _ in rows}):
        reference, policy = (rows.get((prompt, k, who)) for who in SIDES)
        if reference and policy:
            prompts.setdefault(prompt, []).append(Pair(reference, policy))
    return list(prompts.values())


def _cards(folder: Path, metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the grid shows: a prompt, its pairs as data URIs, and the scores beneath each."""
    cards = []
    for pairs in _pairs(folder):
        shown_pairs = []
        for pair in pairs:
            scored = [metric for metric in metrics if metric["label"] in ROLES and metric["name"] in pair.policy]
            scores = [(metric, *(getattr(pair, who)[metric["name"]] for who in SIDES)) for metric in scored]
            pictures = [(who, *_embedded(picture_path(folder, getattr(pair, who)["image"]))) for who in SIDES]
            shown_pairs.append({"k": pair.policy["k"], "pictures": pictures, "scores": scores})
        cards.append({"text": shown(pairs[0].prompt), "pairs": shown_pairs})
    return cards


def _embedded(path: Path) -> tuple[str, int, int]:
    data = path.read_bytes()
    with Image.open(path) as picture:
        return f"data:image/png;base64,{base64.b64encode(data).decode()}", *picture.size


def _curves(history: Sequence[dict[str, Any]], reward: str) -> list[dict[str, Any]]:
    asks = any(row["reward_queries"] for row in history)
    cost = (curves.reward_against_queries, "reward_queries") if asks else (curves.reward_against_evaluations, "network_evaluations")
    drawn = (
        (curves.reward_against_kl, "validation", "kl", "KL", f"{reward} against divergence, on validation prompts"),
        (cost[0], "validation", cost[1], cost[1].replace("_", " "), f"{reward} against cost, on validation prompts"),
        (curves.training_reward, "train", "epoch", "epoch", f"{reward} of each epoch's own images, on training prompts"),
    )
    shown_curves = []
    for draw, split, x, axis, caption in drawn:
        if svg := draw(history, reward):
            ends = [row for row in history if row["split"] == split and x in row and "reward" in row]
            spoken = ", to ".join(f"{row['reward']:.4g} at {axis} {row[x]:.4g}" for row in (ends[0], ends[-1]))
            shown_curves.append({"svg": Markup(svg), "caption": caption, "spoken": f"Line chart, {len(ends)} points: from {spoken}."})
    return shown_curves


def _command(result: dict[str, Any]) -> str:
    groups = ("method", "model", "reward", "dataset")
    return " ".join(["python -m alignbench", *(f"{group}={result['choices'][group]}" for group in groups), f"seed={result['seed']}"])


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, *, lines: int) -> list[str]:
    """At most `lines` lines of `width` pixels; what is left out leaves an ellipsis."""
    words, wrapped = text.split(), [""]
    for n, word in enumerate(words):
        longer = f"{wrapped[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            wrapped[-1] = longer
        elif len(wrapped) < lines and wrapped[-1] and font.getlength(word) <= width:
            wrapped.append(word)
        else:
            rest = " ".join([longer, *words[n + 1 :]])
            while rest and font.getlength(rest + "…") > width:
                rest = rest[: min(len(rest) - 1, 200)]
            wrapped[-1] = rest.rstrip() + "…"
            break
    return wrapped
