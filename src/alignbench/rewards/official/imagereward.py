"""The package image-reward itself, called as its users call it. Run by a worker in the environment of conf/reward/env/imagereward.txt."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

HUB = "bert-base-uncased"  # the name that the package asks transformers for
TEXT_ENCODER = {  # med_config.json as published beside the weights; the wheel does not hold it
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "add_type_embeddings": False,
    "vocab_size": 30524,
    "encoder_width": 768,  # of the image's tokens; the package puts 1024 here
    "add_cross_attention": True,
}


def load(settings: dict[str, Any]) -> tuple[dict[str, str], Callable[[Any, list[str]], list[float]]]:
    """settings: path (ImageReward.pt), tokenizer (folder of BERT's uncased vocabulary), device (null: the package's own choice)."""
    import ImageReward

    file, words = Path(settings["path"]), Path(settings["tokenizer"])
    chosen = {} if settings["device"] is None else {"device": settings["device"]}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path(HUB).symlink_to(words)  # transformers takes a folder of the working directory before it asks the Hub for that name
        Path("med_config.json").write_text(json.dumps(TEXT_ENCODER))
        model = ImageReward.load(str(file), med_config="med_config.json", **chosen)
    there = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if missing := sorted(model.state_dict().keys() - there.keys()):  # the package takes what it finds and leaves the rest random
        raise ValueError(f"{file.name} lacks {len(missing)} of the package's weights, first {missing[0]}")
    if (known := len(model.blip.tokenizer)) != TEXT_ENCODER["vocab_size"]:
        raise ValueError(f"{words}: {known} words where the weights know {TEXT_ENCODER['vocab_size']}")

    def score(images: Any, prompts: list[str]) -> list[float]:
        with torch.no_grad():
            return [model.score(prompt, picture(image)) for image, prompt in zip(images, prompts, strict=True)]

    with file.open("rb") as raw:
        digest = hashlib.file_digest(raw, "sha256").hexdigest()
    versions = ", ".join(f"{each} {version(each)}" for each in ("image-reward", "torch", "torchvision", "transformers", "timm"))
    return {"name": "imagereward_official", "version": f"{versions} on {model.device}", "weights": digest}, score


def picture(image: Any) -> Image.Image:
    """An image [3,H,W] in [0,1] as a file holds it: 8 bits a channel."""
    return Image.fromarray((np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))
