"""Stable Diffusion 1.x and 2.x: a pipeline folder or Hub repository with a UNet, one text encoder and a VAE; the sandbox is one too."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alignbench.models.pipeline import DDPMPipeline


class StableDiffusion(DDPMPipeline):
    """Latents [C,h,w] of the pipeline's UNet; cond is the text encoder's last state [B,L,D]."""

    family, component = "StableDiffusionPipeline", "unet"
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def embedded(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        tokenizer, encoder = self.pipeline[0].tokenizer, self.pipeline[0].text_encoder
        tokens = tokenizer(list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
        return encoder(tokens.input_ids.to(device))[0]

    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        unet: Any = network
        return unet(x, t, encoder_hidden_states=cond).sample
