"""Files of CLIP by hand: keys and shapes as open_clip and transformers have them, random weights, a tokenizer; nothing of ours."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTokenizer

Shapes = dict[str, tuple[int, ...]]
MERGES = [
    ("r", "e"),
    ("re", "d</w>"),
    ("b", "l"),
    ("bl", "u"),
    ("blu", "e</w>"),
    ("c", "i"),
    ("ci", "r"),
    ("cir", "c"),
    ("circ", "l"),
    ("circl", "e</w>"),
]
SMALL: dict[str, Any] = {  # of open_clip
    "embed_dim": 16,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 32, "head_width": 8, "patch_size": 56},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 3, "layers": 2},
}
HEAD = (16, 20, 16, 12, 8, 1)
PROMPTS = ["a red circle", "blue", "the red circle and a blue circle"]


def vocabulary() -> dict[str, int]:
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{each}</w>" for each in letters), *("".join(pair) for pair in MERGES), "<|startoftext|>", "<|endoftext|>"]
    return {word: index for index, word in enumerate(words)}


def tokenizer(folder: Path) -> None:
    CLIPTokenizer(vocab=vocabulary(), merges=MERGES, model_max_length=77).save_pretrained(folder)


def small(words: int) -> dict[str, Any]:
    """SMALL with so many words, for open_clip."""
    return {**SMALL, "text_cfg": {**SMALL["text_cfg"], "vocab_size": words}}


def for_transformers(sizes: dict[str, Any], activation: str) -> dict[str, Any]:
    """open_clip's sizes as CLIPConfig takes them."""
    see, read = sizes["vision_cfg"], sizes["text_cfg"]
    return {
        "projection_dim": sizes["embed_dim"],
        "text_config": {
            "hidden_size": read["width"],
            "intermediate_size": 4 * read["width"],
            "num_hidden_layers": read["layers"],
            "num_attention_heads": read["heads"],
            "hidden_act": activation,
            "vocab_size": read["vocab_size"],
            "bos_token_id": read["vocab_size"] - 2,
            "eos_token_id": read["vocab_size"] - 1,
        },
        "vision_config": {
            "hidden_size": see["width"],
            "intermediate_size": 4 * see["width"],
            "num_hidden_layers": see["layers"],
            "num_attention_heads": see["width"] // see["head_width"],
            "hidden_act": activation,
            "image_size": see["image_size"],
            "patch_size": see["patch_size"],
        },
    }


