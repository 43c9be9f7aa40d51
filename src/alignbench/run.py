"""One experiment from its composed config to its page: build, say what will happen, fit, evaluate, record."""

import ctypes
import logging
import platform
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities import rank_zero_only

from alignbench import __version__
from alignbench.checkpoint import AtomicCheckpointIO, Damaged, newest
from alignbench.compose import RESULTS_VERSION, Composed
from alignbench.config import MissingAsset, arguments
from alignbench.evaluation.callbacks import BudgetStop, History, Peak, Progress, Row, Saver
from alignbench.evaluation.evaluate import Scored, compare, described
from alignbench.experiment import Experiment, made, outline
from alignbench.identity import digest
from alignbench.ledger import claimed
from alignbench.policy import Policy
from alignbench.report.page import grid_picture, render
from alignbench.report.record import Record, read_result
from alignbench.rollouts import Rollouts
from alignbench.signals import armed
from alignbench.trackers.guarded import Guarded


def say(line: str) -> None:
    if getattr(rank_zero_only, "rank", 0) == 0:  # of several processes that share a run, one speaks and writes
        print(line, file=sys.stderr, flush=True)


def settle(config: dict[str, Any]) -> None:
    """What holds for the whole process: how numbers are made, and who is told what."""
    warnings.filterwarnings("ignore", module="lightning")  # advice for data loaders, which this is not
    warnings.formatwarning = lambda message, *_, **__: f"alignbench: {message}\n"  # for users, not for who reads the code
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if config["trainer"]["threads"]:
        torch.set_num_threads(config["trainer"]["threads"])
    torch.backends.cudnn.allow_tf32 = False  # 32-true means it: TF32's error alone would reach past DDPO's clip of 1e-4
    keep_memory()


def keep_memory() -> None:
    """Have glibc keep what tensors on the CPU free. It gives large blocks back at once, and every pass faults them in again
    (docs/performance.md has what that costs). Elsewhere nothing happens.
    """
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        set_option(mmap_threshold, 32 << 20)  # bytes; the most that glibc takes
        set_option(trim_threshold, (1 << 31) - 1)


def execute(composed: Composed) -> int:
    """Run, continue or show an experiment; the exit code. Raises ValueError, MissingAsset, Stopped."""
    settle(composed.config)
    record = Record(composed.folder)
    if record.finished:
        say(f"already done, nothing to run: {composed.folder}")
        print(summary(read_result(composed.folder)))
        return 0
    with armed(), Guarded(made(composed.config["tracker"]), say) as tracker:
        started = time.time()
        config = composed.config
        try:
            experiment = Experiment.build(config, composed.folder)
        except MissingAsset:
            say(f"{composed.folder}\n{outline(config)}")
            raise

        def write(rows: list[Row]) -> None:
            record.metrics(rows)
            tracker.log(rows)

        history = History(experiment.model.meters, experiment.method.learned, experiment.validate, config["eval"]["every"], write)
        peak = Peak(last(composed).parent, AtomicCheckpointIO(composed.hash), history, experiment.choosers, config["eval"]["patience"])
        trainer = trainer_of(experiment, composed, history, peak)
        experiment.attach(trainer)
        if trainer.world_size == 1:  # several processes meet when they fit
            experiment.take_what_fits()
        say(f"{composed.folder}\n{experiment.plan()}")
        if not trainer.is_global_zero:
            train_and_evaluate(experiment, trainer, composed, record, history, peak)
            return 0
        with claimed(Path(config["output"]), composed.entry, lambda: record.finished, say, record.epoch) as todo:
            if todo:
                record.open(composed.identity, told(composed))
                record.judges(experiment.identities)
                tracker.begin(told(composed) | {"name": composed.folder.name}, composed.identity)
                built = time.time()
                trained = train_and_evaluate(experiment, trainer, composed, record, history, peak)
                tested = {metric["name"]: metric["policy"] for metric in read_result(composed.folder)["metrics"]}
                tracker.log([*history.rows, {"epoch": history.epoch, "split": "test", **tested}])
                tracker.picture(composed.folder / "samples" / "grid.png")
                record.timing(
                    {
                        "device": device_name(experiment.model.device),
                        "host": platform.node(),
                        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
                        "threads": torch.get_num_threads(),
                        **({"micro_batch": experiment.fit.facts} if experiment.fit else {}),
                        "seconds": {"building": built - started, "training": trained - built, "evaluation": time.time() - trained},
                        "versions": {"alignbench": __version__, "torch": torch.__version__, "python": platform.python_version()},
                    }
                )
    print(summary(read_result(composed.folder)))
    print(f"results: {composed.folder}\npage:    {composed.folder / 'report.html'}")
    return 0


