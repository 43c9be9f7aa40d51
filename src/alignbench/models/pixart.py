"""PixArt-alpha and -Sigma: a transformer over latents that reads T5's states under a mask. Its adapters are peft's, not diffusers'."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from alignbench.models.pipeline import DDPMPipeline


def packed(states: Tensor, mask: Tensor) -> Tensor:
    """States [B,L,D] and their mask [B,L] of 0 and 1 as one tensor [B,L+ceil(L/D),D]: the mask fills the last rows, then zeros."""
    length, width = states.shape[1:]
    return torch.cat([states, pad(mask.to(states), (0, -length % width)).reshape(len(states), -1, width)], 1)


def unpacked(cond: Tensor) -> tuple[Tensor, Tensor]:
    """What `packed` packed: states [B,L,D] and mask [B,L], in cond's dtype."""
    rows, width = cond.shape[1:]
    length = rows + -rows // (width + 1)  # the one L with L + ceil(L / D) = rows
    return cond[:, :length], cond[:, length:].flatten(1)[:, :length]


class PixArt(DDPMPipeline):
    """Latents [C,h,w]; cond is T5's last state with its attention mask packed below, [B,L',D]. Captions are lowercased, not cleaned."""

    family, component = "PixArtAlphaPipeline", "transformer"

    def __init__(self, **pipeline: Any):
        super().__init__(**pipeline)
        from diffusers import DDIMScheduler

        # The pipeline's DPM-Solver calls `linspace` what goes from time 999 in equal steps to the clean image; DDIM calls that `trailing`.
        # DDIM's own `linspace` ends with a call at time 0, and diffusers' DDIM then steps to other times than those it calls at.
        self._scheduler = DDIMScheduler.from_config(self._scheduler.config, timestep_spacing="trailing")

    @property
    def patch(self) -> int:
        transformer: Any = self.denoiser
        return int(transformer.config.patch_size)

    def embedded(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """As long as the pipeline says: 120 tokens (alpha) or 300 (Sigma)."""
        states, mask, *_ = self.pipeline[0].encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=device, clean_caption=False
        )
        return packed(states, mask)

    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        transformer: Any = network
        states, mask = unpacked(cond)
        size: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if transformer.use_additional_conditions:  # alpha's 1024-pixel weights: they are told the image's height and width, and the ratio
            sides = torch.tensor(x.shape[-2:]) * self.pipeline[0].vae_scale_factor
            size["resolution"] = sides.to(x).repeat(len(x), 1)
            size["aspect_ratio"] = (sides[:1] / sides[1:]).to(x).repeat(len(x), 1)
        output = transformer(x, encoder_hidden_states=states, timestep=t, added_cond_kwargs=size, encoder_attention_mask=mask).sample
        return output[:, : x.shape[1]]  # the other half, where there is one, is a learned variance

    def _export_lora(self, who: str, folder: Path) -> None:
        """A peft adapter in `folder`: `peft.PeftModel.from_pretrained(pipe.transformer, folder)`. PixArt has no `load_lora_weights`."""
        from peft import get_peft_model_state_dict
        from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
        from safetensors.torch import save_file

        network: Any = self._network(self.adapters[who])
        weights = get_peft_model_state_dict(network, adapter_name=who)
        facts = network.peft_config[who].to_dict()
        facts |= {"target_modules": sorted(facts["target_modules"]), "inference_mode": True}  # targets are a set, in any order
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_NAME).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        named = {f"base_model.model.{key}": weight.detach().cpu().contiguous() for key, weight in weights.items()}
        save_file(named, folder / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})


class PixArtSigma(PixArt):
    """PixArt-Sigma: longer captions, SDXL's VAE."""

    family = "PixArtSigmaPipeline"