def both(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def open_clip_shapes(sizes: dict[str, Any]) -> Shapes:
    see, read, joint = sizes["vision_cfg"], sizes["text_cfg"], sizes["embed_dim"]
    wide, width, patch = see["width"], read["width"], see["patch_size"]
    shapes: Shapes = {
        "logit_scale": (),
        "visual.class_embedding": (wide,),
        "visual.positional_embedding": ((see["image_size"] // patch) ** 2 + 1, wide),
        "visual.conv1.weight": (wide, 3, patch, patch),
        "visual.proj": (wide, joint),
        "positional_embedding": (read["context_length"], width),
        "token_embedding.weight": (read["vocab_size"], width),
        "text_projection": (width, joint),
        **both("visual.ln_pre", wide),
        **both("visual.ln_post", wide),
        **both("ln_final", width),
    }
    for root, size, layers in (("visual.transformer", wide, see["layers"]), ("transformer", width, read["layers"])):
        for n in range(layers):
            block = f"{root}.resblocks.{n}"
            shapes |= {f"{block}.attn.in_proj_weight": (3 * size, size), f"{block}.attn.in_proj_bias": (3 * size,)}
            shapes |= both(f"{block}.attn.out_proj", size, size) | both(f"{block}.ln_1", size) | both(f"{block}.ln_2", size)
            shapes |= both(f"{block}.mlp.c_fc", 4 * size, size) | both(f"{block}.mlp.c_proj", size, 4 * size)
    return shapes


def transformers_shapes(sizes: dict[str, Any]) -> Shapes:
    """From open_clip's sizes."""
    see, read, joint = sizes["vision_cfg"], sizes["text_cfg"], sizes["embed_dim"]
    wide, width, patch = see["width"], read["width"], see["patch_size"]
    shapes: Shapes = {
        "logit_scale": (),
        "vision_model.embeddings.class_embedding": (wide,),
        "vision_model.embeddings.position_embedding.weight": ((see["image_size"] // patch) ** 2 + 1, wide),
        "vision_model.embeddings.patch_embedding.weight": (wide, 3, patch, patch),
        "text_model.embeddings.position_embedding.weight": (read["context_length"], width),
        "text_model.embeddings.token_embedding.weight": (read["vocab_size"], width),
        "visual_projection.weight": (joint, wide),
        "text_projection.weight": (joint, width),
        **both("vision_model.pre_layrnorm", wide),
        **both("vision_model.post_layernorm", wide),
        **both("text_model.final_layer_norm", width),
    }
    for root, size, layers in (("vision_model", wide, see["layers"]), ("text_model", width, read["layers"])):
        for n in range(layers):
            layer = f"{root}.encoder.layers.{n}"
            for part in ("q", "k", "v", "out"):
                shapes |= both(f"{layer}.self_attn.{part}_proj", size, size)
            shapes |= both(f"{layer}.layer_norm1", size) | both(f"{layer}.layer_norm2", size)
            shapes |= both(f"{layer}.mlp.fc1", 4 * size, size) | both(f"{layer}.mlp.fc2", size, 4 * size)
    return shapes


def head_shapes(widths: tuple[int, ...]) -> Shapes:
    """Of the aesthetic predictor's file."""
    shapes: Shapes = {}
    for layer, (width, out) in zip((0, 2, 4, 6, 7), pairwise(widths), strict=True):
        shapes |= both(f"layers.{layer}", out, width)
    return shapes


def weights(shapes: Shapes) -> dict[str, Tensor]:
    """Random, at a scale at which scores differ."""
    draw = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in shapes.items():
        norm = "ln_" in key or "norm" in key
        scale = 0.2 if norm or len(shape) < 2 else 1.5 * torch.Size(shape[1:]).numel() ** -0.5
        state[key] = scale * torch.randn(shape, generator=draw) + float(norm and key.endswith("weight"))
    if "logit_scale" in state:
        state["logit_scale"] = torch.tensor(100.0).log()
    return state


def as_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's weights under transformers' names."""
    names = {"visual.transformer.resblocks": "vision_model.encoder.layers", "transformer.resblocks": "text_model.encoder.layers"}
    parts = {
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    plain = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "logit_scale": "logit_scale",
    }
    plain |= {f"visual.ln_pre.{each}": f"vision_model.pre_layrnorm.{each}" for each in ("weight", "bias")}
    plain |= {f"visual.ln_post.{each}": f"vision_model.post_layernorm.{each}" for each in ("weight", "bias")}
    plain |= {f"ln_final.{each}": f"text_model.final_layer_norm.{each}" for each in ("weight", "bias")}
    made = {plain[key]: each for key, each in state.items() if key in plain}
    made |= {"visual_projection.weight": state["visual.proj"].T, "text_projection.weight": state["text_projection"].T}
    for key, each in state.items():
        root = next((root for root in names if key.startswith(root)), None)
        if root is None:
            continue
        number, part = key.removeprefix(f"{root}.").split(".", 1)
        layer = f"{names[root]}.{number}"
        if part.startswith("attn.in_proj_"):
            made |= {f"{layer}.self_attn.{x}_proj.{part[13:]}": third for x, third in zip("qkv", each.chunk(3), strict=True)}
        else:
            name, kind = part.rsplit(".", 1)
            made[f"{layer}.{parts[name]}.{kind}"] = each
    return {key: each.contiguous() for key, each in made.items()}


def likes_red(state: dict[str, Tensor], red: int) -> dict[str, Tensor]:
    """open_clip's weights rebuilt: an image's red, less half of green and blue, goes through attention to the first number of its
    vector; a prompt's is that of the word numbered `red`; in all others it is the second.
    """
    for key, each in state.items():
        each.fill_(float("ln_" in key and key.endswith("weight")))
    state["logit_scale"].fill_(torch.tensor(100.0).log().item())
    size = state["visual.conv1.weight"].shape[-1]
    state["visual.conv1.weight"][0] = 0.2 / size**2 * torch.tensor([1.0, -0.5, -0.5])[:, None, None]
    state["visual.positional_embedding"][:, 1] = 1
    state["token_embedding.weight"][:, 1] = 1
    state["token_embedding.weight"][red, 0] = 3
    for root in ("visual.transformer", "transformer"):
        value = state[f"{root}.resblocks.0.attn.in_proj_weight"]
        value[2 * len(value) // 3, 0] = 1
        state[f"{root}.resblocks.0.attn.out_proj.weight"][0, 0] = 1
    for name in ("visual.proj", "text_projection"):
        state[name][0, 0] = state[name][1, 1] = 1
    return state


def save_folder(folder: Path, state: dict[str, Tensor]) -> None:
    """model.safetensors as the older ones are, with positions."""
    more = {
        f"{half}_model.embeddings.position_ids": torch.arange(len(state[f"{half}_model.embeddings.position_embedding.weight"]))[None]
        for half in ("text", "vision")
    }
    save_file(state | more, folder / "model.safetensors", {"format": "pt"})


def damaged(fault: str, file: Path) -> None:
    """Makes a whole file one that was cut, emptied, never fetched, or is not there."""
    whole = file.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    file.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": pointer, "missing": b""}[fault])
    if fault == "missing":
        file.unlink()
