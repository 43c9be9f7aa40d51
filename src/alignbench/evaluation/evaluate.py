"""Scores a policy image by image on fixed prompts and fixed noise, and compares it with the reference on the same ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from alignbench.evaluation.measures import Measures, Row, facts_of
from alignbench.evaluation.statistics import paired_difference
from alignbench.policy import Policy
from alignbench.rewards.base import UNKNOWN, Reward, kinship
from alignbench.rewards.judge import Judge
from alignbench.rng import generator

Label = Literal["trained", "gold", "held out", "related", "unknown"]


@dataclass(frozen=True)
class Scored:
    """One row an image, in the order of the images."""

    rows: list[Row]
    images: Tensor  # [prompts * each,3,H,W] on the CPU
    measured: dict[str, Row]  # the columns that no judge gave, and what each is
    features: dict[str, Tensor]  # [prompts * each,D] by feature space, on the CPU

    def mean(self, column: str) -> float:
        """Over the images that have the value; NaN where none has."""
        values = [row[column] for row in self.rows if row[column] is not None]
        return sum(values) / len(values) if values else math.nan


@torch.no_grad()
def score(policy: Policy, judges: Sequence[Judge], measures: Measures | None, prompts: dict[int, str], each: int, noise: int) -> Scored:
    """`each` images a prompt. Image (prompt, k) has its own noise, the same for every method, seed and for the reference.

    measures: None: judges alone; prompts: by their index in the split; noise: the seed of the noise. None of it counts towards a budget.
    """
    ids = [(prompt_id, k) for prompt_id in prompts for k in range(each)]
    texts = [prompts[prompt_id] for prompt_id, _ in ids]
    generators = [generator(noise, "evaluation", prompt_id, k) for prompt_id, k in ids]
    with policy.model.meters.paused():
        rollout = policy.rollout(texts, "image", generators)
        images = policy.images(rollout)
        columns = {judge.reward.name: judge.score_in_parts(images, texts, policy.chunk) for judge in judges}
        measured, features = measures.of(policy, rollout, images, texts, ids, each, noise) if measures else ({}, {})
    judged, columns = set(columns), columns | measured
    values = {name: column.cpu().double().tolist() for name, column in columns.items()}
    rows = [
        {"prompt_id": prompt_id, "prompt": prompts[prompt_id], "k": k}
        | {name: None if name in judged and math.isnan(column[i]) else column[i] for name, column in values.items()}  # None: no score
        for i, (prompt_id, k) in enumerate(ids)
    ]
    return Scored(rows, images.float().cpu(), {name: facts_of(name, measures.spaces) for name in measured} if measures else {}, features)


def described(judges: Sequence[Judge], trained: Reward | None, taught: Sequence[str], measured: dict[str, Row]) -> list[dict[str, Any]]:
    """What each column of numbers is. trained: the reward that training optimised, if it did; taught: as `label_of` takes it."""
    return [_about(judge.reward, trained, taught) for judge in judges] + list(measured.values())


def compare(reference: Scored, policy: Scored, about: list[dict[str, Any]], replicates: int) -> list[dict[str, Any]]:
    """The result's table: each metric's means and the paired difference with its 95 % interval over prompts and images."""
    table = []
    for facts in about:
        name = facts["name"]
        pairs = [
            (before[name], after[name], after["prompt_id"])
            for before, after in zip(reference.rows, policy.rows, strict=True)
            if before[name] is not None and after[name] is not None
        ]
        if len({prompt for *_, prompt in pairs}) < 2:
            raise ValueError(f"{name} scored images of fewer than two prompts; the same command evaluates again")
        before, after, groups = zip(*pairs, strict=True)
        interval = paired_difference(before, after, groups, seed=0, replicates=replicates, level=0.95)
        table.append(
            facts
            | {"reference": sum(before) / len(before), "policy": sum(after) / len(after), "difference": interval.mean}
            | {"interval": [interval.low, interval.high], "prompts": interval.prompts, "images": interval.images}
        )
    return table


def label_of(reward: Reward, trained: Reward | None, taught: Sequence[str]) -> tuple[Label, str]:
    """What its scores are evidence of, and why they are none of anything held out. Two judges of one name never meet.

    taught: what else the weights learned from: names as in a reward's datasets, and UNKNOWN where there is something that nobody has said.
    """
    if trained is not None and reward.name == trained.name:
        return "trained", ""
    label, why = kinship(trained, reward) if trained is not None else ("held out", "")
    if reward.gold:
        return ("related", why) if trained is not None and trained.gold and label == "related" else ("gold", "")
    if shared := sorted({reward.name, *reward.members, *reward.backbones, *reward.datasets} & set(taught) - {UNKNOWN}):
        return "related", f"the weights learned from {', '.join(shared)}"
    if UNKNOWN in taught and label == "held out":
        return "unknown", "nobody has said what the weights learned from"
    return label, why


def _about(reward: Reward, trained: Reward | None, taught: Sequence[str]) -> dict[str, Any]:
    label, why = label_of(reward, trained, taught)
    return {
        "name": reward.name,
        "label": label,
        "unit": reward.unit,
        "larger_is_better": True,
        "note": " ".join([*(reward.__doc__ or "").split(), *(["Not held out:", f"{why}."] if why else [])]),
    }
