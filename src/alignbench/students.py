"""Packs a finished run's generator as a distilled model with its card: `python -m alignbench.students RUN FOLDER`."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from alignbench.datasets.base import spread
from alignbench.evaluation.sets import frechet, kid
from alignbench.experiment import Experiment
from alignbench.features.readings import Readings
from alignbench.models.stable_diffusion import StableDiffusion
from alignbench.policy import Policy
from alignbench.report.record import read_result
from alignbench.rng import generator
from alignbench.samplers.ddim import DDIM
from alignbench.worlds.sandbox import GUIDANCE, STEPS
from alignbench.worlds.scenes import correct

IMAGES = 504


@torch.no_grad()
def images_of(policy: Policy, prompts: list[str], purpose: str) -> Tensor:
    return policy.images(policy.rollout(prompts, "image", [generator(0, purpose, 0, row) for row in range(len(prompts))]))


def distances(real: Tensor, made: Tensor) -> tuple[float, float]:
    """Frechet distance and KID between images of the same prompts, on the judge's readings: no Inception weights can be shipped."""
    one, other = (Readings()(images) for images in (real, made))
    return frechet(one, other), kid(one, other, paired=True)


def figures(student: Policy, prompts: list[str]) -> list[tuple[str, float, float, float]]:
    """Rows of the card: who, share of images with all five attributes right, Frechet distance and KID to the teacher's images."""
    teacher = Policy(student.model, DDIM(steps=STEPS, eta=0.0, guidance=GUIDANCE, deterministic=0), None, student.chunk)
    real = images_of(teacher, prompts, "teacher")
    rows = []
    for who, policy in {
        "student": student,
        "the same sampler on the teacher's weights": Policy(student.model, student.sampler, None, student.chunk),
        "teacher, other noise": teacher,
    }.items():
        made = images_of(policy, prompts, "student")
        rows.append((who, correct(made, prompts).all(1).float().mean().item(), *distances(real, made)))
    return rows


def card(result: dict[str, Any], rows: list[tuple[str, float, float, float]], prompts: int, digest: str) -> str:
    table = "\n".join(f"| {who} | {right:.3f} | {frechet:.4f} | {kernel:.5f} |" for who, right, frechet, kernel in rows)
    sampler = result["sampler"]
    return f"""---
license: apache-2.0
---
# alignbench sandbox, distilled: {sampler["name"]}, {sampler["steps"]} step{"s" * (sampler["steps"] > 1)}

The UNet of a generator that alignbench trained from its sandbox model, in half precision; text encoder, VAE and scheduler are the
sandbox's. Made by

```
{result["command"]}
python -m alignbench.students <that run's folder> <this folder>
```

On {prompts} test prompts (combinations of shape and colour that training never showed). *right*: share of images in which the exact judge
finds all five attributes. Frechet distance and KID are to the teacher's images (guidance {GUIDANCE:g}, {STEPS} DDIM
steps), on the judge's 20 readings an image rather than on Inception's features: compare them with each other only.

| | right | Frechet | KID |
|---|---|---|---|
{table}

| file | sha256 |
|---|---|
| `diffusion_pytorch_model.safetensors` | `{digest}` |
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m alignbench.students", description="Pack a finished run's generator as a student.")
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    experiment = Experiment.finished(options.run)
    student = experiment.method.evaluated
    network: Any = cast(StableDiffusion, experiment.model).copies[str(student.who)]
    network.half().float()  # the figures are of what is shipped
    picked = [experiment.prompts.test[index] for index in spread(experiment.prompts.test, min(IMAGES, len(experiment.prompts.test)))]
    rows = figures(student, picked)
    network.half().save_pretrained(options.folder)
    config = options.folder / "config.json"
    facts = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}  # where it lay on this machine
    config.write_text(json.dumps(facts, indent=2) + "\n")
    digest = hashlib.sha256((options.folder / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    (options.folder / "README.md").write_text(card(read_result(options.run), rows, len(picked), digest), encoding="utf-8")
    print((options.folder / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
