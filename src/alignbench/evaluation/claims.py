"""Whether a claim about methods shows in their runs: differences with intervals over training seeds and prompts, two crossed factors.

All functions take changes [S,P,K] against the reference (docs/statistics.md); a failed training is there as no change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from alignbench.evaluation.aggregates import cells, contrast, level, weighted
from alignbench.evaluation.compared import Cell, Run
from alignbench.evaluation.crossed import Array, Bootstrap, CrossedInterval, intervals
from alignbench.evaluation.fronts import reading

Kind = Literal["difference", "matched", "locality"]
Direction = Literal["higher", "lower"]
REFERENCE = "reference"  # as b: a's change itself


class Untold(ValueError):
    """Why a claim cannot be judged by the runs that are there."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One line of `claims` in a table's runs.yaml; a and b name rows, several of one method where kind is matched."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Kind
    direction: Direction  # of what the claim says of a less b
    a: str | list[str]
    b: str | list[str]
    metric: str = ""  # difference, matched
    at: str = ""  # matched: what both have gained equally much of
    inside: str = ""  # locality: what is to change
    outside: str = ""  # and what is not
    says: str = ""
    source: str = ""

    @property
    def metrics(self) -> list[str]:
        return [name for name in (self.metric, self.at, self.inside, self.outside) if name]

    @property
    def rows(self) -> tuple[list[str], list[str]]:
        a, b = ([side] if isinstance(side, str) else side for side in (self.a, self.b))
        return a, [] if b == [REFERENCE] else b


def verdict(found: CrossedInterval, direction: Direction) -> str:
    sign = 1 if direction == "higher" else -1
    if not found.excludes_null:
        return "not shown"
    return "holds" if sign * found.value > 0 else "contradicted"


def judged(claim: Claim, there: Mapping[str, Cell], how: Bootstrap) -> tuple[CrossedInterval, float | None]:
    """a less b as the claim means it, and the gain at which the two are compared, if they are. Raises Untold."""
    rows = claim.rows
    for name in (*rows[0], *rows[1]):
        if name not in there:
            raise Untold(f"no seed of {name} finished")
        if lacking := [metric for metric in claim.metrics if metric not in there[name].labels]:
            raise Untold(f"{name} has no {lacking[0]}: its evaluation has {', '.join(there[name].labels)}")
    both = [[there[name] for name in side] for side in rows]
    _same_images([cell for side in both for cell in side])
    changes = [[[cell.change(metric) for metric in claim.metrics] for cell in side] for side in both]  # [side][row][metric]
    scored = np.logical_and.reduce([np.isfinite(table).any(2).all(0) for side in changes for row in side for table in row])
    if scored.sum() < 2:
        raise Untold(f"{int(scored.sum())} prompts have a score in every run; an interval needs two")
    a, b = ([[table[:, scored] for table in row] for row in side] for side in changes)
    if claim.kind == "matched":
        return matched([(at, metric) for metric, at in a], [(at, metric) for metric, at in b], how)
    ours, *theirs = (side[0][0] - side[0][1] if claim.kind == "locality" else side[0][0] for side in (a, b) if side)
    return difference(ours, theirs[0] if theirs else None, how), None


def difference(a: Array, b: Array | None, how: Bootstrap) -> CrossedInterval:
    """The mean of a less that of b; without b the mean of a."""
    return level(a, how, kind="mean") if b is None else contrast(a, b, how, kind="mean")


def matched(a: Sequence[tuple[Array, Array]], b: Sequence[tuple[Array, Array]], how: Bootstrap) -> tuple[CrossedInterval, float]:
    """a's change less b's where both have the same gain, and that gain: the smaller of their largest ones, which counts as known.

    Of each row of each method the gain [S,P,K] and the change [S,P,K]. The change is read off straight lines from the reference (no gain,
    no change) through a method's rows in the order of their gain, to first order in the noise of both, as `fronts.matched_reward` does.
    """
    lines = [_line(side) for side in (a, b)]
    at = min(line[-1][0] for line in lines)
    if not at > 0:
        raise Untold("the two have no gain in common: one of them gained nothing")
    ends = []
    for line in lines:
        upper = next(n for n, (gain, _) in enumerate(line) if gain >= at)  # at is within the line, above 0
        ends.append([point for _, point in line[upper - 1 : upper + 1]])
    (one, one_seeds, prompts), (other, other_seeds, _) = (_read(points, at) for points in ends)

    def apart(seeds: Sequence[Array], drawn: Array) -> Array:
        return one(seeds[: len(one_seeds)], drawn) - other(seeds[len(one_seeds) :], drawn)

    return intervals(apart, (*one_seeds, *other_seeds), prompts, how)[0], at


def _line(rows: Sequence[tuple[Array, Array]]) -> list[tuple[float, tuple[Array, Array]]]:
    """The reference and a method's rows in the order of their gain."""
    start = np.zeros_like(rows[0][0])
    gains = [(_mean(gain), (gain, change)) for gain, change in rows]
    return sorted([(0.0, (start, start)), *gains], key=lambda point: point[0])


def _mean(table: Array) -> float:
    values = cells(table)
    return float(weighted(values, "mean")(np.ones((1, len(values))), np.ones((1, values.shape[1])))[0])  # to the bit as `reading` has it


def _read(points: Sequence[tuple[Array, Array]], at: float) -> Any:
    found = reading(points, at=at, shared=False)
    assert found is not None  # `at` is between the two
    return found


def _same_images(rows: Sequence[Cell]) -> None:
    """Differences are paired by prompt and noise, so those must be the same."""

    def meant(run: Run) -> tuple[Any, Any, Any]:
        config = run.about["config"]
        return config["dataset"], config["eval"]["noise"], run.images

    for row in rows[1:]:
        if meant(row.runs[0]) != meant(rows[0].runs[0]):
            raise Untold(f"{rows[0].label} and {row.label} were evaluated on other prompts or noise")
