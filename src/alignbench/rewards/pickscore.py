"""PickScore (2305.01569) on transformers' CLIP ViT-H/14: which of two images people pick for a prompt. Differentiable."""

from typing import ClassVar

import torch
from torch import Tensor

from alignbench.config import MissingAsset
from alignbench.ranges import Text
from alignbench.rewards.base import Reward
from alignbench.rewards.clip import H14, Clip, Sizes, loaded, tokenizer_at, weights_at
from alignbench.weights import first_line

FETCH = (
    "fetch model.safetensors (3.9 GB) with `hf download yuvalkirstain/PickScore_v1 model.safetensors` "
    "and put that id, or the folder that holds the file, in reward.path"
)


class PickScore(Reward):
    """The cosine of image and prompt; `prefer` multiplies by exp(logit_scale), about 100, first: the published scores of about 20."""

    name = "pickscore"
    differentiable = True
    spatial = False
    range = (-1.0, 1.0)
    unit = "cosine"
    licence = "MIT"
    backbones = ("CLIP ViT-H/14",)
    datasets = ("Pick-a-Pic v1",)
    frame = "shorter side to 224 (PIL's bicubic), centre 224x224, CLIP's mean and std"
    size_gb = 3.9
    sizes: ClassVar[Sizes] = H14

    def __init__(self, *, path: Text, revision: str | None, tokenizer: Text):
        """path: Hub id (at `revision`) or folder with model.safetensors; tokenizer: Hub id or folder of CLIP's. Raises MissingAsset where
        they cannot be had, or are not what was published.
        """
        super().__init__()
        from transformers import CLIPConfig

        try:
            net = loaded(CLIPConfig(**self.sizes), weights_at(path, revision))
        except (OSError, ValueError) as error:
            raise MissingAsset(f"reward.path={path}: {first_line(error)}; {FETCH}") from error
        try:
            self.clip = Clip(net, tokenizer_at(tokenizer, None, self.sizes["text_config"]["vocab_size"]))
        except (OSError, ValueError) as error:
            raise MissingAsset(
                f"reward.tokenizer={tokenizer}: CLIP's vocabulary is not there ({first_line(error)}); fetch it with "
                "`hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K tokenizer.json tokenizer_config.json vocab.json merges.txt "
                "special_tokens_map.json` or name a local folder"
            ) from error
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.clip(images, prompts)

    def prefer(self, a: Tensor, b: Tensor, prompts: list[str]) -> Tensor:
        """P(a is preferred to b) [B]: a softmax over the two, as published."""
        return torch.sigmoid(self.clip.net.logit_scale.exp() * (self(a, prompts) - self(b, prompts)))
