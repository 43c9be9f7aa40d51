"""FLUX.1: a transformer over packed 16-channel latents, T5 and one CLIP text encoder; FLUX.1-dev is distilled for guidance."""

from typing import Any

import torch
from torch import Tensor

from alignbench.models.flow import FlowPipeline
from alignbench.ranges import NonNegative


class Flux(FlowPipeline):
    """The prompt embeddings are T5's, the pooled embedding is CLIP's. Latents [C,h,w] are packed into 2x2 patches for a call only."""

    family, patch = "FluxPipeline", 2

    def __init__(self, *, embedded_guidance: NonNegative | None, **pipeline: Any):
        """embedded_guidance: the scale that a guidance-distilled network is told, in one pass; null for a network that takes none.
        Raises ValueError where the network is of the other kind.
        """
        super().__init__(**pipeline)
        if self._config.guidance_embeds and embedded_guidance is None:
            raise ValueError("model.embedded_guidance=null: this network is distilled for guidance and wants a scale (FLUX.1-dev: 3.5)")
        if not self._config.guidance_embeds and embedded_guidance is not None:
            raise ValueError(f"model.embedded_guidance={embedded_guidance:g}: this network takes no guidance scale; set null")
        self.embedded_guidance = embedded_guidance

    def native(self) -> tuple[int, int, int]:
        size = self.pipeline[0].default_sample_size  # the transformer's config names none
        return self._config.in_channels // self.patch**2, size, size

    def grid(self, steps: int) -> Tensor | None:
        return torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64)

    def embeddings(self, prompts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
        prompt, pooled, _ = self.pipeline[0].encode_prompt(prompts, device=device)
        return prompt, pooled

    def velocity(self, network: Any, x: Tensor, t: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        rows, columns = torch.meshgrid(torch.arange(height // 2, device=x.device), torch.arange(width // 2, device=x.device), indexing="ij")
        guidance = None if self.embedded_guidance is None else torch.full((n,), self.embedded_guidance, device=x.device)
        patches = network(
            hidden_states=x.reshape(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * 4),
            timestep=(t * self.train_times).to(x.dtype) / self.train_times,  # the pipeline's, with its rounding in 16 bits
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=prompt,
            txt_ids=x.new_zeros(prompt.shape[1], 3),
            img_ids=torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).to(x.dtype),
            return_dict=False,
        )[0]
        return patches.reshape(n, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
