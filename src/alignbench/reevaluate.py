"""`alignbench evaluate run=FOLDER ...`: what a run has trained, or a pipeline or LoRA from elsewhere, on other prompts or by other judges."""

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.compose import Composed, compose
from alignbench.config import GROUPS, ConfigError, MissingAsset
from alignbench.report.record import Record, read_about, read_result
from alignbench.signatures import nearest

if TYPE_CHECKING:
    from alignbench.evaluation.evaluate import Scored
    from alignbench.experiment import Experiment
    from alignbench.policy import Policy

USAGE = (
    "alignbench evaluate run=FOLDER [at=last|peak] [scale=1], or model=NAME weights=FOLDER[:FILE]; then eval=..., dataset=..., "
    "sampler.steps=..., [to=FOLDER]"
)
OWN = ("run", "weights", "at", "scale", "to")
FREE = re.compile(r"(eval|dataset|sampler|trainer|judging)\b|(guidance|output)=")  # what may differ from the run: nothing that trained it
LORA = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Order:
    run: Path | None
    weights: str
    at: str
    scale: float
    to: Path | None
    words: list[str]  # for the config


def evaluate(words: list[str]) -> int:
    """The exit code. Raises ConfigError for what cannot be done as asked, MissingAsset where weights are not there."""
    import logging
    import warnings

    order = ordered(words)
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    try:
        rows, about, folder = of_run(order) if order.run else of_weights(order)
    except (ConfigError, MissingAsset):
        raise
    except ValueError as error:
        raise ConfigError(f"evaluate: {error}") from error
    from alignbench.run import summary

    try:
        folder.mkdir(parents=True, exist_ok=True)
        record = Record(folder)
        record.samples(rows, {key: value for key, value in about.items() if key != "compared"})
        record.result({**{key: value for key, value in about.items() if key not in ("compared", "config")}, "metrics": about["compared"]})
    except OSError as error:
        raise MissingAsset(f"evaluate: to={folder}: cannot be written ({error.strerror or error})") from error
    print(summary(read_result(folder)))
    print(f"results: {folder} (for `alignbench table`, beside others of the same evaluation)")
    return 0


def ordered(words: list[str]) -> Order:
    given: dict[str, str] = {}
    rest: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise ConfigError(f"evaluate: {word}: no value; {USAGE}")
        if key not in OWN:
            rest.append(word)
        elif key in given:
            raise ConfigError(f"evaluate: {word}: given twice; {USAGE}")
        else:
            given[key] = value
    if ("run" in given) == ("weights" in given):
        raise ConfigError(f"evaluate: one of run=FOLDER and weights=FOLDER is wanted; {USAGE}")
    if given.get("at", "last") not in ("last", "peak"):
        raise ConfigError(f"evaluate: at={given['at']}: last or peak")
    try:
        scale = float(given.get("scale", "1"))
    except ValueError:
        raise ConfigError(f"evaluate: scale={given['scale']}: a number is wanted; 0 is where training started, 1 where it ended") from None
    if "run" in given:
        for word in rest:
            if not FREE.match(word):
                key = word.partition("=")[0]
                raise ConfigError(f"evaluate: {word}: belongs to the run; {nearest(key, ['eval', 'dataset', 'sampler', 'guidance'])}")
    elif "at" in given or "scale" in given:
        raise ConfigError("evaluate: at and scale are for run=FOLDER; weights from elsewhere are taken as they are")
    run = Path(given["run"]) if "run" in given else None
    return Order(run, given.get("weights", ""), given.get("at", "last"), scale, Path(given["to"]) if "to" in given else None, rest)


def of_run(order: Order) -> tuple[list[dict[str, Any]], dict[str, Any], Path]:
    """Rows, what they are of, and the folder for them."""
    from alignbench.experiment import Experiment

    run = order.run or Path()
    about, result = read_about(run), read_result(run)
    composed = compose([*_without(shlex.split(result["command"])[3:], order.words), *order.words, *_output(order.words, run.parent)])
    checkpoint = "last.ckpt"
    if order.at == "peak" and about["epochs"] != about["peak"]:
        if not about["peak"]:
            raise ConfigError(f"evaluate: at=peak: {run} has no checkpoint of its peak ({about['peak']}); it was where training started")
        checkpoint = f"peak-{about['peak']:06d}.ckpt"
    experiment = Experiment.finished(run, composed.config, checkpoint)
    policy = experiment.method.evaluated
    if order.scale != 1:
        rescale(experiment, order.scale)
    mark = {"at": order.at, "scale": order.scale}
    epoch = about["epochs"] if order.at == "last" else about["peak"]
    return _rows(experiment, policy, composed, order, {**about, "trained": True}, mark, epoch)


