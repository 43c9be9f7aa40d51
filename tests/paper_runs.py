"""Folders of runs that nobody trained: what a table reads of a run, written from a composed config and made-up changes."""

from typing import Any

import numpy as np

from alignbench.compose import RESULTS_VERSION, Composed
from alignbench.report.record import Record

PROMPTS, IMAGES = 6, 2
LABELS = {"jpeg_compressibility": "held out", "brightness": "trained", "kl": "divergence"}


def make_run(composed: Composed, gains: dict[str, float], sets: dict[str, float] | None = None) -> None:
    """A finished run whose policy gains so much of each metric in the mean, give or take its seed's and its images' noise."""
    seed, trained = composed.config["seed"], composed.choices["method"] != "reference"
    start = np.random.Generator(np.random.PCG64(99))
    noise = np.random.Generator(np.random.PCG64([seed, int(composed.cell[:8], 16)]))
    reference = {name: start.normal(size=(PROMPTS, IMAGES)) for name in LABELS} | {"kl": np.zeros((PROMPTS, IMAGES))}
    policy = {
        name: reference[name] + trained * (gains.get(name, 0.0) + 0.1 * noise.normal() + 0.1 * noise.normal(size=(PROMPTS, IMAGES)))
        for name in LABELS
    }
    rows = [
        {"who": who, "split": "test", "seed": seed, "epoch": 0, "prompt_id": p, "k": k, "prompt": f"prompt {p}", "image": ""}
        | {name: float(table[p, k]) for name, table in tables.items()}
        for who, tables in (("reference", reference), ("policy", policy))
        for p, k in np.ndindex(PROMPTS, IMAGES)
    ]
    about: dict[str, Any] = {
        "format": 2,
        "results_version": RESULTS_VERSION,
        "choices": composed.choices,
        "command": composed.command,
        "seed": seed,
        "hash": composed.hash,
        "cell": composed.cell,
        "track": composed.track,
        "epochs": composed.config["epochs"],
        "peak": None,
        "sampler": {"name": "DDIM", "steps": 3, "eta": 1.0, "guidance": 0.0},
        "anchor": {"start": None, "score_reference": None},
        "metrics": [{"name": name, "label": label} for name, label in LABELS.items()],
        "judges": {name: {"weights": name} for name in LABELS},
        "meters": {"reward_queries": 64 * trained, "network_evaluations": {"rollout": 128 * trained}},
        "sets": [
            {"space": "readings", "against": "reference", "name": name, "who": "policy", "value": value + seed}
            for name, value in (sets or {}).items()
        ],
    }
    record = Record(composed.folder)
    record.open(composed.identity, {key: about[key] for key in ("hash", "cell", "seed", "choices", "command")})
    record.samples(rows, about | {"config": composed.identity})
    record.result(about)
    (composed.folder / "report.html").write_text("made up")
