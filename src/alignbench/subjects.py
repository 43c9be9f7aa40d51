"""What `alignbench evaluate` evaluates: a run's last or best weights, or weights from elsewhere, as a policy under another config."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbench.check import read_choice
from alignbench.compose import Composed, compose
from alignbench.config import GROUPS, ConfigError, choices, conf_folder, located
from alignbench.experiment import Experiment
from alignbench.models.pipeline import Pipeline
from alignbench.policy import Policy
from alignbench.report.record import read_about
from alignbench.rewards.base import UNKNOWN
from alignbench.run import anchor, settle

LORA = "pytorch_lora_weights.safetensors"  # diffusers' name for it


@dataclass(frozen=True)
class Subject:
    """Weights, in an experiment that was built for their evaluation."""

    experiment: Experiment
    composed: Composed
    policy: Policy
    epoch: int
    said: dict[str, Any]  # of their training; the rest is the evaluation's
    mark: dict[str, Any]  # which weights they are, beside what was said


def of_run(run: Path, at: str, scale: float, words: list[str]) -> Subject:
    """at: last or peak, whose weights; scale: how far along the line from where training started, 1 is there; words: of the evaluation.

    Raises ConfigError for what cannot be done as asked, MissingAsset where a checkpoint is not there.
    """
    about = read_about(run)
    if "evaluated" in about["config"]:
        raise ConfigError(f"evaluate: run={run}: itself an evaluation; give the folder of the run that it is of")
    if at == "peak" and about["peak"] is None:
        raise ConfigError(f"evaluate: at=peak: {run} has none, for its validations asked nobody (eval.peak, eval.every); take at=last")
    given = {word.partition("=")[0] for word in words}
    anew = given.intersection(GROUPS)  # a group's choice takes its settings with it
    kept = [word for word in shlex.split(about["command"])[3:] if word.partition("=")[0] not in given and _group(word) not in anew]
    composed = compose([f"output={run.parent}", *kept, *words] if "output" not in given else [*kept, *words])
    settle(composed.config)
    epoch = about["epochs"] if at == "last" else about["peak"]
    experiment = Experiment.finished(run, composed.config, epoch if at == "peak" and epoch else None)
    policy = experiment.method.evaluated
    if policy.who is not None and policy.trainable():
        experiment.model.rescale(policy.who, scale if epoch else 0.0)  # no checkpoint is kept of where training starts
    elif scale != 1:
        raise ConfigError(f"evaluate: scale={scale:g}: method={about['choices']['method']} trains no weights; take it out")
    said = {key: about[key] for key in ("command", "hash", "cell", "meters")} | {"config": about["config"]}
    return Subject(experiment, composed, policy, epoch, said, {"at": at, "scale": scale})


def of_weights(weights: str, words: list[str]) -> Subject:
    """A denoiser or a LoRA beside the model itself, which their divergence is to; weights: FOLDER or FOLDER:FILE.

    Raises ConfigError for what cannot be done as asked, MissingAsset where the weights are not there.
    """
    name = next((value for key, _, value in (word.partition("=") for word in words) if key == "model"), "")
    if name in choices("model", conf_folder()) and "init" not in read_choice("model", name, conf_folder()):
        raise ConfigError(f"evaluate: model={name} takes no weights from elsewhere; take run=FOLDER")
    place = denoiser_in(weights)
    composed = compose(["method=reference", *words, f"model.init='{place}'"])
    settle(composed.config)
    experiment = Experiment.build(composed.config)
    experiment.settle()
    experiment.taught = (UNKNOWN,)  # nobody has said what weights from elsewhere learned from
    model, folder = experiment.model, Path(located(weights))
    if isinstance(model, Pipeline) and (folder / "model_index.json").is_file() and (others := model.unlike(folder)):
        raise ConfigError(
            f"evaluate: weights={weights}: its {', '.join(others)} differ from model={name}'s, and only the denoiser would be taken; "
            f"`python -m alignbench method=reference model={name} model.path={weights}` evaluates the whole"
        )
    policy = experiment.policy.of(model.start)
    model.start = None  # measured against the pipeline's own
    said = {
        "choices": composed.named | {"method": "weights"},
        "anchor": anchor(composed.config["model"] | {"init": None}),
        "config": composed.identity,
    }
    return Subject(experiment, composed, policy, 0, said, {"weights": weights})


def denoiser_in(weights: str) -> str:
    """As model.init takes it: of a pipeline's or an export's folder its denoiser or LoRA; anything else is one."""
    folder = Path(located(weights))
    if part := next((part for part in ("unet", "transformer") if (folder / part / "config.json").is_file()), None):
        return str(folder / part)
    return f"{folder}:{LORA}" if (folder / LORA).is_file() else weights


def _group(word: str) -> str:
    return re.split(r"[.=]", word, maxsplit=1)[0]
