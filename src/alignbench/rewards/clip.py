"""CLIP (2103.00020) through transformers, from a folder or the Hub: images and prompts as unit vectors, whose product is their cosine."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignbench.config import located
from alignbench.rewards.base import UNKNOWN
from alignbench.rewards.framing import clip_normalised, framed
from alignbench.weights import filled, found_at, read

Sizes = dict[str, Any]  # arguments of transformers' CLIPConfig
WEIGHTS = "model.safetensors"
UNUSED = tuple(f"{side}_model.embeddings.position_ids" for side in ("text", "vision"))  # in older files: 0, 1, 2, ...
TEXT = ("text_model.", "text_projection.", "logit_scale")  # what a file holds beside the half that sees
NAMED = {(768, 12): "B", (1024, 24): "L", (1280, 32): "H", (1408, 40): "g", (1664, 48): "bigG"}  # width and layers of the part that sees
H14: Sizes = {  # as open_clip's ViT-H-14; transformers' own activation loads as well, and gives other scores
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "vocab_size": 49408,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "image_size": 224,
        "patch_size": 14,
    },
}
L14: Sizes = {  # OpenAI's; the text's half is never made
    "projection_dim": 768,
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "quick_gelu",
        "image_size": 224,
        "patch_size": 14,
    },
}


def weights_at(path: str, revision: str | None) -> Path:
    """model.safetensors of a folder or a Hub id. Raises OSError where it cannot be had."""
    folder = Path(located(path))
    return folder / WEIGHTS if folder.is_dir() else found_at(f"{path}:{WEIGHTS}", revision)


def backbone_of(vision: Any) -> str:
    """What papers call a CLIP with this part that sees, e.g. `CLIP ViT-L/14`, or `CLIP ViT-L/14@336`: from a CLIPVisionConfig."""
    letter = NAMED.get((vision.hidden_size, vision.num_hidden_layers), f"{vision.hidden_size}x{vision.num_hidden_layers}")
    return f"CLIP ViT-{letter}/{vision.patch_size}" + (f"@{vision.image_size}" if vision.image_size != 224 else "")


def stands_on(vision: Any, path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Backbones and data: its sizes name the first, and the one that it grew from where its images are larger; its Hub id the second."""
    name = backbone_of(vision)
    return tuple(dict.fromkeys((name, name.partition("@")[0]))), ("OpenAI's 400 M pairs",) if path.startswith("openai/") else (UNKNOWN,)


class Sight(nn.Module):
    """The half that sees, with its projection: images [B,3,H,W] to unit vectors [B,D], in fp32."""

    def __init__(self, sizes: Sizes, file: Path, *, floor: bool):
        """floor: how an odd number of pixels is cropped, see `framed`. Raises OSError or ValueError as `read` and `filled` do."""
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        config = CLIPVisionConfig(**sizes["vision_config"], projection_dim=sizes["projection_dim"])
        found = {key: each for key, each in read(file).items() if not key.startswith(TEXT)}
        self.net = filled(lambda: CLIPVisionModelWithProjection(config), found, file.name, str, UNUSED)
        _count(self.net.vision_model.embeddings)
        self.size, self.floor = config.image_size, floor

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.net(pixel_values=_pixels(self.net, images, self.size, self.floor)).image_embeds, dim=-1)


def loaded(config: Any, file: Path) -> Any:
    """The CLIPModel of a CLIPConfig with a file's weights, in fp32. Raises OSError or ValueError as `read` and `filled` do."""
    from transformers import CLIPModel

    net = filled(lambda: CLIPModel(config), read(file), file.name, str, UNUSED)
    for half in (net.text_model, net.vision_model):
        _count(half.embeddings)
    return net


class Clip(nn.Module):
    """Both halves and a tokenizer: images [B,3,H,W] and B prompts to their cosines [B], in fp32."""

    def __init__(self, net: Any, tokenizer: Any):
        """Of transformers: a CLIPModel and a CLIPTokenizer."""
        super().__init__()
        self.net, self.tokenizer = net, tokenizer
        self.tokens, self.size = net.config.text_config.max_position_embeddings, net.config.vision_config.image_size

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        words = self.tokenizer(prompts, padding=True, truncation=True, max_length=self.tokens, return_tensors="pt").to(self.net.device)
        with torch.autocast(self.net.device.type, enabled=False):  # a score does not depend on the precision of training
            image = self.net.get_image_features(pixel_values=_pixels(self.net, images, self.size, True)).pooler_output
            text = self.net.get_text_features(input_ids=words.input_ids, attention_mask=words.attention_mask).pooler_output
            return F.cosine_similarity(image, text)


def tokenizer_at(path: str, revision: str | None, words: int) -> Any:
    """CLIP's tokenizer of a folder or Hub id. Raises OSError or ValueError where it is not there or does not know so many words."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(located(path), revision=revision)
    if len(tokenizer) != words:  # transformers makes an empty vocabulary of one that it cannot find, without a word
        raise ValueError(f"{len(tokenizer)} words where the weights know {words}")
    return tokenizer


def _pixels(net: nn.Module, images: Tensor, size: int, floor: bool) -> Tensor:
    return clip_normalised(framed(images.to(next(net.parameters())), size, floor=floor))


def _count(embeddings: Any) -> None:
    """Positions, which are in no file and would stay on the meta device."""
    embeddings.position_ids = torch.arange(embeddings.position_ids.shape[1])[None]
