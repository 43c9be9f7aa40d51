"""What stands between a method and its reward: it counts the queries and lets nothing but finite scores of the right shape through."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from alignbench.config import MissingAsset
from alignbench.meters import Meters
from alignbench.rewards.base import Reward


class Judge(nn.Module):
    """The reward as training sees it. Raises ValueError on a wrong shape, type or a non-finite score: never a silent 0."""

    def __init__(self, reward: Reward, meters: Meters):
        super().__init__()
        self.reward, self.meters = reward.eval().requires_grad_(False), meters
        self._warned = False

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] in fp32."""
        self.meters.query(len(images))
        return self._checked(self._asked(self.reward, images, prompts), (len(images),))

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores a pixel [B,H,W] in fp32."""
        self.meters.query(len(images))
        return self._checked(self._asked(self.reward.map, images, prompts), (len(images), *images.shape[2:]))

    def _asked(self, ask: Callable[[Tensor, list[str]], Tensor], images: Tensor, prompts: list[str]) -> Tensor:
        try:
            return ask(images, prompts)
        except MissingAsset:
            raise
        except Exception as error:
            raise ValueError(f"reward {self.reward.name} failed: {error} ({type(error).__name__})") from error

    def _checked(self, scores: object, shape: tuple[int, ...]) -> Tensor:
        name = self.reward.name
        if not isinstance(scores, Tensor) or tuple(scores.shape) != shape:
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"reward {name} returned {got} where a tensor {shape} was expected")
        scores = scores.float()
        if not torch.isfinite(scores).all():
            bad = (~torch.isfinite(scores)).nonzero()[0].tolist()
            raise ValueError(f"reward {name} returned a score that is not finite (at {bad}); no weight was changed by it")
        if len(scores) > 1 and not self._warned and scores.amax() == scores.amin():
            self._warned = True
            warnings.warn(
                f"reward {name} gave every image the same score ({scores.flatten()[0].item():g}): nothing can be learned from it",
                stacklevel=3,
            )
        return scores

    def train(self, mode: bool = True) -> "Judge":
        """Always in eval mode: `method.train()` must not wake a judge's dropout."""
        return super().train(False)
