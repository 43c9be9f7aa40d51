"""What stands between whoever asks and a reward: it counts the queries and lets nothing but finite scores of the right shape through."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor, nn

from alignbench import ranks
from alignbench.beside import Beside
from alignbench.config import MissingAsset
from alignbench.meters import Meters
from alignbench.rewards.base import Changed, Reward, Unreachable
from alignbench.rewards.memory import Memory, fingerprints
from alignbench.rewards.quarantine import Quarantine

Ask = Callable[[Tensor, list[str]], Tensor]


@dataclass(frozen=True)
class Guard:
    on_error: Literal["fail", "skip", "quarantine"] = "fail"  # an image without a score ends the run; teaches nothing; and is kept aside
    patience: float | None = None  # seconds for an answer; None: as long as it takes
    quarantine: Quarantine | None = None
    memory: Memory | None = None  # of the scores of costly judges


FAIL = Guard()


class Judge(nn.Module):
    """The reward as everyone sees it. A wrong shape or type and a score that is not finite are errors, or NaN where the guard says so."""

    def __init__(self, reward: Reward, meters: Meters, guard: Guard = FAIL):
        super().__init__()
        self.reward, self.meters, self.guard = reward.eval().requires_grad_(False), meters, guard
        self._warned = False
        self._beside: Beside[object] | None = None

    @cached_property
    def identity(self) -> dict[str, str]:
        return self.reward.identity()

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] in fp32 of images [B,3,H,W], with a gradient where they carry one; NaN where an image has none.

        Raises ValueError where one has none and on_error is fail. Each image counts as a query, also one whose score is remembered: what a
        run is said to have cost may not depend on what ran before it, nor on when it was interrupted.
        """
        self._count(images)
        memory = self.guard.memory
        if images.requires_grad and torch.is_grad_enabled():
            scores = self._guarded(self.reward, images, prompts)
            self.meters.unscored(int(scores.isnan().sum()))
            return scores
        if memory is None or not self.reward.costly or self.reward.grouped:
            return self._guarded(self.reward, images, prompts)
        keys = fingerprints(images, prompts, self.identity)
        scores = memory.recall(keys).to(images.device)
        if len(new := scores.isnan().nonzero().squeeze(1)):
            scores[new] = self._guarded(self.reward, images[new], [prompts[row] for row in new.tolist()])
            memory.keep([keys[row] for row in new.tolist()], scores[new])
        return scores

    def score_in_parts(self, images: Tensor, prompts: list[str], size: int) -> Tensor:
        """`score`, at most `size` images at a time where they are judged one by one."""
        if self.reward.grouped or not len(images):
            return self.score(images, prompts)
        starts = range(0, len(images), size)
        return torch.cat([self.score(images[start : start + size], prompts[start : start + size]) for start in starts])

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores a pixel [B,H,W] in fp32; NaN everywhere where an image has none."""
        self._count(images)
        return self._guarded(self.reward.map, images, prompts, tuple(images.shape[2:]))

    def _count(self, images: Tensor) -> None:
        """A query an image; of images that are judged together, every process sees all and counts its share."""
        self.meters.query(len(ranks.mine(len(images))) if self.reward.grouped else len(images))

    def _guarded(self, ask: Ask, images: Tensor, prompts: list[str], each: tuple[int, ...] = ()) -> Tensor:
        """each: the shape of one image's answer."""
        strict = self.guard.on_error == "fail"
        try:
            scores, why = self._answered(ask, images, prompts, each), "a score is not finite"
        except ValueError as error:
            if strict:
                raise
            scores, why = self._one_by_one(ask, images, prompts, each, error), str(error)
        if scores.isfinite().all():
            return scores
        if strict:
            at = (~scores.isfinite()).nonzero()[0].tolist()
            raise ValueError(f"reward {self.reward.name} returned a score that is not finite (at {at}); no weight was changed by it")
        if scores.requires_grad:  # through what is not finite every image's gradient would be NaN
            scores = self._one_by_one(ask, images, prompts, each, None)
        missing = ~scores.isfinite().reshape(len(scores), -1).all(1)
        self._report(images, prompts, missing, why)
        return scores.masked_fill(missing.reshape(-1, *[1] * len(each)), torch.nan)

    def _answered(self, ask: Ask, images: Tensor, prompts: list[str], each: tuple[int, ...]) -> Tensor:
        """One answer in fp32, of the right type and shape; whether it is finite is not looked at."""
        name = self.reward.name
        plain = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
        try:
            scores: object = self._in_time(partial(_alone, ask, self._watched(plain), prompts))
        except MissingAsset:
            raise
        except Changed as error:
            raise MissingAsset(str(error)) from error
        except Unreachable as error:
            if self.guard.on_error == "fail":
                raise MissingAsset(f"{error}; the same command continues once it is back") from error
            raise Gone(str(error)) from error
        except Exception as error:
            raise ValueError(f"reward {name} failed: {error} ({type(error).__name__})") from error
        shape = (len(images), *each)
        if not isinstance(scores, Tensor) or tuple(scores.shape) != shape:
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"reward {name} returned {got} where a tensor {shape} was expected")
        return scores.float()

    def _in_time(self, ask: Callable[[], object]) -> object:
        """What `ask` returns. A thread cannot be ended: one that is given up is left behind until this process ends."""
        if self.guard.patience is None:
            return ask()
        self._beside = self._beside or Beside()
        mode = torch.is_grad_enabled()  # a thread has its own
        answer = self._beside.ask(lambda: torch.set_grad_enabled(mode)(ask)())
        try:
            return answer.result(self.guard.patience)
        except TimeoutError:
            if answer.done():  # the judge's own
                raise
            self._beside.end()
            self._beside = None
            raise Unreachable(f"reward {self.reward.name} gave no answer within judging.patience={self.guard.patience:g} s") from None

    def _watched(self, images: Tensor) -> Tensor:
        """The images, whose gradient is looked at on its way back: a score may be finite where its slope is not."""
        if not (images.requires_grad and torch.is_grad_enabled()):
            return images

        def look(gradient: Tensor) -> Tensor:
            bad = ~gradient.isfinite().flatten(1).all(1)
            if not bad.any():
                return gradient
            why = f"the gradient of reward {self.reward.name} is not finite for {int(bad.sum())} of {len(bad)} images"
            if self.guard.on_error == "fail":
                raise ValueError(f"{why}; no weight was changed by it")
            warnings.warn(f"{why}; it is taken as 0", stacklevel=2)
            return gradient.masked_fill(bad[:, None, None, None], 0)

        watched = images.view_as(images)
        watched.register_hook(look)
        return watched

    def _one_by_one(self, ask: Ask, images: Tensor, prompts: list[str], each: tuple[int, ...], error: ValueError | None) -> Tensor:
        """What can be had where an ask for all failed: NaN for what fails alone, an image or, where they are judged together, a prompt's.

        A judge that cannot be reached twice running is not asked again this time, so that the wait is bounded.
        """
        groups = [[row] for row in range(len(images))]
        if self.reward.grouped:
            groups = [[row for row, other in enumerate(prompts) if other == prompt] for prompt in dict.fromkeys(prompts)]
        parts = list(torch.full((len(images), *each), torch.nan, device=images.device))
        gone = int(isinstance(error, Gone))
        for rows in groups if error is None or len(groups) > 1 else []:
            try:
                own = self._answered(ask, images[rows], [prompts[row] for row in rows], each)
            except ValueError as alone:
                gone = gone + 1 if isinstance(alone, Gone) else 0
                if gone > 1:
                    break
            else:
                gone = 0
                for row, part in zip(rows, own, strict=True):
                    parts[row] = part if part.isfinite().all() else parts[row]
        return torch.stack(parts)

    def _report(self, images: Tensor, prompts: list[str], bad: Tensor, why: str) -> None:
        rows = bad.nonzero().squeeze(1).tolist()
        warnings.warn(f"{len(rows)} of {len(images)} images have no score and teach nothing: {why}", stacklevel=4)
        if self.guard.on_error == "quarantine" and self.guard.quarantine is not None:
            for row in rows:
                self.guard.quarantine.keep(images[row], prompts[row], self.reward.name, why)

    def look_at(self, scores: Tensor) -> None:
        """Warn, once, of a judge that gives a whole collection of images one score."""
        scores = scores[~scores.isnan()]
        if len(scores) > 1 and not self._warned and scores.amax() == scores.amin():
            self._warned = True
            warnings.warn(
                f"reward {self.reward.name} gave every image the same score ({scores.flatten()[0].item():g}): "
                "nothing can be learned from it",
                stacklevel=4,
            )

    def train(self, mode: bool = True) -> "Judge":
        """Always in eval mode: `method.train()` must not wake a judge's dropout."""
        return super().train(False)


def _alone(ask: Ask, images: Tensor, prompts: list[str]) -> object:
    """Outside training's autocast: a score does not depend on the precision of training."""
    with torch.autocast(images.device.type, enabled=False):
        return ask(images, prompts)


class Gone(ValueError):
    """The judge itself could not be reached, whatever the image."""
