"""Test scores that were made before: kept in <output>/.evaluations under all that the images and their judge, or measures, depend on."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignbench import __version__
from alignbench.compose import RESULTS_VERSION
from alignbench.config import arguments
from alignbench.datasets.base import spread
from alignbench.evaluation.evaluate import Scored, score
from alignbench.evaluation.measures import facts_of
from alignbench.experiment import Experiment
from alignbench.identity import digest
from alignbench.policy import Policy
from alignbench.report.record import write_atomically

Columns = dict[str, np.ndarray]  # [images] by name, and a space's features [images,D] by FEATURES + its name
FEATURES = "features/"
MEASURES = "measures"  # what no judge gives, as one


@dataclass(frozen=True)
class Memo:
    """A file for each pair of images and judge: a checksum, then an npz. A damaged one is as none."""

    folder: Path

    def path(self, images: dict[str, Any], judge: Any) -> Path:
        return self.folder / _key(images) / f"{_key(judge)}.npz"

    def recall(self, path: Path) -> Columns | None:
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if data[:32] != hashlib.sha256(data[32:]).digest():
            return None
        with np.load(io.BytesIO(data[32:]), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def keep(self, path: Path, columns: Columns) -> None:
        """Raises OSError where it cannot be written."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())


def remembered(experiment: Experiment, policy: Policy, who: str, say: Callable[[str], None]) -> Scored:
    """The policy's scores on the test prompts, as `experiment.scored` but without the images; who was asked before is not asked again.

    who: what the policy is called; say: is told what is remembered.
    """
    options, prompts = experiment.config["eval"], experiment.prompts.test
    chosen = {index: prompts[index] for index in spread(prompts, options["prompts"])}
    memo, images = Memo(Path(experiment.config["output"]) / ".evaluations"), depends_on(experiment, policy, chosen)
    measures = [[each.identity() for each in experiment.measures.networks], list(experiment.measures.times)]
    places = {judge.reward.name: memo.path(images, judge.identity) for judge in experiment.judges} | {MEASURES: memo.path(images, measures)}
    known = {name: memo.recall(place) for name, place in places.items()}
    new = [name for name, columns in known.items() if columns is None]
    count = f"{len(chosen) * options['images']} images"
    say(f"{who}: {count}: {len(known) - len(new)} of {len(known)} judges remembered" + (f"; sampling for {', '.join(new)}" if new else ""))
    if new:
        judges = [judge for judge in experiment.judges if judge.reward.name in new]
        with experiment.precision():
            made = score(policy, judges, experiment.measures if MEASURES in new else None, chosen, options["images"], options["noise"])
        for name in new:
            own = known[name] = _columns(made, name)
            try:
                if not any(np.isnan(column).any() for column in own.values()):  # who gave no score is asked again
                    memo.keep(places[name], own)
            except OSError as error:
                say(f"{places[name]}: not remembered ({error.strerror or error})")
    columns = {name: column for own in known.values() for name, column in (own or {}).items()}
    scores = {name: column for name, column in columns.items() if not name.startswith(FEATURES)}
    rows = [
        {"prompt_id": prompt_id, "prompt": text, "k": k}
        | {name: None if name in known and np.isnan(column[row]) else float(column[row]) for name, column in scores.items()}
        for row, (prompt_id, text, k) in enumerate((*item, k) for item in chosen.items() for k in range(options["images"]))
    ]
    facts = {name: facts_of(name, experiment.measures.spaces) for name in scores if name not in known}
    features = {name.removeprefix(FEATURES): torch.from_numpy(own) for name, own in columns.items() if name.startswith(FEATURES)}
    return Scored(rows, torch.empty(0), facts, features)


def depends_on(experiment: Experiment, policy: Policy, prompts: dict[int, str]) -> dict[str, Any]:
    """All that can change one of the images or its divergence, but for rounding."""
    model, sampler, config = experiment.model, policy.sampler, experiment.config
    weights = {who: digest(model.weights(who)) for who in {None, model.start, policy.who}}
    settings = arguments("model", config["model"])
    return {
        "version": [__version__, RESULTS_VERSION],
        "model": {key: value for key, value in settings.items() if key not in ("init", "gated")},  # init is among the weights
        "weights": [weights[who] for who in (None, model.start, policy.who)],
        "sampler": [type(sampler).__name__, vars(sampler), model.times(sampler.steps).tolist()],
        "choosing": policy.choosing,
        "prompts": list(prompts.items()),
        "images": config["eval"]["images"],
        "noise": config["eval"]["noise"],
        "trainer": [config["trainer"]["precision"], config["trainer"]["vae_tiling"]],
    }


def _columns(made: Scored, name: str) -> Columns:
    """What a judge gave, or the measures."""
    names = list(made.measured) if name == MEASURES else [name]
    own = {each: np.array([row[each] for row in made.rows], np.float64) for each in names}  # None becomes NaN
    return own | {FEATURES + space: each.numpy() for space, each in made.features.items() if name == MEASURES}


def _key(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]
