"""`-m hparams_search=<name>`: the same number of trials of one knob for each method, by Optuna (Akiba et al., 1907.10902).

No database: trials are asked for in batches and told in their order, so that the same command asks for the same trials again and finds
their runs done.
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from alignbench.compose import Composed, compose, sweep
from alignbench.config import ConfigError, MissingAsset
from alignbench.knobs import GROUP, Settings, Side, knob_of, split
from alignbench.report.record import read_about, read_samples
from alignbench.report.trials import COLUMNS
from alignbench.signatures import nearest
from alignbench.sweep import jobs_of, run_jobs
from alignbench.winners import record


def search(overrides: Sequence[str], *, retry: bool) -> int:
    """The exit code: 1 where a method has no winner or a run was killed. Raises ConfigError, MissingAsset, Stopped."""
    name, settings, words = split(overrides)
    sides = planned(name, settings, words)
    runs = sum(settings.trials * len(side.words) for side in sides)
    epochs = sum(settings.trials * base.config["epochs"] for side in sides for base in side.bases)
    say(f"{len(sides)} methods x {settings.trials} trials x {len(sides[0].words)} seeds: {runs} runs, {epochs} epochs of training in all")
    folder = Path(sides[0].bases[0].config["output"]) / "searches" / f"{name}-{_digest(settings, sides)}"
    command = shlex.join(["python", "-m", "alignbench", "-m", *sorted(word for word in overrides if not word.startswith("output="))])
    for first in range(0, settings.trials, settings.parallel):
        count = min(settings.parallel, settings.trials - first)
        if not batch(sides, settings, count, retry):
            say("a run was killed; the same command continues")
            return 1
        record(folder, sides, settings, command)
    for side in sides:
        best = side.best(settings.direction)
        say(
            f"{side.method}: {best['knob']}={best['value']:g}, {folder / side.method}.yaml"
            if best
            else f"{side.method}: every trial failed"
        )
    return int(any(side.best(settings.direction) is None for side in sides))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- what is asked for


def planned(name: str, settings: Settings, words: list[str]) -> list[Side]:
    """Every method with its seeds and an empty study; all that can be wrong is found here. Raises ConfigError, MissingAsset."""
    try:
        import optuna
    except ImportError:
        raise MissingAsset("optuna is not installed; pip install 'alignbench[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    grouped: dict[str, list[tuple[list[str], Composed]]] = {}
    for job in jobs_of(sweep(words)):
        grouped.setdefault(job.composed.choices["method"], []).append((job.words, job.composed))
    sides = []
    for method, own in grouped.items():
        bases = [base for _, base in own]
        if len({base.cell for base in bases}) > 1:
            raise ConfigError(f"{GROUP}={name}: method={method} has several settings; only method and seed take several values in a search")
        if not bases[0].config["epochs"] or not bases[0].config["eval"]["every"]:
            raise ConfigError(f"{GROUP}={name}: method={method} is not validated while it trains; leave it out, or set eval.every=1")
        knob, range_ = knob_of(name, settings, method)
        for end in (range_.low, range_.high):
            compose([*own[0][0], f"{knob}={end!r}"])
        sampler: optuna.samplers.BaseSampler
        if settings.sampler == "tpe":  # constant_liar: trials that are asked for together stay apart
            sampler = optuna.samplers.TPESampler(n_startup_trials=settings.startup, seed=settings.seed, constant_liar=True)
        else:
            sampler = optuna.samplers.RandomSampler(seed=settings.seed)
        study = optuna.create_study(sampler=sampler, direction=settings.direction)
        sides.append(Side(method, knob, range_, [each for each, _ in own], bases, study))
    return sides


def _digest(settings: Settings, sides: list[Side]) -> str:
    own = {side.method: [side.knob, vars(side.range), [base.hash for base in side.bases]] for side in sides}
    said = {key: value for key, value in vars(settings).items() if key != "space"} | {"sides": own}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:10]


# --- trials


def batch(sides: list[Side], settings: Settings, count: int, retry: bool) -> bool:
    """The next `count` trials of every method, run and told in their order; False where a run was killed: its trial has no end yet."""
    import optuna

    asked = []
    for side in sides:
        distribution = optuna.distributions.FloatDistribution(side.range.low, side.range.high, log=side.range.log)
        for _ in range(count):
            trial = side.study.ask({side.knob: distribution})
            value = float(f"{trial.params[side.knob]:.4g}")  # what a YAML is to hold
            asked.append((side, trial, value, jobs_of([[*words, f"{side.knob}={value!r}"] for words in side.words])))
    ends = run_jobs([job for *_, jobs in asked for job in jobs], sides[0].bases[0].config["launcher"], retry=retry)
    if "interrupted" in ends.values():
        return False
    for side, trial, value, jobs in asked:
        done = all(ends[job.composed.hash] == "done" for job in jobs)
        metric, gain = change([job.composed.folder for job in jobs], settings.metric) if done else (settings.metric, None)
        state = "failed" if gain is None else "done"
        side.study.tell(trial, gain, state=optuna.trial.TrialState.FAIL if gain is None else None)
        runs = " ".join(job.composed.hash for job in jobs)
        values = (side.method, trial.number + 1, side.knob, value, state, metric, gain, runs)
        side.rows.append(dict(zip(COLUMNS, values, strict=True)))
        best = side.best(settings.direction)
        told = f"{metric} {gain:+.4g}" if gain is not None else "failed"
        so_far = f" (best so far {best['gain']:+.4g} at {best['value']:g})" if best else ""
        say(f"trial {trial.number + 1} of {settings.trials} of {side.method}: {side.knob}={value:g}, {told}{so_far}")
    return True


def change(folders: list[Path], metric: str) -> tuple[str, float | None]:
    """The metric's name, and the mean over runs of (its mean over the last validation's images - over those of the start's).

    None where a run's images have no score.
    """
    gains = []
    for folder in folders:
        if metric == "trained":
            metric = next((each["name"] for each in read_about(folder)["metrics"] if each["label"] == "trained"), metric)
        rows = read_samples(folder, "validation")
        numbers = sorted({key for row in rows for key, value in row.items() if isinstance(value, float)})
        if metric not in numbers:
            raise ConfigError(f"{GROUP}.metric: {metric} is nothing that {folder} was validated by; {nearest(metric, numbers)}")
        scores = [
            [row[metric] for row in rows if row["epoch"] == epoch and row[metric] is not None]
            for epoch in (0, max(row["epoch"] for row in rows))
        ]
        if not all(scores):
            return metric, None
        gains.append(fmean(scores[1]) - fmean(scores[0]))
    return metric, fmean(gains)
