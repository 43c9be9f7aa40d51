"""`alignbench label RUN`: samples images from what a run has trained, and opens the page on which a person says which are better."""

import json
import re
import shlex
from pathlib import Path

from alignbench.config import ConfigError, MissingAsset
from alignbench.report.label_page import serve
from alignbench.report.record import read_result, write_atomically

DEFAULTS = {"groups": 40, "images": 2, "seed": 0, "port": 0}
USAGE = (
    "alignbench label <run folder> [groups=40] [images=2] [seed=0] [port=0]: groups of so many images of one training prompt, "
    "from one starting noise"
)


def label(words: list[str]) -> int:
    """The exit code. What is labelled already stays: the same command goes on where it was."""
    if not words or "=" in words[0]:
        raise ConfigError(f"label: which run? {USAGE}")
    run, numbers = Path(words[0]), dict(DEFAULTS)
    for word in words[1:]:
        key, _, value = word.partition("=")
        if key not in DEFAULTS or not re.fullmatch("[0-9]{1,6}", value):
            raise ConfigError(f"label: {word}: {USAGE}")
        numbers[key] = int(value)
    if numbers["images"] < 2 or numbers["groups"] < 1:
        raise ConfigError("label: a choice needs images=2 or more, and groups=1 or more")
    folder = run / "labels"
    try:
        if not (folder / "items.json").is_file():
            sample(run, folder, numbers["groups"], numbers["images"], numbers["seed"])
        return serve(folder, numbers["port"])
    except ValueError as error:
        raise ConfigError(str(error)) from error


def sample(run: Path, folder: Path, groups: int, images: int, seed: int) -> None:
    """Fill a labels folder: trajectories, pictures, and last items.json."""
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from alignbench.datasets.base import draw
    from alignbench.experiment import Experiment
    from alignbench.rng import Draws

    try:
        result = read_result(run)
        experiment = Experiment.finished(run)
    except MissingAsset as error:
        raise ConfigError(str(error)) from error
    policy, draws = experiment.method.evaluated, Draws(seed, 0)
    prompts = draw(experiment.prompts.train, groups, images, draws.one("label/prompts"))
    start = policy.model.prior(draws.each("label/start", range(groups))).repeat_interleave(images, 0)
    with policy.model.meters.paused(), experiment.precision():
        rollout = policy.rollout(prompts, "image", draws.each("label", range(len(prompts))), start)
        pictures = (policy.images(rollout).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    named = [[f"{group}-{k}.png" for k in range(images)] for group in range(groups)]
    for name, picture in zip((name for group in named for name in group), pictures, strict=True):
        Image.fromarray(picture).save(folder / "images" / name)
    sampler = json.dumps(vars(policy.sampler), sort_keys=True)
    save_file({"x": rollout.x.cpu().contiguous()}, folder / "rollouts.safetensors", {"sampler": sampler})
    words = shlex.split(result["command"])[3:]
    same = " ".join(word for word in words if re.match(r"model\b|sampler\b|guidance=", word) and not word.startswith("model="))
    items = {
        "format": 1,
        "run": run.resolve().name,
        "groups": [{"prompt": prompts[group * images], "images": names} for group, names in enumerate(named)],
        "next_step": f"python -m alignbench method=d3po_human model={result['choices']['model']} method.path={folder} {same}".strip(),
    }
    write_atomically(folder / "items.json", json.dumps(items, indent=1).encode())
