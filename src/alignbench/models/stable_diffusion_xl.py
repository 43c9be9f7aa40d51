"""Stable Diffusion XL and what was distilled from it (Turbo, LCM, DMD2): two text encoders, a pooled embedding, and sizes as conditions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alignbench.models.pipeline import DDPMPipeline
from alignbench.ranges import NonNegative


class StableDiffusionXL(DDPMPipeline):
    """Latents [C,h,w] of the pipeline's UNet; cond [B,L+r,D] is the token embeddings [B,L,D], then the pooled embedding [B,P] in r more
    rows of D, the last padded with zeros.
    """

    family, component = "StableDiffusionXLPipeline", "unet"

    def __init__(self, *, embedded_guidance: NonNegative | None, **pipeline: Any):
        """embedded_guidance: the guidance that a network was distilled with and takes as an input (diffusers' scale, where 1 is none), for
        networks with `time_cond_proj_dim` (LCM), null for all others. Raises ValueError where it is the other way round.
        """
        super().__init__(**pipeline)
        networks: list[Any] = [self.denoiser, *self.copies.values()]
        takes = any(network.config.time_cond_proj_dim is not None for network in networks)
        if takes and embedded_guidance is None:
            raise ValueError("model.embedded_guidance=null: this UNet takes its guidance as an input (time_cond_proj_dim); give a number")
        if embedded_guidance is not None and not takes:
            raise ValueError(f"model.embedded_guidance={embedded_guidance}: this UNet has no such input (time_cond_proj_dim); make it null")
        self.embedded_guidance = embedded_guidance
        self.pooled = self.pipeline[0].text_encoder_2.config.projection_dim

    @property
    def sizes(self) -> list[int]:
        """Original size, top left corner of the crop, target size: a whole picture of its own size."""
        pixels = [size * self.pipeline[0].vae_scale_factor for size in self.shape[1:]]
        return [*pixels, 0, 0, *pixels]

    def embedded(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """The empty prompt is zeros where the pipeline's `force_zeros_for_empty_prompt` says so, as in its own unconditional branch."""
        pipe = self.pipeline[0]
        tokens, _, pooled, _ = pipe.encode_prompt(list(prompts), device=device, do_classifier_free_guidance=False)
        padded = nn.functional.pad(pooled, (0, -pooled.shape[1] % tokens.shape[2]))
        cond = torch.cat([tokens, padded.reshape(len(tokens), -1, tokens.shape[2])], 1)
        if pipe.config.force_zeros_for_empty_prompt:
            cond[[prompt == "" for prompt in prompts]] = 0
        return cond

    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        unet: Any = network
        rows = -(-self.pooled // cond.shape[2])
        return unet(
            x,
            t,
            encoder_hidden_states=cond[:, :-rows],
            timestep_cond=self._guidance(x, unet.config.time_cond_proj_dim),
            added_cond_kwargs={
                "text_embeds": cond[:, -rows:].flatten(1)[:, : self.pooled],
                "time_ids": torch.tensor([self.sizes], device=x.device, dtype=x.dtype).expand(len(x), -1),
            },
        ).sample

    def _guidance(self, x: Tensor, dimensions: int | None) -> Tensor | None:
        """The pipeline's embedding [N,dimensions] of the guidance, or None for a network that takes none."""
        if dimensions is None or self.embedded_guidance is None:
            return None
        scale = torch.full((len(x),), self.embedded_guidance - 1)  # the pipeline's w, equation 2 of Imagen: 0 is unguided
        return self.pipeline[0].get_guidance_scale_embedding(scale, embedding_dim=dimensions).to(x)
