"""A paper's table as plain numbers, from the samples.parquet of its runs: claims, a comparison, ours beside the printed ones."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from alignbench.compose import Composed
from alignbench.evaluation.aggregates import level
from alignbench.evaluation.claims import Claim, Untold, judged, verdict
from alignbench.evaluation.compared import Cell, Run
from alignbench.evaluation.crossed import Bootstrap
from alignbench.evaluation.tabulate import told
from alignbench.papers import Metric, PaperTable, Printed, row_of
from alignbench.table import Found, compared

HOW = Bootstrap(replicates=2000, level=0.95, seed=0)
POWER = 0.8  # at which a comparison says what could have been detected
NOT_RUN = "not run (paper tier)"
NOT_PUBLISHED = "not published here"


@dataclass(frozen=True)
class Row:
    """The runs of a row, one a seed; those that failed have no entry in `runs`."""

    words: list[str]
    composed: list[Composed]
    runs: Mapping[str, Run]  # by hash

    @property
    def failed(self) -> list[int]:
        return [each.config["seed"] for each in self.composed if each.hash not in self.runs]

    def cell(self, name: str) -> Cell | None:
        """None where no seed finished."""
        runs = [self.runs[each.hash] for each in self.composed if each.hash in self.runs]
        return Cell(name, runs, self.failed, runs[0]) if runs else None


def reproduced(table: PaperTable, tier: str, rows: Mapping[str, Row]) -> dict[str, Any]:
    """Everything that the generated files show. ValueError where runs do not fit together."""
    cells = {name: cell for name, row in rows.items() if (cell := row.cell(name)) is not None}
    return {
        "table": table.name,
        "title": table.runs.title,
        "arxiv": table.runs.arxiv,
        "tier": tier,
        "level": HOW.level,
        "replicates": HOW.replicates,
        "seed": HOW.seed,
        "rows": {
            name: {
                "words": row.words,
                "seeds": [each.config["seed"] for each in row.composed if each.hash in row.runs],
                "failed": row.failed,
                "runs": [each.folder.name for each in row.composed],
            }
            for name, row in rows.items()
        },
        "claims": [_claim(claim, cells) for claim in table.claims(tier)],
        "paper": [_number(line, table, tier, cells) for line in table.printed],
        "comparison": _comparison(rows),
    }


def _comparison(rows: Mapping[str, Row]) -> dict[str, Any] | None:
    """Of all rows but the reference itself, which every comparison has anyway; None where no other has a run."""
    names: dict[str, list[str]] = {}
    found = []
    for name, row in rows.items():
        for each in row.composed:
            if each.choices["method"] == "reference":
                continue
            names.setdefault(each.cell, []).append(name)
            said = {"hash": each.hash, "cell": each.cell, "seed": each.config["seed"]}
            run = row.runs.get(each.hash)
            found.append(Found(each.folder, said if run is None else run.about, run))
    if not any(each.run for each in found):
        return None
    return compared(found, "", HOW, POWER, {cell: " = ".join(dict.fromkeys(own)) for cell, own in names.items()})


# --- claims


def _claim(claim: Claim, cells: Mapping[str, Cell]) -> dict[str, Any]:
    a, b = claim.rows
    said = asdict(claim) | {"a": a, "b": b, "seeds": [[len(cells[name].seeds) for name in side if name in cells] for side in (a, b)]}
    try:
        found, gain = judged(claim, cells, HOW)
    except Untold as why:
        return said | {"difference": None, "gain": None, "verdict": "not told", "why": str(why)}
    return said | {"difference": told(found), "gain": gain, "verdict": verdict(found, claim.direction), "why": ""}


# --- the paper's numbers


def _number(line: Printed, table: PaperTable, tier: str, cells: Mapping[str, Cell]) -> dict[str, Any]:
    """A printed number with ours, if there is one."""
    name = row_of(line, table.runs.paper.rows)
    assert name is not None  # papers.read
    row, metric = table.runs.paper.rows[name], table.runs.paper.metrics[line.metric]
    ours, count, said = None, 0, ""
    if row.words is None:
        said = f"paper-only: {row.why}"
    elif metric is None:
        said = f"paper-only: nothing here measures {line.metric}"
    elif tier != "paper":
        said = NOT_RUN
    elif name not in cells:
        said = "not run: no seed finished"
    else:
        ours = _ours(cells[name], metric)
        count = len(cells[name].seeds) if ours else 0
        said = "" if ours else f"not run: its evaluation has no {metric.name}, but {', '.join(cells[name].labels)}"
    if not line.value:
        said = NOT_PUBLISHED
    elif ours:
        said = "within tolerance" if line.within(ours["value"]) else "outside"
    return asdict(line) | {"ours": ours, "n": count, "verdict": said}


def _ours(cell: Cell, metric: Metric) -> dict[str, Any] | None:
    """The mean over seeds, prompts and images in the paper's unit; of a measure of sets, over seeds."""
    if metric.name not in cell.labels:
        return _of_sets(cell, metric)
    values = cell.values(metric.name)
    scored = np.isfinite(values).any(2).all(0)
    found = told(level(values[:, scored], HOW, kind="mean"))
    assert found is not None
    low, high = sorted((found["low"] * metric.scale, found["high"] * metric.scale))
    return {"value": found["value"] * metric.scale, "low": low, "high": high, "over": found["over"]}


def _of_sets(cell: Cell, metric: Metric) -> dict[str, Any] | None:
    """A Frechet distance and the like: one number a run, `name` or, where several have it, `name, space, against`; Student's interval."""
    by_key: dict[str, list[float]] = {}
    for run in cell.runs:
        for row in run.about["sets"]:
            if row["who"] == "policy" and row["value"] is not None:
                for key in (f"{row['name']}, {row['space']}, {row['against']}", row["name"]):
                    by_key.setdefault(key, []).append(row["value"] * metric.scale)
    values = by_key.get(metric.name, [])
    if len(values) != len(cell.runs):  # none, or of several spaces
        return None
    mean = float(np.mean(values))
    reach = stdtrit(len(values) - 1, (1 + HOW.level) / 2) * np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"value": mean, "low": mean - float(reach), "high": mean + float(reach), "over": "seeds" if len(values) > 1 else "nothing"}
