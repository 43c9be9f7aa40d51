"""GenEval (2310.11513) in an environment of its own: whether a detector finds the objects, counts, colours and places of a prompt."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from alignbench.config import ConfigError, MissingAsset, located
from alignbench.ranges import Count, Fraction, Positive, Text
from alignbench.rewards.worker import Worker

SCRIPT = "package://rewards/official/geneval.py"
DETECTOR = "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco"
FETCH = (
    f"fetch {DETECTOR}_20220504_001756-c9d0c4f2.pth (0.3 GB) from mmdetection's model zoo (mask2former: Swin-S, instance segmentation), "
    "do not rename it, and put its path in reward.path"
)
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PLACES = ("left of", "right of", "above", "below")


class Geneval(Worker):
    """1 where all that the prompt's metadata asks for is found, else 0."""

    name = "geneval"
    differentiable = False
    spatial = False
    range = (0.0, 1.0)
    unit = "share of images"
    licence = "Apache-2.0; of CLIP: MIT"
    backbones = ("Mask2Former Swin-S", "CLIP ViT-L/14")
    datasets = ("COCO", "OpenAI's 400 M pairs")
    frame = "8 bits, then as mmdetection's own pipeline; CLIP sees each object alone on grey"
    size_gb = 1.2

    def __init__(
        self,
        *,
        path: Text,
        clip: str | None,
        metadata: Text,
        threshold: Fraction,
        counting_threshold: Fraction,
        max_objects: Count,
        position_threshold: Fraction,
        device: str | None,
        requirements: Text,
        python: str | None,
        batch: Count,
        build_timeout: Positive,
        start_timeout: Positive,
        call_timeout: Positive,
        idle_timeout: Positive,
        tries: Count,
        pause: Positive,
    ):
        """path: the detector's published file; clip: null for open_clip's own of OpenAI, or a file; metadata: a jsonl with prompt, tag,
        include and exclude a line; thresholds: of the detector's confidence, over which an object counts, the second for the tag counting;
        max_objects: of a class; position_threshold: see `places`; the rest: as of ImageRewardOfficial. Raises MissingAsset, and
        ConfigError for a line that is no task.
        """
        for key, file, remedy in (
            ("path", path, FETCH),
            ("clip", clip, "name OpenAI's ViT-L/14 as open_clip reads it, or null, which fetches it"),
            ("metadata", metadata, "name a file as evaluation_metadata.jsonl of GenEval's prompts"),
        ):
            if file is not None and not Path(located(file)).is_file():
                raise MissingAsset(f"reward.{key}={file}: not there; {remedy}")
        self._tasks, self._metadata, self._device = tasks(metadata), metadata, device
        numbers = {
            "threshold": threshold,
            "counting_threshold": counting_threshold,
            "max_objects": max_objects,
            "position_threshold": position_threshold,
        }
        self._numbers = numbers
        super().__init__(
            script=SCRIPT,
            requirements=requirements,
            python=python,
            settings={"path": path, "clip": clip, "metadata": metadata, "device": device, **numbers},
            batch=batch,
            build_timeout=build_timeout,
            start_timeout=start_timeout,
            call_timeout=call_timeout,
            idle_timeout=idle_timeout,
            tries=tries,
            pause=pause,
        )

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        if without := next((prompt for prompt in prompts if prompt not in self._tasks), None):
            raise ConfigError(
                f"reward.metadata={self._metadata}: nothing is said of the prompt {without!r}; add its line, or take prompts of that file"
            )
        return super().forward(images, prompts)

    def identity(self) -> dict[str, str]:
        """The tasks and weights by their hashes, not by where this machine keeps them."""
        text = json.dumps(self._tasks, sort_keys=True)
        numbers = ", ".join(f"{key}={value}" for key, value in sorted(self._numbers.items()))
        settings = f"device={self._device}, {numbers}, tasks={hashlib.sha256(text.encode()).hexdigest()[:16]}"
        return {**super().identity(), "settings": settings}


def tasks(path: str) -> dict[str, dict[str, Any]]:
    """The tasks of a jsonl by their prompts. Raises ConfigError, naming the line."""
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(Path(located(path)).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            task = json.loads(line)
            fault = _fault(task)
        except ValueError as error:
            task, fault = {}, f"not JSON ({error})"
        if not fault and found.setdefault(task["prompt"], task) != task:
            fault = f"the prompt {task['prompt']!r} has another task above"
        if fault:
            raise ConfigError(f"reward.metadata={path}: line {number}: {fault}; mend it (docs/rewards/official.md has an example)")
    if not found:
        raise ConfigError(f"reward.metadata={path}: no task in it; name a file as evaluation_metadata.jsonl of GenEval's prompts")
    return found


def _fault(task: Any) -> str:
    """What is wrong with a line, or nothing."""
    if not isinstance(task, dict) or not isinstance(task.get("prompt"), str):
        return "an object with a prompt is wanted"
    if task.get("tag") not in TAGS:
        return f"tag {task.get('tag')!r}; there is {', '.join(TAGS)}"
    include, exclude = task.get("include"), task.get("exclude", [])
    if not isinstance(include, list) or not include or not isinstance(exclude, list):
        return "include and exclude are lists of clauses, and include has one"
    for index, clause in enumerate([*include, *exclude]):
        if not isinstance(clause, dict) or not isinstance(clause.get("class"), str):
            return "a clause has a class"
        if not isinstance(clause.get("count"), int) or clause["count"] < 1:
            return f"count {clause.get('count')!r} of {clause['class']}; a whole number from 1 is wanted"
        if "color" in clause and clause["color"] not in COLOURS:
            return f"color {clause['color']!r}; there is {', '.join(COLOURS)}"
        if "position" in clause and not _placed(clause["position"], min(index, len(include))):
            return f"position {clause['position']!r}; a place ({', '.join(PLACES)}) and the number of an earlier clause are wanted"
    return ""


def _placed(position: Any, earlier: int) -> bool:
    return isinstance(position, list) and len(position) == 2 and position[0] in PLACES and position[1] in range(earlier)
