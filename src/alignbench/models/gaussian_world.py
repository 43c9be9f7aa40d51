"""Diffusion of Gaussian data: score, sampler's law and optimum are known in closed form, so that a method can be proven in seconds."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from alignbench.models.base import Prediction, Spec, VariancePreserving, Who


class GaussianWorld(VariancePreserving):
    """Data N(mean, std^2 I) whatever the prompt, its exact denoiser, and copies that change that denoiser's x0-prediction affinely.

    A copy predicts x0' = (1 + gain) * x0_exact(x_t) + shift, with one gain and one shift for all times: the sampler's law stays Gaussian
    and follows from a two-line recursion.
    """

    prediction: Prediction = "epsilon"

    def __init__(self, *, shape: tuple[int, int, int], mean: float, std: float):
        super().__init__()
        channels, height, width = shape
        self.shape, self.mean, self.std = (channels, height, width), mean, std
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()  # Stable Diffusion 1.5's schedule
        alpha_bar = (1 - betas).cumprod(0)
        self.train_times = len(betas)
        self.register_buffer("alpha_bar", torch.cat([alpha_bar, alpha_bar[:1]]).float(), persistent=False)
        self.copies = nn.ModuleDict()

    def times(self, steps: int) -> Tensor:
        return torch.linspace(999, 0, steps + 1).round().long()

    def embed(self, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), 1, 1)

    def decode(self, x: Tensor) -> Tensor:
        """The latent itself, as a grey image: rewards of this world read numbers, so nothing is clamped."""
        return x.mean(1, keepdim=True).expand(-1, 3, -1, -1)

    def latents(self, images: Tensor) -> Tensor:
        return images[:, :1].expand(-1, *self.shape)

    def predict(self, x: Tensor, t: Tensor, cond: Tensor, who: Who) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        variance = alpha**2 * self.std**2 + sigma**2
        x0 = self.mean + alpha * self.std**2 / variance * (x - alpha * self.mean)
        if who is not None:
            copy = self.trainable(who)
            x0 = (1 + copy["gain"]) * x0 + copy["shift"]
        return (x - alpha * x0) / sigma

    def grow(self, who: str, spec: Spec, start: Who = None) -> None:
        if spec.kind != "full":
            raise ValueError("model=gaussian has nothing to put an adapter on; set adapter=full")
        unchanged = {"gain": self.alpha_bar.new_zeros(()), "shift": self.alpha_bar.new_zeros(self.shape)}
        weights = unchanged if start is None else self.trainable(start)
        self.copies[who] = nn.ParameterDict({name: value.detach().clone() for name, value in weights.items()})

    def trainable(self, who: str) -> dict[str, nn.Parameter]:
        return dict(self.copies[who].named_parameters())

    def moved(self, who: str) -> bool:
        return any(bool(parameter.any()) for parameter in self.trainable(who).values())

    @torch.no_grad()
    def rescale(self, who: str, scale: float) -> None:
        for parameter in self.trainable(who).values():
            parameter.mul_(scale)  # it started as 0

    def weights(self, who: Who) -> dict[str, Tensor]:
        return dict(self.trainable(who)) if who else {}  # the data's law is in the settings

    def export(self, who: str, folder: Path, spec: Spec) -> None:
        """<folder>/<who>.safetensors, with the copy's gain and shift."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu() for name, value in self.trainable(who).items()}, folder / f"{who}.safetensors")

    @property
    def device(self) -> torch.device:
        return self.alpha_bar.device
