"""Flow-matching pipelines: x_t = (1 - t) x_0 + t eps, the network's output is the velocity eps - x_0."""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignbench.models.pipeline import Pipeline
from alignbench.ranges import Count


class FlowPipeline(Pipeline):
    """Times: floats are t in [0,1] itself, 1 is noise; integers count the training schedule from 0 (least noise).

    cond is one tensor [B,L',D]: the prompt embeddings [B,L,D], then the pooled embedding [B,P], zero-padded, as rows of D.
    """

    component, prediction = "transformer", "velocity"
    sigmas: Tensor  # [T] the training schedule, shifted for this model's images, from least noise to pure noise

    def __init__(self, *, pixels: Count | None, **pipeline: Any):
        super().__init__(pixels=pixels, **pipeline)
        self._scheduler = copy.deepcopy(self.pipeline[0].scheduler)  # a pipeline's call sets its own scheduler's steps
        self.train_times = self._scheduler.config.num_train_timesteps
        self.register_buffer("sigmas", self._training(), persistent=False)

    # ---- what a family says

    @property
    @abstractmethod
    def patch(self) -> int:
        """Side of the square of latent pixels that the transformer takes as one token."""

    @abstractmethod
    def grid(self, steps: int) -> Tensor | None:
        """Unshifted sigmas [steps] that the pipeline asks its scheduler for; None: the scheduler's own."""

    @abstractmethod
    def embeddings(self, prompts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Prompt embeddings [B,L,D] and pooled embeddings [B,P], from the pipeline's text encoders on `device`."""

    @abstractmethod
    def velocity(self, network: Any, x: Tensor, t: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
        """One forward pass [N,C,h,w] at flow times t [N], with the two parts of the condition apart."""

    # ---- what follows

    def embedded(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        prompt, pooled = self.embeddings(list(prompts), device)
        rows = -(-pooled.shape[1] // prompt.shape[2])
        padded = F.pad(pooled, (0, rows * prompt.shape[2] - pooled.shape[1]))
        return torch.cat([prompt, padded.unflatten(1, (rows, -1))], 1)

    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        size = int(self._config.pooled_projection_dim)
        rows = -(-size // cond.shape[2])
        return self.velocity(network, x, self._sigma(t), cond[:, :-rows], cond[:, -rows:].flatten(1)[:, :size])

    def times(self, steps: int) -> Tensor:
        """The sigmas of the pipeline's own call with that many steps, then 0."""
        return self._shifted(steps, self.grid(steps)).to(self.dtype)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self._sigma(t)[:, None, None, None]
        return 1 - sigma, sigma

    def reshape(self, shape: tuple[int, int, int]) -> None:
        super().reshape(shape)
        self.sigmas = self._training().to(self.sigmas)

    @property
    def dtype(self) -> torch.dtype:
        return self.sigmas.dtype

    def _training(self) -> Tensor:
        """The training schedule, shifted as images of this size ask."""
        unshifted = torch.arange(self.train_times, 0, -1) / self.train_times
        return self._shifted(self.train_times, unshifted)[:-1].flip(0)

    def _sigma(self, t: Tensor) -> Tensor:
        return t.to(self.dtype) if t.is_floating_point() else self.sigmas.to(t.device)[t]

    def _shifted(self, steps: int, sigmas: Tensor | None) -> Tensor:
        """The scheduler's own sigmas [steps+1] for the unshifted ones; the last is 0."""
        self._scheduler.set_timesteps(steps, sigmas=None if sigmas is None else sigmas.numpy(), mu=self._mu)
        return self._scheduler.sigmas

    @property
    def _mu(self) -> float | None:
        """Of dynamic shifting: linear in the image's tokens, through the two points that the scheduler's config names."""
        config, tokens = self._scheduler.config, self.shape[1] * self.shape[2] // self.patch**2
        if not config.use_dynamic_shifting:
            return None
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return config.base_shift + slope * (tokens - config.base_image_seq_len)

    @property
    def _config(self) -> Any:
        return self.denoiser.config
