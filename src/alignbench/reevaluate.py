"""`alignbench evaluate run=FOLDER ...`: a run, or weights from elsewhere, on other prompts, by other judges or samplers."""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.config import ConfigError, MissingAsset
from alignbench.report.record import Record, read_result
from alignbench.signatures import nearest

if TYPE_CHECKING:
    from alignbench.evaluation.evaluate import Scored
    from alignbench.subjects import Subject

USAGE = (
    "alignbench evaluate run=FOLDER [at=last|peak] [scale=1], or model=NAME weights=FOLDER|FOLDER:FILE; "
    "then eval=..., dataset=..., sampler.steps=..., guidance=... [to=FOLDER]"
)
OWN = ("run", "weights", "at", "scale", "to")
FREE = ("eval", "dataset", "sampler", "guidance", "trainer", "judging", "output")  # what changes nothing that a run has trained
ELSEWHERE = ("model", "reward", *FREE)


@dataclass(frozen=True)
class Order:
    run: Path | None
    weights: str
    at: str
    scale: float
    to: Path | None
    words: list[str]  # of the config


def evaluate(words: list[str]) -> int:
    """The exit code. Raises ConfigError for what cannot be done as asked, MissingAsset where weights or disk are not there."""
    order = ordered(words)
    from alignbench.evaluation.evaluate import compare
    from alignbench.remembered import remembered
    from alignbench.run import say, summary
    from alignbench.subjects import of_run, of_weights

    try:
        subject = of_run(order.run, order.at, order.scale, order.words) if order.run else of_weights(order.weights, order.words)
        experiment, sides = subject.experiment, {}
        for who, policy in (("reference", subject.policy.reference), ("policy", subject.policy)):
            sides[who] = remembered(experiment, policy, who, say)
        about = about_of(subject, sides)
        compared = compare(sides["reference"], sides["policy"], about["metrics"], experiment.config["eval"]["replicates"])
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"evaluate: {error}") from error
    epochs = {"reference": 0, "policy": subject.epoch}
    rows = [
        {"who": who, "split": "test", "seed": about["seed"], "epoch": epochs[who], **row, "image": ""}
        for who, side in sides.items()
        for row in side.rows
    ]
    folder = order.to or (order.run or Path(experiment.config["output"])) / "evaluated" / about["hash"][:10]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        Record(folder).samples(rows, about)
        Record(folder).result({key: value for key, value in about.items() if key != "config"} | {"metrics": compared})
    except OSError as error:
        raise MissingAsset(f"evaluate: {folder}: cannot be written ({error.strerror or error})") from error
    print(summary(read_result(folder)))
    print(f"results: {folder} (beside others in `alignbench table`)")
    return 0


def ordered(words: list[str]) -> Order:
    given: dict[str, str] = {}
    rest = []
    for word in words:
        key, _, value = word.partition("=")
        if not value:
            raise ConfigError(f"evaluate: {word}: no value; {USAGE}")
        if key in given:
            raise ConfigError(f"evaluate: {word}: given twice; {USAGE}")
        if key in OWN:
            given[key] = value
        else:
            rest.append(word)
    if ("run" in given) == ("weights" in given):
        raise ConfigError(f"evaluate: one of run= and weights= says what is evaluated; {USAGE}")
    allowed = FREE if "run" in given else ELSEWHERE
    if foreign := next((word for word in rest if head(word) not in allowed), None):
        why = "is the run's own" if "run" in given else "is no part of an evaluation"
        raise ConfigError(f"evaluate: {foreign}: {why}; {nearest(head(foreign), (*OWN, *allowed))}")
    if "weights" in given and (own := next((key for key in ("at", "scale") if key in given), None)):
        raise ConfigError(f"evaluate: {own}={given[own]}: of a run only; weights from elsewhere are taken as they are")
    if "weights" in given and not any(word.startswith("model=") for word in rest):
        raise ConfigError(f"evaluate: weights={given['weights']}: of which model? add model=NAME; {USAGE}")
    if given.get("at", "last") not in ("last", "peak"):
        raise ConfigError(f"evaluate: at={given['at']}: last or peak is wanted")
    try:
        scale = float(given.get("scale", "1"))
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise ConfigError(f"evaluate: scale={given['scale']}: a number is wanted; 0 is where training started, 1 where it ended")
    if "to" in given and (Path(given["to"]) / "run.json").is_file():
        raise ConfigError(f"evaluate: to={given['to']}: holds a run, whose results would be written over; name another folder")
    run = Path(given["run"]) if "run" in given else None
    return Order(run, given.get("weights", ""), given.get("at", "last"), scale, Path(given["to"]) if "to" in given else None, rest)


def head(word: str) -> str:
    return re.split(r"[.=]", word, maxsplit=1)[0]


def about_of(subject: "Subject", sides: "dict[str, Scored]") -> dict[str, Any]:
    """As a run's: all that a table needs, beside the images' rows, and under what name results of the same evaluation meet."""
    from alignbench import run

    experiment, composed = subject.experiment, subject.composed
    made = run.about(experiment, composed, subject.policy, sides["policy"].measured, epochs=subject.epoch, peak=None)
    said = made | {"sets": experiment.sets(sides)} | subject.said
    said["config"] = said["config"] | {
        **{group: composed.identity[group] for group in ("eval", "dataset", "sampler", "trainer")},
        "evaluated": subject.mark,
    }
    said |= {f"trained_{key}": said[key] for key in ("hash", "cell")}  # the run's own, by which its failed seeds are found
    for key in ("hash", "cell"):
        text = json.dumps([said[key], getattr(composed, key), subject.mark], sort_keys=True)
        said[key] = hashlib.sha256(text.encode()).hexdigest()
    return said
