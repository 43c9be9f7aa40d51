"""GenEval (2310.11513): mmdetection's Mask2Former finds objects, CLIP names their colours, and a prompt's task says what must be there.

The verdict is plain arithmetic on detections and needs none of the packages; `load` is run by a worker in the environment of
conf/reward/env/geneval.txt. What is asked is what evaluation/evaluate_images.py of djghosh13/geneval asks; the code is ours.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
GREY = 0x99  # what a crop shows around its object
ALIASES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}  # COCO's names, and the prompts'
CONFIG = "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"


@dataclass(frozen=True)
class Found:
    """One detection: its box (left, top, right, bottom) in pixels, its confidence, and its mask [H,W], if any."""

    box: tuple[float, float, float, float]
    score: float
    mask: Any = None


Objects = dict[str, list[Found]]
Colours = Callable[[str, list[Found]], list[str]]  # the colour of each object of a class


def kept(found: Objects, threshold: float, most: int) -> Objects:
    """Of each class the `most` surest detections that are surer than `threshold`, surest first."""
    sure = {name: sorted((each for each in all_ if each.score > threshold), key=lambda each: -each.score) for name, all_ in found.items()}
    return {name: some[:most] for name, some in sure.items()}


def places(box: Sequence[float], other: Sequence[float], margin: float) -> set[str]:
    """Where a box lies seen from another. On each axis the distance of the centres counts less `margin` times the sum of both sizes, and
    makes a place where it is over half of the centres' distance: so two places at once are possible, and none.
    """
    offsets = [(box[i] + box[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(box[i + 2] - box[i]) + abs(other[i + 2] - other[i]) for i in (0, 1)]
    distance = math.hypot(*offsets)
    across, down = (
        math.copysign(max(abs(offset) - margin * size, 0), offset) / distance if distance else 0
        for offset, size in zip(offsets, sizes, strict=True)
    )
    said = {"left of": -across, "right of": across, "above": -down, "below": down}
    return {place for place, share in said.items() if share > 0.5}


def verdict(objects: Objects, task: dict[str, Any], colours: Colours, margin: float) -> bool:
    """Whether every clause of `include` holds for the surest `count` objects of its class, and none of `exclude` for all of its.

    A clause's position is a place and the number of an earlier clause: every object of the one lies there seen from every one of the other.
    """
    groups: list[list[Found]] = []
    for clause in task["include"]:
        name, count = clause["class"], clause["count"]
        best = objects.get(name, [])[:count]
        right = len(best) == count
        if right and "color" in clause:
            right = set(colours(name, best)) == {clause["color"]}
        if right and "position" in clause:
            place, which = clause["position"]
            right = all(place in places(one.box, two.box, margin) for one in best for two in groups[which])
        groups.append(best if right else [])
    return all(groups) and not any(len(objects.get(clause["class"], [])) >= clause["count"] for clause in task.get("exclude", []))


def load(settings: dict[str, Any]) -> tuple[dict[str, Any], Callable[[Any, list[str]], list[float]]]:
    """settings: path (the detector's file), clip (null: open_clip's openai; or a file), metadata (jsonl), device (null: a GPU if there is
    one), threshold, counting_threshold, max_objects, position_threshold.
    """
    import torch

    file = Path(settings["path"])
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not digest.startswith(file.stem.rpartition("-")[2]):
        raise ValueError(f"{file.name} is cut or another file: its name ends with the start of its sha256, which is {digest[:8]}")
    device = settings["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    detect, names = _detector(file, device)
    colour_of = _colour_of(settings["clip"], device)
    lines = Path(settings["metadata"]).read_text(encoding="utf-8").splitlines()
    tasks = {task["prompt"]: task for task in map(json.loads, filter(str.strip, lines))}
    asked = {clause["class"]: prompt for prompt, task in tasks.items() for clause in (*task["include"], *task.get("exclude", []))}
    if unknown := sorted(asked.keys() - set(names)):
        raise ValueError(f"{settings['metadata']}: {asked[unknown[0]]!r} asks for {unknown[0]!r}, which the detector does not know")

    def right(pixels: Any, task: dict[str, Any]) -> float:
        threshold = settings["counting_threshold"] if task["tag"] == "counting" else settings["threshold"]
        objects = kept(detect(pixels), threshold, settings["max_objects"])
        return float(verdict(objects, task, lambda name, found: colour_of(pixels, name, found), settings["position_threshold"]))

    def score(images: Any, prompts: list[str]) -> list[float]:
        with torch.no_grad():
            return [right(eight_bit(image), tasks[prompt]) for image, prompt in zip(images, prompts, strict=True)]

    weights = digest if settings["clip"] is None else hashlib.sha256((digest + _hash(Path(settings["clip"]))).encode()).hexdigest()
    versions = ", ".join(f"{each} {version(each)}" for each in ("mmdet", "mmcv", "open-clip-torch", "torch"))
    return {"name": "geneval", "version": f"{versions} on {device}", "weights": weights}, score


def _detector(file: Path, device: str) -> tuple[Callable[[Any], Objects], list[str]]:
    """What finds objects in pixels [H,W,3] of 8 bits, and the names that it knows."""
    try:
        import mmcv.ops  # noqa: F401
    except ModuleNotFoundError as error:
        raise OSError(f"mmcv is here without its compiled part ({error}): see docs/rewards/official.md") from error
    import mmdet
    from mmdet.apis import inference_detector, init_detector

    net = init_detector(str(Path(mmdet.__file__).parent / ".mim" / "configs" / "mask2former" / CONFIG), str(file), device=device)
    names = [ALIASES.get(name, name) for name in net.dataset_meta["classes"]]

    def detect(pixels: Any) -> Objects:
        seen = inference_detector(net, np.ascontiguousarray(pixels[..., ::-1])).pred_instances.cpu().numpy()  # it reads files as BGR
        found: Objects = {}
        for box, score, label, mask in zip(seen.bboxes.tolist(), seen.scores.tolist(), seen.labels, seen.masks, strict=True):
            left, top, right, bottom = box
            found.setdefault(names[label], []).append(Found((left, top, right, bottom), score, mask))
        return found

    return detect, names


def _colour_of(file: str | None, device: str) -> Callable[[Any, str, list[Found]], list[str]]:
    """What names the colour of objects of a class: the nearest by CLIP, of the object alone on grey."""
    import open_clip
    import torch
    import torch.nn.functional as F
    from PIL import Image

    net, _, prepared = open_clip.create_model_and_transforms("ViT-L-14", file or "openai", device=device, force_quick_gelu=True)
    net, tokenize, known = net.eval(), open_clip.get_tokenizer("ViT-L-14"), dict[str, Any]()

    def words(name: str) -> Any:
        texts = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
        seen = F.normalize(net.encode_text(tokenize(texts).to(device)), dim=-1)
        return F.normalize(seen.unflatten(0, (len(COLOURS), len(TEMPLATES))).mean(1), dim=-1)

    def colour_of(pixels: Any, name: str, found: list[Found]) -> list[str]:
        if name not in known:
            known[name] = words(name)
        alone = [Image.fromarray(np.where(each.mask[..., None], pixels, GREY).astype(np.uint8)) for each in found]
        crops = [image.crop(each.box) for image, each in zip(alone, found, strict=True)]
        seen = F.normalize(net.encode_image(torch.stack([prepared(crop) for crop in crops]).to(device)), dim=-1)
        return [COLOURS[index] for index in (seen @ known[name].T).argmax(1).tolist()]

    return colour_of


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def eight_bit(image: Any) -> Any:
    """An image [3,H,W] in [0,1] as a file holds it: [H,W,3], 8 bits a channel."""
    return (np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
