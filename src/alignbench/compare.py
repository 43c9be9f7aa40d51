"""`alignbench compare A B`: two runs on the same test images, pair by pair, with intervals over prompts."""

from pathlib import Path

import numpy as np

from alignbench.config import ConfigError
from alignbench.evaluation.aggregates import change
from alignbench.evaluation.compared import Run
from alignbench.evaluation.crossed import Bootstrap
from alignbench.evaluation.improvement import improvement
from alignbench.report.comparison import shown
from alignbench.report.record import read_about, read_samples
from alignbench.signatures import nearest
from alignbench.table import agree, terms

DEFAULTS = {"level": "0.95", "replicates": "2000", "seed": "0"}
USAGE = "alignbench compare FOLDER FOLDER [level=0.95] [replicates=2000]: two finished runs; `table` takes more, with seeds"


def compare(words: list[str]) -> int:
    """Print the second run less the first. The exit code. Raises ConfigError for runs that do not fit together."""
    given, folders = dict(DEFAULTS), [Path(word) for word in words if "=" not in word]
    for word in (word for word in words if "=" in word):
        key, _, value = word.partition("=")
        if key not in DEFAULTS or not value:
            raise ConfigError(f"compare: {word}: {nearest(key, DEFAULTS) if key not in DEFAULTS else 'no value'}; {USAGE}")
        given[key] = value
    if len(folders) != 2:
        raise ConfigError(f"compare: {len(folders)} folders; {USAGE}")
    try:
        how = Bootstrap(replicates=int(given["replicates"]), level=float(given["level"]), seed=int(given["seed"]))
        first, second = (Run(read_about(folder), read_samples(folder)) for folder in folders)
        print("\n".join(difference(first, second, [folder.name for folder in folders], how)))
    except ValueError as error:
        raise ConfigError(f"compare: {error}") from error
    return 0


def difference(first: Run, second: Run, names: list[str], how: Bootstrap) -> list[str]:
    """The lines to print. ValueError: other test images, or nothing that both measured."""
    ours, theirs = terms(first.about), terms(second.about)
    if apart := [key for key in ours if ours[key] != theirs[key]]:
        values = " and ".join(str(each[apart[0]]) for each in (ours, theirs))
        raise ValueError(f"the runs do not share their test images: {apart[0]} differs ({values}); make them, or evaluate them, alike")
    one, other = ({row["prompt_id"]: row["prompt"] for row in run.rows} for run in (first, second))
    if one != other:
        raise ValueError(f"{names[0]} and {names[1]} have other test prompts under the same numbers; make them, or evaluate them, alike")
    agree([first, second])
    both = [name for name in first.labels if name in second.labels]
    if not both:
        raise ValueError(f"{' and '.join(names)} have no metric in common")
    lines = [f"A  {names[0]}", f"B  {names[1]}", "", f"{'metric':<24}{'of A':<12}{'of B':<12}{'A':>10}{'B':>10}   B less A"]
    ends = []
    for name in both:
        a, b = (run.table("policy", name) for run in (first, second))
        scored = np.isfinite(a + b).any(1)
        if scored.sum() < 2:
            lines.append(f"{name:<24}{first.labels[name]:<12}{second.labels[name]:<12}   fewer than 2 prompts have scores of both")
            continue
        a, b = a[scored], b[scored]
        found, wins = change(b[None], a, how, kind="mean"), improvement(b[None], a[None], how)
        moved = shown({"value": found.value, "low": found.low, "high": found.high})
        shares = " / ".join(f"{100 * one.value:.0f}" for one in (wins.win, wins.tie, wins.loss))
        left = "" if scored.all() else f"; {(~scored).sum()} prompts without scores of both left out"
        means = f"{np.nanmean(a):>10.4g}{np.nanmean(b):>10.4g}"
        lines.append(f"{name:<24}{first.labels[name]:<12}{second.labels[name]:<12}{means}   {moved}, p {found.p:.3f}")
        ends.append(f"{name:<24}{shares} %{left}")
    return [
        *lines,
        "",
        "B wins / ties / loses, of the images of one prompt and noise (more is a win)",
        *ends,
        "",
        f"{len(first.images)} images of {len({prompt for prompt, _ in first.images})} test prompts, each from the same noise in both. "
        f"Intervals are {100 * how.level:g} %, over prompts:",
        "two single runs, so this is no evidence of other trainings; `alignbench table` compares methods over seeds.",
    ]