def of_weights(order: Order) -> tuple[list[dict[str, Any]], dict[str, Any], Path]:
    from alignbench.config import arguments
    from alignbench.experiment import Experiment, made
    from alignbench.policy import Policy

    chosen = [word for word in order.words if word.startswith("model=")]
    if not chosen:
        raise ConfigError(f"evaluate: weights={order.weights}: of which model? add model=NAME; {USAGE}")
    component = "transformer" if _component(order.weights) == "transformer" else "unet"
    composed = compose(["method=reference", *order.words, f"model.init={found_in(order.weights, component)}"])
    experiment = Experiment.build(composed.config)
    experiment.attach(made(arguments("trainer", composed.config["trainer"]), logger=False, enable_progress_bar=False))
    policy = Policy(experiment.model, experiment.policy.sampler, experiment.model.start, experiment.policy.chunk)
    experiment.model.start = None  # the divergence of these weights is to the model itself
    experiment.policy.who = None
    return _rows(
        experiment, policy, composed, order, {"meters": {"reward_queries": 0, "network_evaluations": {}}}, {"weights": order.weights}, 0
    )


def _component(weights: str) -> str:
    return next((name for name in ("transformer", "unet") if Path(weights, name).is_dir()), "")


def found_in(weights: str, component: str) -> str:
    """What model.init takes: of a pipeline's folder its denoiser, of an export its LoRA; anything else as it is."""
    folder = Path(weights)
    if (folder / component / "config.json").is_file():
        return str(folder / component)
    if (folder / LORA).is_file():
        return f"{folder}:{LORA}"
    return weights


def rescale(experiment: "Experiment", scale: float) -> None:
    """Move what was trained to `scale` of its way from the start: 0 is the start, 1 is as trained, more goes beyond.

    A full copy's weights lie on the line between the two; a LoRA's update B A is scaled through B, which started as 0.
    """
    import torch

    model = experiment.model
    whos = [who for who in ("policy", "ema") if who == "policy" or who in experiment.method.copies]
    with torch.no_grad():
        for who in whos:
            if experiment.spec.kind == "lora":
                for name, parameter in model.trainable(who).items():
                    if "lora_B" in name:
                        parameter.mul_(scale)
                continue
            fresh = type(experiment).build(experiment.config).model.trainable(who)
            for name, parameter in model.trainable(who).items():
                parameter.copy_(torch.lerp(fresh[name].to(parameter), parameter, scale))


def _rows(
    experiment: "Experiment", policy: "Policy", composed: Composed, order: Order, about: dict[str, Any], mark: dict[str, Any], epoch: int
) -> tuple[list[dict[str, Any]], dict[str, Any], Path]:
    from alignbench.evaluation.evaluate import compare, described
    from alignbench.run import anchor, digest, told

    print(
        f"{composed.config['eval']['prompts'] * composed.config['eval']['images']} images of the policy and of the reference",
        file=sys.stderr,
    )
    sides = {"reference": remembered(experiment, experiment.policy.reference, composed), "policy": remembered(experiment, policy, composed)}
    trained = experiment.trained if about.pop("trained", False) else None
    seed = composed.config["seed"]
    rows = [
        {"who": who, "split": "test", "seed": seed, "epoch": epoch if who == "policy" else 0, **row, "image": ""}
        for who, side in sides.items()
        for row in side.rows
    ]
    sampler = experiment.policy.sampler
    metrics = described(experiment.judges, trained, sides["policy"].measured)
    facts = {
        "anchor": anchor(composed.config["model"]),
        "adapter": experiment.spec.kind,
        "trainable_parameters": experiment.trainable_parameters,
        "epochs": epoch,
        "weights": {"policy": digest(policy.trainable())},
    }
    said = facts | about | told(composed)
    said |= {
        "sampler": {
            "name": type(sampler).__name__,
            "steps": sampler.steps,
            "eta": getattr(sampler, "eta", None),
            "guidance": sampler.guidance,
        },
        "peak": None,
        "metrics": metrics,
        "judges": experiment.identities,
        "sets": experiment.sets(sides),
        "config": composed.identity | {"evaluated": mark},
    }
    for key in ("hash", "cell"):
        own = {"cell": about.get("cell", composed.cell), "hash": about.get("hash", "")}[key]
        said[key] = hashlib.sha256(
            json.dumps([own, composed.hash if key == "hash" else composed.cell, mark], sort_keys=True).encode()
        ).hexdigest()
    said["compared"] = compare(sides["reference"], sides["policy"], metrics, composed.config["eval"]["replicates"])
    folder = order.to or (order.run or Path(composed.config["output"])) / "evaluated" / said["hash"][:10]
    return rows, said, folder


