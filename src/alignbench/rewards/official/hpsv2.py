"""The package hpsv2 itself, called as its users call it. Run by a worker in the environment of conf/reward/env/hpsv2.txt."""

import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

MERGES = "bpe_simple_vocab_16e6.txt.gz"  # of CLIP's tokenizer: hpsv2's wheel lacks them, open_clip_torch's has the same file


def load(settings: dict[str, Any]) -> tuple[dict[str, str], Callable[[Any, list[str]], list[float]]]:
    """settings: name, path (a published checkpoint; versions differ in their weights alone), device (null: the package's own choice)."""
    with_merges()
    with_turtle()
    from hpsv2 import img_score
    from hpsv2.src.open_clip import create_model_and_transforms

    file = Path(settings["path"])
    img_score.device = settings["device"] or img_score.device
    # as img_score.initialize_model, but without LAION's weights, which it fetches and then replaces, all of them, by those of the file
    model, _, preprocess = create_model_and_transforms(
        "ViT-H-14", precision="amp", device=img_score.device, light_augmentation=True, output_dict=True
    )
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["state_dict"])
    img_score.model_dict.update(model=model, preprocess_val=preprocess)
    model.load_state_dict = lambda weights: None  # img_score.score reads its file again at every call: it is given an empty one
    empty = io.BytesIO()
    torch.save({"state_dict": {}}, empty)

    def score(images: Any, prompts: list[str]) -> list[float]:
        pairs = zip(images, prompts, strict=True)
        return [float(img_score.score(picture(image), prompt, cp=io.BytesIO(empty.getvalue()))[0]) for image, prompt in pairs]

    with file.open("rb") as raw:
        digest = hashlib.file_digest(raw, "sha256").hexdigest()
    versions = ", ".join(f"{each} {version(each)}" for each in ("hpsv2", "torch", "torchvision"))
    return {"name": settings["name"], "version": f"{versions} on {img_score.device}", "weights": digest}, score


def with_merges() -> None:
    """Puts the file that the wheel lacks where the package reads it when it is imported."""
    package, other = (Path(str(find_spec(name).origin)).parent for name in ("hpsv2", "open_clip"))  # type: ignore[union-attr]
    wanted = package / "src" / "open_clip" / MERGES
    if not wanted.exists():
        part = wanted.with_name(f"{MERGES}.{os.getpid()}")
        shutil.copyfile(other / MERGES, part)
        part.replace(wanted)  # whole or not at all: two workers may start at once


def with_turtle() -> None:
    """The package imports `forward` of Python's turtle and never uses it; a Python without Tk has no turtle, and no package brings one."""
    try:
        import turtle  # noqa: F401
    except ImportError:
        sys.modules["turtle"] = ModuleType("turtle")
        sys.modules["turtle"].forward = None  # type: ignore[attr-defined]


def picture(image: Any) -> Image.Image:
    """An image [3,H,W] in [0,1] as a file holds it: 8 bits a channel."""
    return Image.fromarray((np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))