def train_and_evaluate(experiment: Experiment, trainer: Trainer, composed: Composed, record: Record, history: History, peak: Peak) -> float:
    """Everything that a run is, in each of its processes; the first one writes it. When training was over, in seconds of `time.time`."""
    if composed.config["epochs"]:
        fit(experiment, trainer, composed)
    elif trainer.is_global_zero:
        record.metrics([])  # a method without training has no history
    fitted = time.time()
    scored = evaluate(experiment, composed, peak)
    sets = experiment.sets(scored)
    if trainer.is_global_zero:
        finish(experiment, composed, record, history, peak, scored, sets)
    return fitted


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"


def told(composed: Composed) -> dict[str, Any]:
    """Which run it is, before it has begun."""
    return {
        "format": 2,
        "results_version": RESULTS_VERSION,
        "choices": composed.named,
        "command": composed.command,
        "seed": composed.config["seed"],
        "hash": composed.hash,
        "cell": composed.cell,
        "track": composed.track,
    }


def trainer_of(experiment: Experiment, composed: Composed, history: History, peak: Peak) -> Trainer:
    config = experiment.config
    settings = arguments("trainer", config["trainer"])
    if settings["devices"] * settings.get("num_nodes", 1) > 1 and settings.get("strategy", "auto") == "auto":
        taking_turns = len(experiment.method.configure_optimizers().param_groups) > 1  # one network's turn leaves the others no gradient
        settings["strategy"] = "ddp_find_unused_parameters_true" if taking_turns else "ddp"
    trainer: Trainer = made(
        settings,
        accumulate_grad_batches=experiment.method.updates.accumulate,
        callbacks=[
            BudgetStop(experiment.model.meters, **config["budget"]),  # before the history, which validates where training ends
            history,
            Progress(history, say, sys.stderr.isatty()),
            peak,
            Saver(last(composed)),
        ],
        plugins=[AtomicCheckpointIO(composed.hash)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=composed.folder,
    )
    return trainer


def last(composed: Composed) -> Path:
    return composed.folder / "checkpoints" / "last.ckpt"


def fit(experiment: Experiment, trainer: Trainer, composed: Composed) -> None:
    """Train from the newest whole checkpoint, or from the start."""
    try:
        resume = newest(last(composed), composed.hash, say)
    except Damaged as damage:
        raise MissingAsset(str(damage)) from damage
    if resume is not None:
        say(f"continuing from {resume.name}")
    loader = Rollouts(experiment.collect, len(experiment.method.updates))

    def met(*_: object) -> None:
        experiment.take_what_fits()
        loader.batches = len(experiment.method.updates)
        say(f"micro-batch {experiment.fit}")

    if trainer.world_size > 1 and experiment.config["trainer"]["micro_batch"] == "auto":
        trainer.callbacks.append(LambdaCallback(setup=met))  # type: ignore[attr-defined]
    trainer.fit(experiment.method, loader, ckpt_path=resume, weights_only=True)
    experiment.attach(trainer)  # fit leaves the weights on the CPU


def evaluate(experiment: Experiment, composed: Composed, peak: Peak) -> dict[str, Scored]:
    """Reference, policy and, where one was chosen, the best checkpoint on the test prompts; every process takes part."""

    def test(policy: Policy) -> Scored:
        return experiment.scored("test", experiment.config["eval"]["prompts"], policy)

    say("evaluating reference and policy on test prompts")
    sides = {"reference": test(experiment.policy.reference), "policy": test(experiment.method.evaluated)}
    match peak.epoch:
        case None:
            return sides
        case 0:
            return {**sides, "peak": sides["reference"]}
        case epoch if epoch == peak.history.epoch:
            return {**sides, "peak": sides["policy"]}
    say(f"evaluating the checkpoint of epoch {peak.epoch}, the best by {', '.join(experiment.choosers)} on validation prompts")
    try:
        with experiment.at(peak.path(peak.epoch), composed.hash):
            return {**sides, "peak": test(experiment.method.evaluated)}
    except Damaged as damage:
        raise MissingAsset(f"{damage}; remove {last(composed).parent} to train again") from damage


def anchor(model: dict[str, Any]) -> dict[str, str | None]:
    """Whose weights training starts from, which KL and every difference are to, and whose score a method like DI* follows."""
    path = model.get("path")
    return {"start": model.get("init") or path, "score_reference": path}


def about(
    experiment: Experiment, composed: Composed, policy: Policy, measured: dict[str, Row], *, epochs: int, peak: int | None
) -> dict[str, Any]:
    """All that a table needs to know of evaluated weights beside their images' rows."""
    sampler = policy.sampler
    return {
        **told(composed),
        "sampler": {
            "name": type(sampler).__name__,
            "steps": sampler.steps,
            "eta": getattr(sampler, "eta", None),
            "guidance": sampler.guidance,
        },
        "adapter": experiment.spec.kind,
        "anchor": anchor(experiment.config["model"]),
        "trainable_parameters": experiment.trainable_parameters,
        "epochs": epochs,
        "peak": peak,
        "metrics": described(experiment.judges, experiment.trained, experiment.taught, measured),
        "judges": experiment.identities,
        "meters": experiment.model.meters.state(),
        "weights": {"policy": digest(policy.trainable())},
    }


def rows_of(experiment: Experiment, scored: dict[str, Scored], epochs: dict[str, int | None], history: History) -> list[Row]:
    """A row an image: of each side on the test prompts, then of every validation."""
    options, seed = experiment.config["eval"], experiment.config["seed"]
    pictured = {row["prompt_id"] for row in scored["policy"].rows[: options["grid"] * options["images"]]}
    rows = []
    for who, side in scored.items():
        for row in side.rows:
            seen = who != "peak" and row["k"] == 0 and row["prompt_id"] in pictured
            name = f"{row['prompt_id']}-{row['k']}-{who}.png" if seen else ""
            rows.append({"who": who, "split": "test", "seed": seed, "epoch": epochs[who], **row, "image": name})
    for row in history.images:
        prompt = experiment.prompts.validation[row["prompt_id"]]
        rows.append({"who": "policy", "split": "validation", "seed": seed, "prompt": prompt, **row, "image": ""})
    return rows


def finish(
    experiment: Experiment,
    composed: Composed,
    record: Record,
    history: History,
    peak: Peak,
    scored: dict[str, Scored],
    sets: list[Row],
) -> None:
    """Write everything that is compared; the page last."""
    policy = experiment.method.evaluated
    rows = rows_of(experiment, scored, {"reference": 0, "policy": history.epoch, "peak": peak.epoch}, history)
    for row, image in zip(rows, (image for side in scored.values() for image in side.images), strict=False):
        if row["image"]:
            record.picture(row["image"], (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    run = about(experiment, composed, policy, scored["policy"].measured, epochs=history.epoch, peak=peak.epoch) | {"sets": sets}
    record.samples(rows, run | {"config": composed.identity})
    shutil.rmtree(composed.folder / "weights", ignore_errors=True)  # what a killed process left half written
    if policy.who is not None and policy.trainable():
        experiment.model.export(policy.who, composed.folder / "weights", experiment.spec)
    replicates = experiment.config["eval"]["replicates"]
    record.result(run | {"metrics": compare(scored["reference"], scored["policy"], run["metrics"], replicates)})
    grid_picture(composed.folder)
    render(composed.folder)


def sets_of(result: dict[str, Any]) -> list[str]:
    """The policy's images as a set, a line for each feature space and what they are held against."""
    found: dict[str, list[str]] = {}
    for row in result["sets"]:
        if row["who"] == "policy" and row["value"] is not None:
            start = f"{row['images']} images against {row['images_against']} of the {row['against']}, {row['space']}"
            found.setdefault(start.replace("of the real", "real ones"), []).append(f"{row['name']} {row['value']:.3g}")
    return [f"{start}: {', '.join(values)}" for start, values in found.items()]


def summary(result: dict[str, Any]) -> str:
    """The result's table for a terminal."""
    lines = [f"{'metric':<24}{'label':<12}{'reference':>10}{'policy':>10}{'change':>10}   95 % interval"]
    for metric in result["metrics"]:
        low, high = metric["interval"]
        values = f"{metric['reference']:>10.3f}{metric['policy']:>10.3f}{metric['difference']:>+10.3f}"
        lines.append(f"{metric['name']:<24}{metric['label']:<12}{values}   [{low:+.3f}, {high:+.3f}]")
    most = max(result["metrics"], key=lambda metric: metric["images"])
    fewer = [f"{metric['name']} on {metric['images']}" for metric in result["metrics"] if metric["images"] < most["images"]]
    return "\n".join(
        [
            *lines,
            *sets_of(result),
            *([f"{', '.join(fewer)} of the images: the judge gave the others no score"] if fewer else []),
            f"{most['images']} images of {most['prompts']} unseen test prompts, each made by both from the same noise;",
            "the interval is over prompts and images of this one run, not over seeds",
        ]
    )
