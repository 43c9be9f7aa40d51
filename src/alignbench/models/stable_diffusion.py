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

    def __init__(self, *, path: str, revision: str | None, init: str | None):
        """path: Hub id, local folder or package://folder. init: a UNet in diffusers' format, for weights that training starts from while
        the pipeline's own stay the score reference (a distilled student); null: the pipeline's own. Raises MissingAsset where they cannot
        be had.
        """
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
        self.adapters: dict[str, Who] = {}  # adapter -> the network that it sits in
        if init is not None:
            self.start = "init"
            self.copies["init"] = self._unet(init)

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

    def latents(self, images: Tensor) -> Tensor:
        return self.vae.encode(images.to(self.vae.dtype) * 2 - 1).latent_dist.mode().float() * self.vae.config.scaling_factor

    def predict(self, x: Tensor, t: Tensor, cond: Tensor, who: Who) -> Tensor:
        network = self._network(self.adapters.get(who, who) if who else None)
        lora.switch(network, who if who in self.adapters else None)
        return network(x, t, encoder_hidden_states=cond).sample

    def _network(self, who: Who) -> nn.Module:
        if who is not None and who not in self.copies:
            raise KeyError(f"nothing named {who!r} was grown on this model")
        return self.unet if who is None else self.copies[who]

    def _unet(self, path: str) -> nn.Module:
        from diffusers import UNet2DConditionModel

        try:
            unet = UNet2DConditionModel.from_pretrained(located(path), torch_dtype=torch.float32, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise MissingAsset(f"model.init={path}: no UNet there ({str(error).strip().splitlines()[0].split(' (')[0]})") from error
        return unet.requires_grad_(False).eval()

    def grow(self, who: str, spec: Spec, start: Who = None) -> None:
        if spec.kind == "full":
            if start in self.adapters.values():
                raise ValueError("a full copy must grow before any adapter does: it would copy the adapters too")
            self.copies[who] = copy.deepcopy(self._network(start)).requires_grad_(True)
        else:
            lora.grow(self._network(start), who, spec)
            self.adapters[who] = start

    def trainable(self, who: str) -> dict[str, nn.Parameter]:
        if who in self.adapters:
            return lora.parameters(self._network(self.adapters[who]), who)
        return dict(self._network(who).named_parameters())

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

        network: Any = self._network(self.adapters[who])
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(network, adapter_name=who))
        facts = network.peft_config[who].to_dict()  # without them a loader would forget lora_alpha
        facts["target_modules"] = sorted(facts["target_modules"])  # a set, whose order changes from process to process
        metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": fact for key, fact in facts.items()}, indent=2, sort_keys=True)}
        # diffusers' own writer adds a second entry, and safetensors writes entries in an order that changes from file to file
        StableDiffusionPipeline.save_lora_weights(
            folder, unet_lora_layers=layers, save_function=lambda weights, path: save_file(weights, path, metadata)
        )
