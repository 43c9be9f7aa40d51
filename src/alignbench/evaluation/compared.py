"""What stands in a row of a comparison: a training's images as arrays, and the trainings of one config over their seeds."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from alignbench.evaluation.aggregates import difference
from alignbench.evaluation.crossed import Array


@dataclass(frozen=True)
class Run:
    """One finished training: what samples.parquet says of it, and its rows."""

    about: dict[str, Any]
    rows: list[dict[str, Any]]

    @cached_property
    def images(self) -> list[tuple[int, int]]:
        """(prompt, k) of the test images, in order."""
        return sorted((row["prompt_id"], row["k"]) for row in self._of("reference", "test", 0))

    def _of(self, who: str, split: str, epoch: int | None) -> list[dict[str, Any]]:
        return [row for row in self.rows if (row["who"], row["split"]) == (who, split) and epoch in (None, row["epoch"])]

    def table(self, who: str, metric: str, split: str = "test", epoch: int | None = None) -> Array:
        """[P,K] in the order of prompt and k; NaN for an image without a score. ValueError where an image is missing or there twice."""
        found = {(row["prompt_id"], row["k"]): row[metric] for row in self._of(who, split, epoch)}
        prompts, ks = (sorted({key[axis] for key in found}) for axis in (0, 1))
        if not found or len(found) != len(prompts) * len(ks) or len(found) != len(self._of(who, split, epoch)):
            raise ValueError(f"{self.about['hash'][:10]}: {len(found)} images of {who} ({split}) are no grid of prompts and images")
        return np.array([[np.nan if found[p, k] is None else found[p, k] for k in ks] for p in prompts], np.float64)

    @cached_property
    def labels(self) -> dict[str, str]:
        """What each metric is evidence of, by name: trained, gold, held out, ..., divergence, diversity."""
        return {metric["name"]: metric["label"] for metric in self.about["metrics"]}

    @cached_property
    def validated(self) -> list[int]:
        return sorted({row["epoch"] for row in self._of("policy", "validation", None)})


@dataclass(frozen=True)
class Cell:
    """The runs of one config over seeds: a row of the table. A failed training counts as the reference: no change, no divergence."""

    label: str
    runs: list[Run]
    failed: list[int]  # seeds
    reference: Run  # any finished run of the comparison
    kept: tuple[int, ...] | None = None  # the prompts that count, by their place; None: all

    @property
    def method(self) -> str:
        return self.runs[0].about["choices"]["method"]

    @property
    def seeds(self) -> list[int]:
        return [*(run.about["seed"] for run in self.runs), *self.failed]

    @property
    def labels(self) -> dict[str, str]:
        return self.runs[0].labels

    @property
    def trainings(self) -> list[str]:
        """Which trainings gave the runs: rows at several scales of one training have the same."""
        return [run.about.get("trained_hash", run.about["hash"]) for run in self.runs]

    def named(self, *labels: str) -> list[str]:
        return [name for name, label in self.labels.items() if label in labels]

    def values(self, metric: str, who: str = "policy") -> Array:
        """[S,P,K], failed seeds last."""
        return np.stack([*(self._of(run, who, metric) for run in self.runs), *(self.start(metric) for _ in self.failed)])

    def _of(self, run: Run, who: str, metric: str) -> Array:
        table = run.table(who, metric)
        return table if self.kept is None else table[list(self.kept)]

    def start(self, metric: str) -> Array:
        """The reference's [P,K]."""
        return self._of(self.runs[0] if metric not in self.reference.labels else self.reference, "reference", metric)

    def scored(self) -> Array:
        """[P] whether every seed and the reference have an image with a score by every metric, under each `who` that there is."""
        sides = ["policy", *(["peak"] if all(run.about["peak"] is not None for run in self.runs) else [])]
        tables = [np.isfinite(self.values(name, who)).any(2).all(0) for name in self.labels for who in sides]
        return np.logical_and.reduce([*tables, *(np.isfinite(self.start(name)).any(1) for name in self.labels)])

    def change(self, metric: str, who: str = "policy") -> Array:
        return difference(self.values(metric, who), self.start(metric))

    def along(self) -> list[dict[str, float | None]]:
        """Means over seeds and images of each epoch that every run validated, less the start's: a point of the over-optimisation curve."""
        epochs = sorted(set.intersection(*(set(run.validated) for run in self.runs)))
        if not epochs or epochs[0] != 0:
            return []

        def mean(metric: str, epoch: int) -> float | None:
            tables = [run.table("policy", metric, "validation", epoch) for run in self.runs]
            return float(np.mean([np.nanmean(table) for table in tables])) if all(np.isfinite(table).any() for table in tables) else None

        def gain(metric: str, epoch: int) -> float | None:
            before, after = mean(metric, 0), mean(metric, epoch)
            return None if before is None or after is None else after - before

        return [{"epoch": epoch} | {metric: gain(metric, epoch) for metric in self.labels} for epoch in epochs]


def common(cells: Iterable[Cell], label: str) -> list[str]:
    """The metrics that bear this label in every cell."""
    lists = [cell.named(label) for cell in cells]
    return [name for name in lists[0] if all(name in own for own in lists)]
