"""Stable Diffusion 3 and 3.5: a transformer over 16-channel latents, two CLIP text encoders and T5."""

from typing import Any

import torch
from torch import Tensor

from alignbench.models.flow import FlowPipeline


class StableDiffusion3(FlowPipeline):
    """The prompt embeddings are the CLIPs' tokens followed by T5's; the pooled embedding is both CLIPs'."""

    family = "StableDiffusion3Pipeline"

    @property
    def patch(self) -> int:
        return int(self._config.patch_size)

    def grid(self, steps: int) -> Tensor | None:
        return None

    def embeddings(self, prompts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
        prompt, _, pooled, _ = self.pipeline[0].encode_prompt(prompts, None, None, device=device, do_classifier_free_guidance=False)
        return prompt, pooled

    def velocity(self, network: Any, x: Tensor, t: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
        return network(
            hidden_states=x, timestep=t * self.train_times, encoder_hidden_states=prompt, pooled_projections=pooled, return_dict=False
        )[0]
