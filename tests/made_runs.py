"""Finished runs made up from numbers: their folders as a run writes them, without a model or a training."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from alignbench.report.record import Record

METRICS = (
    ("scene_judge", "trained", True),
    ("exact_judge", "gold", True),
    ("colour", "held out", True),
    ("kl", "divergence", False),
    ("diversity", "diversity", True),
)
NAMES = ("ddpo", "d3po", "pxpo", "kl_rlhf", "rwr", "pso")
GAINS = dict(zip(NAMES, ((0.05, 0.02), (0.08, 0.06), (0.03, -0.04), (0.03, 0.02), (0.02, 0.0), (0.06, 0.03)), strict=True))
"""Of the trained reward and of gold, at the end."""
COLOURS = ("#c0392b", "#2468c0", "#2f9e54", "#d9a514", "#8e44ad", "#e67e22")
Painter = Callable[[int, int], np.ndarray]
"""The picture [H,W,3] of a prompt in some state: 0 is the reference's, others are a method's and a seed's."""


def hashed(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def painted(prompt: int, state: int, side: int = 32) -> np.ndarray:
    """A ball on a sky that darkens downwards; it wanders with the state."""
    down = np.linspace(0, 1, side)[:, None, None]
    sky = (1 - down) * np.array([150, 190, 235]) + down * np.array([245, 222, 200]) + np.zeros((side, side, 1))
    picture = Image.fromarray(sky.astype(np.uint8))
    left, top = side * (0.15 + 0.05 * (prompt % 7)), side * (0.2 + 0.02 * (state % 9))
    ImageDraw.Draw(picture).ellipse(
        (left, top, left + side * 0.35, top + side * 0.35), fill=COLOURS[(prompt + (state > 0) * state // 10) % 6]
    )
    return np.asarray(picture)


def make_run(
    folder: Path, method: str, seed: int, prompts: Sequence[str], *, pictured: int = 8, epochs: int = 4, paint: Painter = painted
) -> Path:
    """One run in `folder`: test rows of two images a prompt, validation at each epoch, pictures of the first prompts."""
    number = list(GAINS).index(method)
    rng = np.random.default_rng([seed, number])
    start = np.random.default_rng(7).uniform(0.4, 0.8, (len(prompts), 2, len(METRICS)))
    trained, gold = GAINS[method]
    config = {
        "seed": seed,
        "method": {"_target_": f"alignbench.methods.{method}", "clip": 1e-2},
        **{group: {"_target_": f"alignbench.{group}"} for group in ("dataset", "sampler", "reward", "model")},
        "eval": {"prompts": len(prompts), "images": 2, "noise": 0},
    }
    cell = hashed({key: value for key, value in config.items() if key != "seed"} | {"prompts": list(prompts)})
    run = {
        "format": 2,
        "results_version": 1,
        "choices": {"method": method, "model": "sandbox", "reward": "scene_judge", "dataset": "scenes"},
        "command": f"python -m alignbench method={method} seed={seed}",
        "seed": seed,
        "hash": hashed([cell, seed]),
        "cell": cell,
        "track": "multi_step",
    }
    name = folder / f"{method}-sandbox-scene_judge-scenes-s{seed}-{run['hash'][:10]}"
    record = Record(name)
    record.open(config, run)
    judges = {each: {"name": each, "settings": "", "weights": ""} for each, label, _ in METRICS if label in ("trained", "gold", "held out")}
    record.judges(judges)
    gains = np.array([trained, gold, gold / 2, 0.0, -0.03]) + rng.normal(0, 0.01, len(METRICS))

    def scores(table: np.ndarray, share: float, noise: float) -> dict[str, float]:
        moved = table + share * gains + noise * rng.normal(0, 0.02, len(METRICS))
        moved[3] = share * (3 + number + seed / 4) * (1 + noise * rng.uniform(-0.2, 0.2))
        return {name: float(value) for (name, *_), value in zip(METRICS, moved, strict=True)}

    rows: list[dict[str, Any]] = []
    for n, prompt in enumerate(prompts):
        for k in range(2):
            for who, share in (("reference", 0.0), ("policy", 1.0)):
                image = f"{n}-{k}-{who}.png" if k == 0 and n < pictured else ""
                if image:
                    record.picture(image, paint(n, 0 if who == "reference" else 10 * (number + 1) + seed))
                told = {"who": who, "split": "test", "seed": seed, "epoch": epochs * int(share), "prompt_id": n, "prompt": prompt, "k": k}
                rows.append({**told, **scores(start[n, k], share, share), "image": image})
    history = []
    for epoch in range(epochs + 1):
        measured = [scores(start[n % len(start), k], epoch / epochs, float(epoch > 0)) for n in range(4) for k in range(2)]
        for n, each in enumerate(measured):
            told = {"who": "policy", "split": "validation", "seed": seed, "epoch": epoch, "prompt_id": n // 2, "prompt": f"v{n // 2}"}
            rows.append({**told, "k": n % 2, **each, "image": ""})
        means = {name: float(np.mean([each[name] for each in measured])) for name, *_ in METRICS}
        spent = {"reward_queries": 64 * epoch, "network_evaluations": (1792 + 256 * number) * epoch}
        history.append({"epoch": epoch, "split": "validation", "reward": means["scene_judge"], **spent, **means})
    record.metrics(history)
    about = run | {
        "sampler": {"name": "DDIM", "steps": 5, "eta": 1.0, "guidance": 3.0},
        "adapter": "full",
        "anchor": {"start": "package://models/sandbox", "score_reference": "package://models/sandbox"},
        "trainable_parameters": 1000,
        "epochs": epochs,
        "peak": None,
        "metrics": [{"name": name, "label": label, "larger_is_better": more, "unit": "", "note": ""} for name, label, more in METRICS],
        "judges": judges,
        "meters": {"reward_queries": 64 * epochs, "network_evaluations": {"policy": (1792 + 256 * number) * epochs}},
        "weights": {},
        "sets": [
            {"who": "policy", "against": "reference", "space": "readings", "name": "frechet", "value": 0.001 * (number + 1)}
            | {"images": 2 * len(prompts), "images_against": 2 * len(prompts)}
        ],
    }
    record.samples(rows, about | {"config": config})
    record.timing(
        {
            "device": "cpu x86_64",
            "host": "here",
            "started": "2026-01-01T00:00:00+0000",
            "threads": 1,
            "seconds": {"building": 1.0, "training": 60.0 + seed, "evaluation": 30.0},
            "versions": {"alignbench": "0.1.0", "torch": "2.15.0", "python": "3.11.7"},
        }
    )
    return name


def fail(run: Path, error: str) -> None:
    """Make this finished run one that failed."""
    (run / "samples.parquet").unlink()
    (run / "error.txt").write_text(f"Traceback (most recent call last):\n  ...\n{error}\n", encoding="utf-8")
