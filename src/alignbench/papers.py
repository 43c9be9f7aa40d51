"""What stands in experiments/<table>/ by hand: runs.yaml, what is run and claimed, and expected.csv, what the paper printed."""

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import MinLen

from alignbench.config import ConfigError
from alignbench.evaluation.claims import REFERENCE, Claim
from alignbench.ranges import Index, NonNegative, Text
from alignbench.signatures import nearest

Seeds = Annotated[list[Index], MinLen(1)]
TIERS = ("sandbox", "paper")
FIELDS = {  # of a claim, by its kind: those that it needs, and no other of them
    "difference": {"metric"},
    "matched": {"metric", "at"},
    "locality": {"inside", "outside"},
}
SAYS_HOW = "docs/reproduce.md says what stands there"
TAGS = {"V": "verified in the paper", "S": "of a secondary source"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """The runs of a row: words of the front door without seed= and output=. None: nothing of ours can be its run, and why."""

    __pydantic_config__ = {"extra": "forbid"}
    words: list[Text] | None
    seeds: Seeds | None = None  # the table's where it has none of its own
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Ours for one of the paper's, and what it is multiplied with to be in the paper's unit."""

    __pydantic_config__ = {"extra": "forbid"}
    name: Text
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    __pydantic_config__ = {"extra": "forbid"}
    rows: dict[str, Row]
    claims: list[Claim] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Paper:
    __pydantic_config__ = {"extra": "forbid"}
    gpu_hours: NonNegative | None  # all seeds of all trained rows; None where nobody knows
    gpu_hours_source: str = ""
    words: list[Text] = field(default_factory=list)  # added to each row's
    metrics: dict[str, Metric | None]  # of expected.csv -> ours; None: no judge here gives it
    rows: dict[str, Row]
    claims: list[Claim] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """runs.yaml."""

    __pydantic_config__ = {"extra": "forbid"}
    title: Text
    arxiv: Text
    seeds: Seeds
    sandbox: Sandbox
    paper: Paper


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A line of expected.csv: one number of the paper's table."""

    row: str
    metric: str
    value: str  # as printed; empty: no source gives it
    unit: str
    tolerance: str  # in the unit, ours; empty only where value is
    paper: str
    arxiv: str
    table: str
    benchmark: str
    tag: str
    note: str

    def within(self, ours: float) -> bool:
        """Whether ours counts as the same; a number at the edge does, whatever binary fractions make of it."""
        apart = abs(ours - float(self.value))
        return apart <= float(self.tolerance) or math.isclose(apart, float(self.tolerance), rel_tol=1e-9, abs_tol=1e-12)


@dataclass(frozen=True)
class PaperTable:
    folder: Path
    runs: Runs
    printed: list[Printed]

    @property
    def name(self) -> str:
        return self.folder.name

    def rows(self, tier: str, seeds: list[int] | None = None) -> dict[str, tuple[list[str], list[int]]]:
        """Of each row that runs its words and seeds. seeds: in place of the table's; a row with its own keeps as many of them."""
        part = self.runs.sandbox if tier == "sandbox" else self.runs.paper
        more = self.runs.paper.words if tier == "paper" else []
        taken = seeds or self.runs.seeds
        return {
            name: ([*row.words, *more], taken if row.seeds is None else row.seeds[: len(taken)])
            for name, row in part.rows.items()
            if row.words is not None
        }

    def claims(self, tier: str) -> list[Claim]:
        return self.runs.sandbox.claims if tier == "sandbox" else self.runs.paper.claims

    @cached_property
    def sources(self) -> tuple[bytes, bytes]:
        return (self.folder / "runs.yaml").read_bytes(), (self.folder / "expected.csv").read_bytes()


def tables(root: Path, names: Iterable[str] = ()) -> list[PaperTable]:
    """Those of these names, or all. ConfigError where one is not there or not as it should be."""
    if not root.is_dir():
        raise ConfigError(f"reproduce: {root}: no such folder; go to the root of the repository, where the papers' tables are")
    there = {each.name: each for each in sorted(root.iterdir()) if (each / "expected.csv").is_file()}
    if not there:
        raise ConfigError(f"reproduce: {root}: no folder in it has an expected.csv; go to the root of the repository")
    if wrong := next((name for name in names if name not in there), None):
        raise ConfigError(f"reproduce: {wrong}: no such table; {nearest(wrong, there)}")
    return [read(there[name]) for name in dict.fromkeys(names) or there]


def read(folder: Path) -> PaperTable:
    runs = _runs(folder / "runs.yaml")
    printed = _printed(folder / "expected.csv")
    for tier in TIERS:
        _claims(folder / "runs.yaml", tier, getattr(runs, tier))
    for line in printed:
        if (row := row_of(line, runs.paper.rows)) is None:
            raise ConfigError(
                f"{folder / 'runs.yaml'}: paper.rows: no {line.row}, which expected.csv has; {nearest(line.row, runs.paper.rows)}"
                " (a row that cannot be run has words: null and why)"
            )
        others = {each.benchmark for each in printed if (row_of(each, runs.paper.rows), each.metric) == (row, line.metric)}
        if runs.paper.rows[row].words is not None and len(others) > 1:
            raise ConfigError(
                f"{folder / 'runs.yaml'}: paper.rows: {row} is one run, and expected.csv has its {line.metric} on {len(others)} "
                f"benchmarks; write a row for each, as '{line.row}, {line.benchmark}'"
            )
        if line.metric not in runs.paper.metrics:
            raise ConfigError(
                f"{folder / 'runs.yaml'}: paper.metrics: no {line.metric}, which expected.csv has; "
                f"add {line.metric}: {{name: <ours>}}, or null"
            )
    for name, own in (*runs.sandbox.rows.items(), *runs.paper.rows.items()):
        if own.words is None and not own.why:
            raise ConfigError(f"{folder / 'runs.yaml'}: row {name}: words: null without why; say why nothing here can be its run")
    return PaperTable(folder, runs, printed)


def row_of(line: Printed, rows: Iterable[str]) -> str | None:
    """The row of runs.yaml that a printed number is of: `<row>, <benchmark>`, else `<row>`."""
    return next((name for name in (f"{line.row}, {line.benchmark}", line.row) if name in rows), None)


# --- runs.yaml


def _runs(file: Path) -> Runs:
    from pydantic import TypeAdapter, ValidationError

    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); {SAYS_HOW}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{where}: not YAML ({getattr(error, 'problem', None) or 'no UTF-8'}); mend that line") from None
    for tier in said.values() if isinstance(said, dict) else ():
        if isinstance(tier, dict) and isinstance(rows := tier.get("rows"), dict):
            tier["rows"] = {name: {"words": row} if isinstance(row, list) else row for name, row in rows.items()}
    try:
        return TypeAdapter(Runs).validate_json(json.dumps(said, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(each) for each in first["loc"])
        raise ConfigError(f"{file}: {key or 'all of it'}: {_plain(first)}; {SAYS_HOW}") from None


def _plain(error: Any) -> str:
    match error["type"]:
        case "missing":
            return "missing"
        case "unexpected_keyword_argument":
            return "no such key"
        case _:
            return f"{str(error['input'])[:60]!r} is no value for it ({error['msg'][:1].lower()}{error['msg'][1:]})"


def _claims(file: Path, tier: str, part: Sandbox | Paper) -> None:
    able = [name for name, row in part.rows.items() if row.words is not None]
    for n, claim in enumerate(part.claims, start=1):
        where = f"{file}: {tier}.claims, claim {n}"
        needed = FIELDS[claim.kind]
        given = {name for name in set().union(*FIELDS.values()) if getattr(claim, name)}
        if given != needed:
            wrong = f"no {min(needed - given)}" if needed - given else f"{min(given - needed)} is not for it"
            raise ConfigError(f"{where}: kind {claim.kind}: {wrong}; it has {', '.join(sorted(needed))}, a and b")
        a, b = claim.rows
        if not a or (not b and claim.kind == "matched"):
            raise ConfigError(f"{where}: a and b name rows; b may be {REFERENCE}, but not where kind is matched")
        if claim.kind != "matched" and max(len(a), len(b)) > 1:
            raise ConfigError(f"{where}: kind {claim.kind} compares one row with one; a list is for kind matched")
        if wrong_row := next((name for name in (*a, *b) if name not in able), None):
            raise ConfigError(f"{where}: {wrong_row}: no such row in {tier}.rows; {nearest(wrong_row, able)}")


# --- expected.csv


def _printed(file: Path) -> list[Printed]:
    names = [each.name for each in fields(Printed)]
    try:
        lines = list(csv.reader(file.read_text(encoding="utf-8").splitlines(), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); {SAYS_HOW}") from None
    if not lines or lines[0] != names:
        raise ConfigError(f"{file}: line 1: its columns are {','.join(lines[0]) if lines else 'none'}; write {','.join(names)}")
    found: dict[tuple[str, str, str], Printed] = {}
    for n, cells in enumerate(lines[1:], start=2):
        where = f"{file}: line {n}" + (f", row {cells[0]}" if cells and cells[0] else "")
        if len(cells) != len(names):
            raise ConfigError(f"{where}: {len(cells)} values for {len(names)} columns; quote a value that has a comma")
        line = Printed(**dict(zip(names, cells, strict=True)))
        for name in ("row", "metric", "table"):
            if not getattr(line, name):
                raise ConfigError(f"{where}: no {name}; give it")
        for name in ("value", "tolerance"):
            if line.value and not _is_number(getattr(line, name)):
                raise ConfigError(
                    f"{where}: {name} {getattr(line, name)!r} is no number; write one, or leave value empty if no source gives it"
                )
        if line.value and not float(line.tolerance) >= 0:
            raise ConfigError(f"{where}: tolerance {line.tolerance} is below 0; write how far ours may be")
        if line.value and line.tag not in TAGS:
            raise ConfigError(f"{where}: tag {line.tag!r}; write {' or '.join(f'{tag} ({what})' for tag, what in TAGS.items())}")
        key = (line.row, line.metric, line.benchmark)
        if key in found:
            raise ConfigError(f"{where}: {line.metric} of it is there twice{f' on {line.benchmark}' if line.benchmark else ''}; keep one")
        found[key] = line
    if not found:
        raise ConfigError(f"{file}: no line; write one for each number of the paper's table")
    return list(found.values())


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
