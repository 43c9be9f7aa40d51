"""What evaluation measures without a judge: divergence from the reference and diversity, image by image and between sets of images."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignbench import ranks
from alignbench.datasets.pictures import Pictures
from alignbench.evaluation.divergence import reference_error
from alignbench.evaluation.sets import differences, within_prompt_cosine, within_prompt_vendi
from alignbench.features.base import FeatureSpace
from alignbench.features.lpips import Lpips
from alignbench.policy import Policy
from alignbench.rng import generator
from alignbench.tables import Rollout

Row = dict[str, Any]
MEASURED: dict[str, Row] = {
    "kl": {
        "label": "divergence",
        "unit": "nats",
        "larger_is_better": False,
        "note": "path KL to where training started, summed over the steps",
    },
    "reference_error": {
        "label": "surprise",  # its difference has either sign, so it is no axis from 0 upwards as a divergence is
        "unit": "mean square, an element",
        "larger_is_better": None,
        "note": "how badly the frozen reference denoises the image, at fixed times and noise",
    },
    "diversity": {
        "label": "diversity",
        "unit": "RMS pixel distance",
        "larger_is_better": True,
        "note": "between images of one prompt",
    },
    "lpips": {
        "label": "diversity",
        "unit": "LPIPS",
        "larger_is_better": True,
        "note": "between images of one prompt",
    },
    "distance": {
        "label": "diversity",
        "unit": "1 - cosine",
        "larger_is_better": True,
        "note": "between images of one prompt, in the space of {}",
    },
    "vendi": {
        "label": "diversity",
        "unit": "images",
        "larger_is_better": True,
        "note": "how many different images a prompt has, in the space of {}",
    },
}


def facts_of(column: str, spaces: Sequence[FeatureSpace]) -> Row:
    """What a column is: `vendi_clip` is the Vendi score in the space called clip."""
    space = next((each.name for each in spaces if column in (f"vendi_{each.name}", f"distance_{each.name}")), "")
    facts = MEASURED[column.removesuffix(f"_{space}") if space else column]
    return facts | {"name": column, "note": facts["note"].format(space)}


@dataclass(frozen=True)
class Measures:
    """Frozen, so that all policies and the reference are measured alike; none of it counts towards a budget."""

    spaces: Sequence[FeatureSpace] = ()
    lpips: Lpips | None = None
    times: Sequence[float] = ()  # of `reference_error`, as shares of the training schedule; none: it is not measured

    @property
    def networks(self) -> list[FeatureSpace | Lpips]:
        return [*self.spaces, *([self.lpips] if self.lpips else [])]

    @property
    def columns(self) -> list[str]:
        """The names that it may give to columns of samples.parquet."""
        return [name for name in MEASURED if name not in ("distance", "vendi")] + [
            f"{name}_{space.name}" for space in self.spaces for name in ("distance", "vendi")
        ]

    def features(self, images: Tensor, chunk: int) -> dict[str, Tensor]:
        """Images [B,3,H,W] as points of each space [B,D], on the CPU; each process sees its share."""
        mine = ranks.mine(len(images))
        parts = [mine[start : start + chunk] for start in range(0, len(mine), chunk)]
        return {space.name: ranks.gathered(torch.cat([space(images[part]) for part in parts]), len(images)).cpu() for space in self.spaces}

    def of(
        self,
        policy: Policy,
        rollout: Rollout,
        images: Tensor,
        prompts: Sequence[str],
        ids: Sequence[tuple[int, int]],
        each: int,
        noise: int,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Columns [B] by name, and features [B,D] by space, of `each` images a prompt, prompt by prompt; ids: each image's (prompt, k)."""
        found: dict[str, Tensor] = {}
        if policy.trained_steps.any():  # no likelihood, no path KL
            found["kl"] = policy.path_kl(rollout)
        if self.times:
            final = rollout.x[:, -1]
            found["reference_error"] = reference_error(policy.model, final, prompts, ids, times=self.times, noise=noise, chunk=policy.chunk)
        found["diversity"] = within_prompt_distance(images, each)
        if self.lpips is not None:
            found["lpips"] = within_prompt_lpips(self.lpips, images, each, policy.chunk)
        features = self.features(images, policy.chunk)
        for name, seen in features.items():
            found[f"distance_{name}"] = within_prompt_cosine(seen, each)
            found[f"vendi_{name}"] = within_prompt_vendi(seen, each)
        return found, features


def within_prompt_distance(images: Tensor, each: int) -> Tensor:
    """For each image its mean RMS pixel distance to the other images of its prompt: [B], 0 where all are the same."""
    groups = images.float().reshape(-1, each, images[0].numel())
    distance = torch.cdist(groups, groups) / groups.shape[-1] ** 0.5
    return (distance.sum(-1) / max(each - 1, 1)).flatten()


def within_prompt_lpips(lpips: Lpips, images: Tensor, each: int, chunk: int) -> Tensor:
    """For each image its mean LPIPS to the other images of its prompt: [B]; each process takes its share of the pairs."""
    pairs = torch.cat([torch.combinations(torch.arange(each)) + start for start in range(0, len(images), each)])
    mine = pairs[ranks.mine(len(pairs))]
    found = ranks.gathered(torch.cat([lpips(images[part[:, 0]], images[part[:, 1]]) for part in mine.split(chunk)]), len(pairs))
    total = torch.zeros(len(images), dtype=torch.float64)
    for side in pairs.unbind(1):
        total.index_add_(0, side, found.double().cpu())
    return total / max(each - 1, 1)


def real_features(measures: Measures, real: Pictures, count: int, noise: int, chunk: int, device: torch.device) -> dict[str, Tensor]:
    """`count` real pictures drawn by the evaluation's noise, each kept once, as points of each space [<=count,D].

    Raises ValueError where fewer than two are different.
    """
    drawing, seen, parts = generator(noise, "real"), set[bytes](), []
    for start in range(0, count, chunk):
        images, _ = real.draw(min(chunk, count - start), drawing)
        digests = [hashlib.sha256(each.numpy().tobytes()).digest() for each in images]
        new = [row for row, digest in enumerate(digests) if digest not in seen and digest not in digests[:row]]
        seen |= set(digests)
        if new:
            parts.append(measures.features(images[new].to(device), chunk))
    if len(seen) < 2:
        raise ValueError(f"eval.real: {count} draws gave {len(seen)} different picture; a set needs two or more")
    return {space.name: torch.cat([part[space.name] for part in parts]) for space in measures.spaces}


def set_rows(sides: Mapping[str, Mapping[str, Tensor]], spaces: Sequence[FeatureSpace], precision_k: int, coverage_k: int) -> list[Row]:
    """The result's table of sets: the policy's images (and its best checkpoint's) against the reference's, and all against real ones.

    sides: features by space, of `reference`, `policy` and perhaps `peak` and `real`. A value is None where there are too few images for it.
    """
    rows = []
    made = [who for who in sides if who not in ("reference", "real")]
    for space in spaces:
        for against, who in (*(("reference", who) for who in made), *(("real", who) for who in ("reference", *made))):
            if against not in sides:
                continue
            one, other = (sides[side][space.name] for side in (against, who))
            found = differences(one, other, precision_k=precision_k, coverage_k=coverage_k, paired=against == "reference")
            common = {"space": space.name, "against": against, "who": who, "images": len(other), "images_against": len(one)}
            rows += [{"name": name, "value": value, **common} for name, value in found.items()]
    return rows
