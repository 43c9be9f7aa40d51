"""ImageReward (2304.05977) on transformers' BLIP: how people would rank an image for its prompt. Differentiable."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from alignbench.config import MissingAsset, located
from alignbench.ranges import Text
from alignbench.rewards.base import Reward
from alignbench.rewards.framing import clip_normalised, framed
from alignbench.rewards.head import PUBLISHED_HEAD, HeadWidths, linear_head
from alignbench.weights import filled, first_line, found_at, read

SCORE_MEAN, SCORE_STD = 0.16717362830052426, 1.0333394966054072  # of raw scores, as published with the weights
TOKENS = 35  # a prompt is cut or padded to so many, as in training
FETCH = "fetch ImageReward.pt (about 1.8 GB) with `hf download THUDM/ImageReward ImageReward.pt` and put the file's path in reward.path"
UNUSED = (  # what else the file holds: BLIP's projections for its contrastive loss
    "blip.text_encoder.embeddings.position_ids",
    *(f"blip.{side}_proj.{part}" for side in ("vision", "text") for part in ("weight", "bias")),
)
PARTS = {"vision": "blip.visual_encoder", "text": "blip.text_encoder", "head": "mlp.layers"}  # of Network, and of the file
NAMES = (  # within the visual encoder, where the file has timm's; the text encoder's are BERT's in both
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding", "patch_embed.proj"),
    ("encoder.layers", "blocks"),
    ("post_layernorm", "norm"),
    ("layer_norm", "norm"),
    ("self_attn.projection", "attn.proj"),
    ("self_attn", "attn"),
)


@dataclass(frozen=True)
class Sizes:
    """Arguments of transformers' BlipVisionConfig and BlipTextConfig, and the widths of the head from its input to its output."""

    vision: dict[str, Any]
    text: dict[str, Any]
    head: HeadWidths


PUBLISHED = Sizes(  # transformers' own epsilon (1e-5) and heads of the text encoder (8) load as well, and give other scores
    vision={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,
    },
    text={
        "vocab_size": 30524,
        "hidden_size": 768,
        "encoder_hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "layer_norm_eps": 1e-12,
    },
    head=PUBLISHED_HEAD,
)


class Network(nn.Module):
    """Pixels [B,3,size,size] and tokens [B,L] to raw scores [B]: the prompt's first token reads the image by cross-attention."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        self.vision = BlipVisionModel(BlipVisionConfig(**sizes.vision, hidden_act="gelu"))
        self.text = BlipTextModel(BlipTextConfig(**sizes.text, is_decoder=True), add_pooling_layer=False)  # decoder: with cross-attention
        self.head = linear_head(sizes.head)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        image = self.vision(pixel_values=pixels).last_hidden_state
        prompt = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=image, is_decoder=False)  # no causal mask
        return self.head(prompt.last_hidden_state[:, 0]).squeeze(1)


def published_name(key: str) -> str:
    """What the published file calls a parameter of Network."""
    part, _, name = key.partition(".")
    if part == "vision":
        for ours, theirs in NAMES:
            name = name.replace(ours, theirs)
    return f"{PARTS[part]}.{name}"


def loaded(sizes: Sizes, file: Path) -> Network:
    """The network with a file's weights, in fp32. Raises OSError where there is none, ValueError where they are not this network's."""
    network = filled(lambda: Network(sizes), read(file), file.name, published_name, UNUSED)
    network.text.embeddings.position_ids = torch.arange(network.text.config.max_position_embeddings)[None]  # in no file: still on meta
    return network


class ImageReward(Reward):
    """The published score: the head's output, less its mean and over its standard deviation on the training set."""

    name = "imagereward"
    differentiable = True
    spatial = False
    range = (-float("inf"), float("inf"))
    unit = "standard deviations of the training set's scores"
    licence = "Apache-2.0"
    backbones = ("BLIP ViT-L/16", "BERT")
    datasets = ("ImageRewardDB",)
    frame = "shorter side to 224 (PIL's bicubic), centre 224x224, CLIP's mean and std"
    size_gb = 1.8
    sizes: ClassVar[Sizes] = PUBLISHED

    def __init__(self, *, path: Text, revision: str | None, tokenizer: Text):
        """path: ImageReward.pt, a local file or `owner/name:file` on the Hub at `revision`; tokenizer: Hub id or folder of BERT's uncased
        vocabulary. Raises MissingAsset where they cannot be had, or are not what was published.
        """
        super().__init__()
        from transformers import BertTokenizer

        try:
            self.net = loaded(self.sizes, found_at(path, revision))
        except (OSError, ValueError) as error:
            raise MissingAsset(f"reward.path={path}: {first_line(error)}; {FETCH}") from error
        try:
            self.tokenizer = BertTokenizer.from_pretrained(located(tokenizer))
            self.tokenizer.add_special_tokens({"bos_token": "[DEC]"})
            self.tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})  # as BLIP's; a prompt's first token stays [CLS]
            words, known = len(self.tokenizer), self.sizes.text["vocab_size"]
            if words != known:  # transformers makes an empty vocabulary of one that it cannot find, without a word
                raise ValueError(f"{words} words where the weights know {known}")
        except (OSError, ValueError) as error:
            raise MissingAsset(
                f"reward.tokenizer={tokenizer}: BERT's uncased vocabulary is not there ({first_line(error)}); "
                "fetch it with `hf download bert-base-uncased vocab.txt tokenizer.json tokenizer_config.json` or name a local folder"
            ) from error
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        like = next(self.net.parameters())
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").to(like.device)
        with torch.autocast(like.device.type, enabled=False):  # a score does not depend on the precision of training
            pixels = clip_normalised(framed(images.to(like), self.sizes.vision["image_size"]))
            return (self.net(pixels, tokens.input_ids, tokens.attention_mask) - SCORE_MEAN) / SCORE_STD
