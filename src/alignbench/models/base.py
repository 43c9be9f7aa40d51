"""A frozen text-to-image diffusion model and the trainable copies grown on it, named by `who`; `who=None` is the reference itself."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from alignbench.meters import Meters
from alignbench.rng import Generators, normal

Who = str | None
Prediction = Literal["epsilon", "v_prediction", "velocity"]


@dataclass(frozen=True)
class Spec:
    """What a trainable copy is: a LoRA adapter on the frozen base, or a full copy of the denoiser."""

    kind: Literal["lora", "full"]
    rank: int
    alpha: float
    targets: tuple[str, ...]  # names of the layers that get an adapter, as peft matches them


class Diffusion(nn.Module, ABC):
    """Families implement `encode`, `decode`, `predict`, `grow` and the schedule; guidance, conversion and counting live here alone."""

    shape: tuple[int, int, int]  # C, h, w of a latent
    prediction: Prediction
    train_times: int  # how many integer times the training schedule has
    start: Who = None  # whose weights training starts from and is measured against: the reference, or a frozen copy of other weights

    def __init__(self) -> None:
        super().__init__()
        self.meters = Meters()
        self._embeddings: dict[str, Tensor] = {}
        self._grids: dict[Any, Tensor] = {}

    # ---- what a family says

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Run the frozen text encoder: [B,L,D]."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """Images [B,3,H,W] in [0,1] from final latents; differentiable."""

    @abstractmethod
    def latents(self, images: Tensor) -> Tensor:
        """Clean latents [B,C,h,w] of images [B,3,H,W] in [0,1]: what `decode` undoes."""

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, cond: Tensor, who: Who) -> Tensor:
        """The raw output of one denoiser call: [N,C,h,w], of the kind that `prediction` names."""

    @abstractmethod
    def grow(self, who: str, spec: Spec, start: Who = None) -> None:
        """Add a trainable copy named `who` that starts as `start`, which must be frozen itself."""

    @abstractmethod
    def trainable(self, who: str) -> dict[str, nn.Parameter]:
        """The parameters of `who`, by a name that is stable across runs."""

    @abstractmethod
    def moved(self, who: str) -> bool:
        """Whether any weight of `who` is another than where it started."""

    @abstractmethod
    def rescale(self, who: str, scale: float) -> None:
        """Move `who` along the line from where it started: 0 is there, 1 is where it stands, and more goes beyond."""

    @abstractmethod
    def weights(self, who: Who) -> dict[str, Tensor]:
        """All weights of the denoiser that `who` is, by name and no other copy's; of None the frozen rest too: text encoders, decoder."""

    @abstractmethod
    def export(self, who: str, folder: Path, spec: Spec) -> None:
        """Write the weights of `who` as others load them."""

    @abstractmethod
    def times(self, steps: int) -> Tensor:
        """The sampler's time grid [steps+1], from noise to image; the last is where the last step lands. As `alpha_sigma` takes them."""

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t = alpha x_0 + sigma eps at times t [N]: two tensors [N,1,1,1]. Integers count the training schedule from 0 (least noise)."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of latents between steps, whatever the networks compute in."""

    # ---- what follows for all

    def train(self, mode: bool = True) -> "Diffusion":
        """Always in eval mode: a dropout that woke up in the update would move the importance ratio away from 1."""
        return super().train(False)

    def time_grid(self, steps: int) -> Tensor:
        """`times`, on the model's own device: made once, so that no step of a rollout waits for a copy."""
        key = (steps, self.device, self.shape)  # a flow's times depend on the size of its images
        if key not in self._grids:
            self._grids[key] = self.times(steps).to(self.device)
        return self._grids[key]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings [B,L,D]; each distinct prompt is embedded once."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]
        if missing:
            with torch.no_grad():
                self._embeddings.update(zip(missing, self.embed(missing), strict=True))
        return torch.stack([self._embeddings[prompt] for prompt in prompts]).to(self.device, self.dtype)

    def prior(self, generators: Generators) -> Tensor:
        """Starting noise [n,C,h,w], one row a generator."""
        return normal(self.shape, generators, like=torch.empty(0, device=self.device, dtype=self.dtype))

    def output(self, x: Tensor, t: Tensor, cond: Tensor, who: Who, guidance: float | None) -> Tensor:
        """The guided output of the denoiser, of the kind that `prediction` names: [N,C,h,w], in x's dtype.

        guidance is diffusers' scale: out(empty) + guidance * (out(cond) - out(empty)); None and 1 mean unguided. Both halves go through the
        network in one forward pass.
        """
        if guidance is None or guidance == 1:
            output = self.predict(x, t, cond, who)
            samples = len(x)
        else:
            empty = self.encode([""]).expand_as(cond)
            unconditional, conditional = self.predict(torch.cat([x, x]), torch.cat([t, t]), torch.cat([empty, cond]), who).chunk(2)
            output = unconditional + guidance * (conditional - unconditional)
            samples = 2 * len(x)
        self.meters.evaluate(who or "reference", samples, backward=output.requires_grad)
        return output.to(x.dtype)

    def eps(self, x: Tensor, t: Tensor, cond: Tensor, who: Who, guidance: float | None = None) -> Tensor:
        """The noise in x_t [N,C,h,w], as `who` sees it."""
        output, (alpha, sigma) = self.output(x, t, cond, who, guidance), self.alpha_sigma(t)
        match self.prediction:
            case "epsilon":
                return output
            case "v_prediction":
                return alpha * output + sigma * x
            case "velocity":  # d x_t / d t = eps - x_0 on x_t = (1 - t) x_0 + t eps
                return x + alpha * output
        raise ValueError(f"prediction type {self.prediction!r} is not known; known: {', '.join(get_args(Prediction))}")

    def x0(self, x: Tensor, t: Tensor, cond: Tensor, who: Who, guidance: float | None = None) -> Tensor:
        """The clean latent that x_t is predicted to come from: [N,C,h,w]."""
        alpha, sigma = self.alpha_sigma(t)
        if self.prediction == "velocity":  # at t = 1 alpha is 0
            return x - sigma * self.output(x, t, cond, who, guidance)
        return (x - sigma * self.eps(x, t, cond, who, guidance)) / alpha

    @contextmanager
    def frozen(self, who: str) -> Iterator[None]:
        """Within it gradients pass through `who` but not into its weights."""
        wanted = {parameter: parameter.requires_grad for parameter in self.trainable(who).values()}
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, before in wanted.items():
                parameter.requires_grad_(before)

    def latent(self, pixels: int, key: str) -> tuple[int, int, int]:
        """Shape of the latent of an image of `pixels` x `pixels`. Raises ValueError, naming the config's key, where there is none."""
        raise ValueError(f"{key}={pixels}: this model's images have one size; set null")

    def reshape(self, shape: tuple[int, int, int]) -> None:
        """Make latents of another shape from here on."""
        self.shape = shape

    @contextmanager
    def sized(self, pixels: int | None) -> Iterator[None]:
        """Within it images are made as large as an evaluation's `pixels` say; None: as always."""
        if pixels is None:
            yield
            return
        before = self.shape
        self.reshape(self.latent(pixels, "eval.pixels"))
        try:
            yield
        finally:
            self.reshape(before)

    def economise(self, *, gradient_checkpointing: bool, compile: bool, channels_last: bool, vae_tiling: bool) -> None:
        """Save memory or time, once all copies have grown; no result changes beyond rounding. Here: nothing to save."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class VariancePreserving(Diffusion):
    """alpha^2 + sigma^2 = 1 (DDPM): the schedule is one table."""

    alpha_bar: Tensor  # [T+1] cumulative products of the training schedule; the last entry (index -1) is the final step's target

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self.alpha_bar.to(t.device)[t][:, None, None, None]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    @property
    def dtype(self) -> torch.dtype:
        return self.alpha_bar.dtype