def remembered(experiment: "Experiment", policy: "Policy", composed: Composed) -> "Scored":
    """The policy on the test prompts; what was measured before on the same images, by the same judge, is not measured again."""
    import numpy as np
    import torch

    from alignbench.compose import RESULTS_VERSION
    from alignbench.config import arguments
    from alignbench.datasets.base import spread
    from alignbench.evaluation.evaluate import Scored
    from alignbench.evaluation.measures import Measures, facts_of
    from alignbench.memo import Memo
    from alignbench.run import digest

    options, prompts, model = composed.config["eval"], experiment.prompts.test, experiment.model
    chosen = {index: prompts[index] for index in spread(prompts, options["prompts"])}
    copies = {
        id(each) for who in ("policy", *experiment.method.copies) if experiment.config["epochs"] for each in model.trainable(who).values()
    }
    kept = dict(model.named_parameters())
    base = {name: each for name, each in model.everything().items() if id(kept.get(name)) not in copies}
    images = {
        "results_version": RESULTS_VERSION,
        "model": arguments("model", composed.config["model"]),
        "weights": [digest(base), digest(dict(model.trainable(policy.who))) if policy.who else ""],
        "start": model.start,
        "sampler": [type(policy.sampler).__name__, {key: repr(value) for key, value in vars(policy.sampler).items()}],
        "prompts": {str(index): text for index, text in chosen.items()},
        "images": options["images"],
        "noise": options["noise"],
        "precision": composed.config["trainer"]["precision"],
    }
    memo = Memo(Path(composed.config["output"]) / ".evaluations")
    places = {judge.reward.name: memo.path(images, judge.identity) for judge in experiment.judges}
    spaces = experiment.measures.spaces
    measured = memo.path(
        images, {"measures": [space.identity() for space in experiment.measures.networks], "times": list(experiment.measures.times)}
    )
    found = {name: memo.recall(place) for name, place in {**places, "": measured}.items()}
    lacking = [judge for judge in experiment.judges if found[judge.reward.name] is None]
    if lacking or found[""] is None:
        from alignbench.evaluation.evaluate import score

        with experiment.precision():
            measures = experiment.measures if found[""] is None else Measures()
            fresh = score(policy, lacking, measures, chosen, options["images"], options["noise"])
        columns = {
            name: np.array([np.nan if row[name] is None else row[name] for row in fresh.rows])
            for name in fresh.rows[0]
            if name not in ("prompt_id", "prompt", "k")
        }
        for judge in lacking:
            found[judge.reward.name] = {"score": columns[judge.reward.name]}
            memo.keep(places[judge.reward.name], {"score": columns[judge.reward.name]})
        if found[""] is None:
            own = {name: columns[name] for name in fresh.measured} | {
                f"features/{name}": each.numpy() for name, each in fresh.features.items()
            }
            found[""] = own
            memo.keep(measured, own)
    scores: dict[str, Any] = {name: own["score"] for name, own in found.items() if name and own is not None}
    other = found[""] or {}
    numbers = {name: each for name, each in other.items() if not name.startswith("features/")}
    ids = [(index, k) for index in chosen for k in range(options["images"])]
    rows = [
        {"prompt_id": index, "prompt": chosen[index], "k": k}
        | {name: None if np.isnan(each[n]) else float(each[n]) for name, each in (scores | numbers).items()}
        for n, (index, k) in enumerate(ids)
    ]
    features = {name.removeprefix("features/"): torch.from_numpy(each) for name, each in other.items() if name.startswith("features/")}
    return Scored(rows, torch.empty(0), {name: facts_of(name, spaces) for name in numbers}, features)


def _without(words: list[str], instead: Sequence[str]) -> list[str]:
    """A run's words but for those that are given anew: a group's choice takes its settings with it."""
    keys = {word.partition("=")[0] for word in instead}
    groups = {key for key in keys if key in GROUPS}
    return [word for word in words if (key := word.partition("=")[0]) not in keys and key.split(".")[0] not in groups]


def _output(words: Sequence[str], parent: Path) -> list[str]:
    return [] if any(word.startswith("output=") for word in words) else [f"output={parent}"]
