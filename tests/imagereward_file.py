"""The published file of ImageReward by hand: its keys and shapes, and its forward pass in plain torch, with nothing of ours."""

import torch
import torch.nn.functional as F
from torch import Tensor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "square", "on", "the", "left", "small", "##s"]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 224,
    "patch_size": 56,
    "layer_norm_eps": 1e-6,
}
TEXT = {
    "vocab_size": len(WORDS) + 2,
    "hidden_size": 24,
    "encoder_hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "layer_norm_eps": 1e-12,
    "bos_token_id": None,  # these two are used only to generate; transformers warns where they are outside the vocabulary
    "sep_token_id": None,
}
HEAD = (24, 20, 16, 12, 8, 1)


def linear(name: str, out: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def shapes(vision: dict, text: dict, head: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Key -> shape of what the score uses."""
    wide, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    eye, book = "blip.visual_encoder", "blip.text_encoder"
    keys: dict[str, tuple[int, ...]] = {
        f"{eye}.cls_token": (1, 1, wide),
        f"{eye}.pos_embed": (1, (vision["image_size"] // patch) ** 2 + 1, wide),
        f"{eye}.patch_embed.proj.weight": (wide, 3, patch, patch),
        f"{eye}.patch_embed.proj.bias": (wide,),
        **norm(f"{eye}.norm", wide),
    }
    for n in range(vision["num_hidden_layers"]):
        block = f"{eye}.blocks.{n}"
        keys |= norm(f"{block}.norm1", wide) | norm(f"{block}.norm2", wide)
        keys |= linear(f"{block}.attn.qkv", 3 * wide, wide) | linear(f"{block}.attn.proj", wide, wide)
        keys |= linear(f"{block}.mlp.fc1", inner, wide) | linear(f"{block}.mlp.fc2", wide, inner)
    width, inner = text["hidden_size"], text["intermediate_size"]
    keys |= {
        f"{book}.embeddings.word_embeddings.weight": (text["vocab_size"], width),
        f"{book}.embeddings.position_embeddings.weight": (512, width),
        **norm(f"{book}.embeddings.LayerNorm", width),
    }
    for n in range(text["num_hidden_layers"]):
        layer = f"{book}.encoder.layer.{n}"
        for attention, source in (("attention", width), ("crossattention", wide)):
            keys |= linear(f"{layer}.{attention}.self.query", width, width)
            keys |= linear(f"{layer}.{attention}.self.key", width, source) | linear(f"{layer}.{attention}.self.value", width, source)
            keys |= linear(f"{layer}.{attention}.output.dense", width, width) | norm(f"{layer}.{attention}.output.LayerNorm", width)
        keys |= linear(f"{layer}.intermediate.dense", inner, width) | linear(f"{layer}.output.dense", width, inner)
        keys |= norm(f"{layer}.output.LayerNorm", width)
    for layer, width, out in zip((0, 2, 4, 6, 7), head, head[1:], strict=False):
        keys |= linear(f"mlp.layers.{layer}", out, width)
    return keys


def unused(vision: dict, text: dict) -> dict[str, tuple[int, ...]]:
    """Key -> shape of what else the file holds: BLIP's projections to 256 dimensions, and positions."""
    sides = linear("blip.vision_proj", 256, vision["hidden_size"]) | linear("blip.text_proj", 256, text["hidden_size"])
    return sides | {"blip.text_encoder.embeddings.position_ids": (1, 512)}


def weights() -> dict[str, Tensor]:
    """Random weights of the small network at a scale at which scores differ, with all that the file holds."""
    draw = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in (shapes(VISION, TEXT, HEAD) | unused(VISION, TEXT)).items():
        scale = 0.2 if len(shape) == 1 else 1.5 * torch.Size(shape[1:]).numel() ** -0.5
        state[key] = scale * torch.randn(shape, generator=draw) + float("norm" in key.lower() and key.endswith("weight"))
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    return state


def raw_score(state: dict[str, Tensor], pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The head's output [B]: a pre-norm ViT, a post-norm BERT whose layers also attend to the image, a head that is linear throughout."""

    def affine(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def normed(x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, allowed: Tensor | None = None) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        logits = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        if allowed is not None:
            logits = logits.masked_fill(~allowed[:, None, None, :], -torch.inf)
        return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)

    eye, book = "blip.visual_encoder", "blip.text_encoder"
    grid = F.conv2d(pixels, state[f"{eye}.patch_embed.proj.weight"], state[f"{eye}.patch_embed.proj.bias"], VISION["patch_size"])
    x = torch.cat([state[f"{eye}.cls_token"].expand(len(pixels), -1, -1), grid.flatten(2).transpose(1, 2)], 1) + state[f"{eye}.pos_embed"]
    for n in range(VISION["num_hidden_layers"]):
        block = f"{eye}.blocks.{n}"
        q, k, v = affine(normed(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
        x = x + affine(attend(q, k, v, VISION["num_attention_heads"]), f"{block}.attn.proj")
        x = x + affine(F.gelu(affine(normed(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    image = normed(x, f"{eye}.norm", 1e-6)
    y = state[f"{book}.embeddings.word_embeddings.weight"][ids] + state[f"{book}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    y = normed(y, f"{book}.embeddings.LayerNorm", 1e-12)
    for n in range(TEXT["num_hidden_layers"]):
        layer = f"{book}.encoder.layer.{n}"
        for name, allowed in (("attention", mask.bool()), ("crossattention", None)):
            part, source = f"{layer}.{name}", y if name == "attention" else image
            q, k, v = affine(y, f"{part}.self.query"), affine(source, f"{part}.self.key"), affine(source, f"{part}.self.value")
            read = affine(attend(q, k, v, TEXT["num_attention_heads"], allowed), f"{part}.output.dense")
            y = normed(y + read, f"{part}.output.LayerNorm", 1e-12)
        thought = affine(F.gelu(affine(y, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        y = normed(y + thought, f"{layer}.output.LayerNorm", 1e-12)
    score = y[:, 0]
    for number in (0, 2, 4, 6, 7):
        score = affine(score, f"mlp.layers.{number}")
    return score[:, 0]
