"""Stable Diffusion 1.x and 2.x: a pipeline folder or Hub repository with a UNet, one text encoder and a VAE; the sandbox is one too."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignbench.config import MissingAsset, located
from alignbench.models import lora
from alignbench.models.base import Diffusion, Spec, Who


class StableDiffusion(Diffusion):
    """Latents [C,h,w] of the pipeline's UNet; a LoRA adapter or a full copy of the UNet a `who`."""

    def __init__(self, *, path: str, revision: str | None):
        """path: Hub id, local folder or package://folder. Raises MissingAsset where it cannot be had."""
        super().__init__()
        import diffusers
        import transformers
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        for library in (diffusers, transformers):  # bars of no use for files that are here, and a page of advice for files that are not
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
        try:
            pipeline = StableDiffusionPipeline.from_pretrained(
                located(path),
                revision=revision,
                dtype=torch.float32,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
                use_safetensors=True,
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].split(" (")[0]
            raise MissingAsset(
                f"model.path={path}: no pipeline there ({reason}); fetch it with `hf download {path}` or name a local folder"
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        self.unet, self.vae, self.text_encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
        self.tokenizer = pipeline.tokenizer
        self.requires_grad_(False)
        self.eval()
        self.copies = nn.ModuleDict()
        self.adapters: set[str] = set()

        self._scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        self.prediction = self._scheduler.config.prediction_type
        self.register_buffer(
            "alpha_bar", torch.cat([self._scheduler.alphas_cumprod, self._scheduler.final_alpha_cumprod.reshape(1)]), persistent=False
        )
        self.shape = (self.unet.config.in_channels, self.unet.config.sample_size, self.unet.config.sample_size)

    def times(self, steps: int) -> Tensor:
        """The pipeline's own DDIM spacing. A step below time 0 lands on the schedule's final alpha (index -1)."""
        self._scheduler.set_timesteps(steps)
        here = self._scheduler.timesteps.cpu()
        return torch.cat([here, (here[-1:] - self._scheduler.config.num_train_timesteps // steps).clamp(min=-1)])

    def embed(self, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        return self.text_encoder(tokens.input_ids.to(self.device))[0]

    def decode(self, x: Tensor) -> Tensor:
        images = self.vae.decode(x.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def predict(self, x: Tensor, t: Tensor, cond: Tensor, who: Who) -> Tensor:
        network: nn.Module = self.unet
        if who is not None and who in self.copies:
            network = self.copies[who]
        else:
            if who is not None and who not in self.adapters:
                raise KeyError(f"nothing named {who!r} was grown on this model")
            lora.switch(self.unet, who)
        return network(x, t, encoder_hidden_states=cond).sample

    def grow(self, who: str, spec: Spec) -> None:
        if spec.kind == "full":
            if self.adapters:
                raise ValueError("a full copy must grow before any adapter does: it would copy the adapters too")
            self.copies[who] = copy.deepcopy(self.unet).requires_grad_(True)
        else:
            lora.grow(self.unet, who, spec)
            self.adapters.add(who)

    def trainable(self, who: str) -> dict[str, nn.Parameter]:
        return dict(self.copies[who].named_parameters()) if who in self.copies else lora.parameters(self.unet, who)

    def export(self, who: str, folder: Path, spec: Spec) -> None:
        """A diffusers LoRA in `folder` (for `load_lora_weights`), or the full copy in folder/unet (for `UNet2DConditionModel`)."""
        if spec.kind == "full":
            unet: Any = self.copies[who]
            unet.save_pretrained(folder / "unet")
            return
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet, adapter_name=who))
        facts = self.unet.peft_config[who].to_dict()  # without them a loader would forget lora_alpha
        facts["target_modules"] = sorted(facts["target_modules"])  # a set, whose order changes from process to process
        metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": fact for key, fact in facts.items()}, indent=2, sort_keys=True)}
        # diffusers' own writer adds a second entry, and safetensors writes entries in an order that changes from file to file
        StableDiffusionPipeline.save_lora_weights(
            folder, unet_lora_layers=layers, save_function=lambda weights, path: save_file(weights, path, metadata)
        )
