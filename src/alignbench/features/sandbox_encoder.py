"""The sandbox's learned feature space: the middle of the shipped denoiser (as in DIFT, 2306.03881), pooled over the image."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignbench.config import located
from alignbench.features.base import FeatureSpace
from alignbench.hub import obtained
from alignbench.ranges import Index, Text
from alignbench.worlds.scenes import PIXELS


class SandboxEncoder(FeatureSpace):
    """An image's latent at a small time, without noise and with the empty prompt, seen by the UNet's middle block: its mean over places.

    Why the middle of the UNet and not the VAE: a linear probe on drawn scenes (1,000 to fit, 500 held out) reads shape, colour, size,
    position and background off it with 0.49, 0.76, 1.00, 1.00 and 1.00; off the VAE's pooled middle with 0.20, 0.57, 0.72, 0.21 and 1.00,
    and off the pooled latent with 0.17, 0.33, 0.73, 0.20 and 0.83. It is the reference's own network, never the trained copy of it.
    """

    name = "sandbox_encoder"
    licence = "Apache-2.0"
    backbone = "the sandbox's UNet"

    empty: Tensor  # [1,L,D] the empty prompt

    def __init__(self, *, path: Text, revision: str | None, time: Index):
        """path: Hub id or folder of a Stable Diffusion pipeline; time: of the training schedule, 0 is the image itself.

        Raises MissingAsset where the pipeline cannot be had.
        """
        super().__init__()
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging

        def load() -> Any:
            logging.disable_progress_bar()
            return StableDiffusionPipeline.from_pretrained(located(path), revision=revision, use_safetensors=True)

        found = obtained(load, f"eval.features: path={path}", "name the folder or Hub id of a Stable Diffusion pipeline")
        self.vae, self.unet, self.time = found.vae, found.unet, time
        self.vae.decoder = torch.nn.Identity()
        self.dimensions = found.unet.config.block_out_channels[-1]
        self.alpha = float(found.scheduler.alphas_cumprod[time] ** 0.5)
        with torch.no_grad():
            self.register_buffer("empty", found.encode_prompt("", "cpu", 1, False)[0])
        self.requires_grad_(False)
        self.eval()

    def features(self, images: Tensor) -> Tensor:
        seen = images if tuple(images.shape[-2:]) == (PIXELS, PIXELS) else F.interpolate(images, (PIXELS, PIXELS), mode="area")
        middle: list[Tensor] = []
        hook = self.unet.mid_block.register_forward_hook(lambda module, given, out: middle.append(out))
        try:
            latent = self.vae.encode(seen * 2 - 1).latent_dist.mean * self.vae.config.scaling_factor
            time = torch.full((len(images),), self.time, device=images.device)
            self.unet(self.alpha * latent, time, self.empty.expand(len(images), -1, -1))
        finally:
            hook.remove()
        return middle[0].mean((2, 3))
