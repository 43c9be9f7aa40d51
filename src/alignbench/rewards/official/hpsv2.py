"""The package hpsv2 itself, called as its users call it. Run by a worker in the environment of conf/reward/env/hpsv2.txt."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

BPE = "bpe_simple_vocab_16e6.txt.gz"  # CLIP's merges: hpsv2's wheel lacks them, open_clip_torch's has the same file


def load(settings: dict[str, Any]) -> tuple[dict[str, str], Callable[[Any, list[str]], list[float]]]:
    """settings: path of a published checkpoint, of version 2.0 or 2.1: the two differ in their weights alone."""
    with_merges()
    from hpsv2 import img_score
    from hpsv2.src.open_clip import create_model_and_transforms

    file = Path(settings["path"]).resolve()
    # as img_score.initialize_model, without LAION's weights, which it fetches first and then replaces, all of them, by those of the file
    model, _, preprocess = create_model_and_transforms(
        "ViT-H-14", precision="amp", device=img_score.device, light_augmentation=True, output_dict=True
    )
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["state_dict"])
    img_score.model_dict.update(model=model, preprocess_val=preprocess)
    model.load_state_dict = lambda weights: None  # img_score.score reads its file at every call: here once
    kept = tempfile.TemporaryDirectory()
    nothing = Path(kept.name) / "nothing.pt"
    torch.save({"state_dict": {}}, nothing)

    def score(images: Any, prompts: list[str], folder: object = kept) -> list[float]:
        pairs = zip(images, prompts, strict=True)
        return [float(img_score.score(picture(image), prompt, cp=str(nothing))[0]) for image, prompt in pairs]

    with file.open("rb") as raw:
        digest = hashlib.file_digest(raw, "sha256").hexdigest()
    return {"name": settings["name"], "version": version("hpsv2"), "weights": digest}, score


def with_merges() -> None:
    """Puts the file that the wheel lacks where the package opens it when it is imported."""
    package, other = (Path(find_spec(name).origin).parent for name in ("hpsv2", "open_clip"))
    wanted = package / "src" / "open_clip" / BPE
    if not wanted.exists():
        part = wanted.with_name(f"{BPE}.{os.getpid()}")
        shutil.copyfile(other / BPE, part)
        part.replace(wanted)  # whole, or not at all: two workers may start at once


def picture(image: Any) -> Image.Image:
    """An image [3,H,W] in [0,1] as a file holds it: 8 bits a channel."""
    return Image.fromarray((np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))
