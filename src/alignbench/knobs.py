"""What a search is asked to do: conf/hparams_search/<name>.yaml and what the command line says of it, checked."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignbench.check import checked, read_choice
from alignbench.compose import Composed, parse
from alignbench.config import ConfigError, choices, conf_folder
from alignbench.ranges import Count, Index, Text

GROUP = "hparams_search"


@dataclass(frozen=True, kw_only=True)
class Settings:
    trials: Count  # a method
    metric: Text  # a column of samples.parquet, or `trained`
    direction: Literal["maximize", "minimize"]
    sampler: Literal["tpe", "random"]
    startup: Count  # random trials before tpe
    seed: Index  # of the sampler
    parallel: Count  # trials asked for at a time
    space: dict  # method -> its knob -> Range


@dataclass(frozen=True, kw_only=True)
class Range:
    low: float
    high: float
    log: bool = False


@dataclass
class Side:
    """One method's part of a search."""

    method: str
    knob: str
    range: Range
    words: list[list[str]]  # a seed each
    bases: list[Composed]  # the same, before the knob is turned
    study: Any
    rows: list[dict[str, Any]] = field(default_factory=list)  # of trials.csv

    def best(self, direction: str) -> dict[str, Any] | None:
        done = [row for row in self.rows if row["gain"] is not None]
        return (max if direction == "maximize" else min)(done, key=lambda row: row["gain"], default=None)


def split(overrides: Sequence[str]) -> tuple[str, Settings, list[str]]:
    """The search's name, its settings and the words that its runs are made of. Raises ConfigError."""
    conf = conf_folder()
    parsed = parse(overrides, conf)
    name = next((each.value() for each in parsed if each.key_or_group == GROUP), None)
    if name is None:
        raise ConfigError(f"{GROUP}: which one? add {GROUP}={'|'.join(choices(GROUP, conf))}")
    given = {each.key_or_group.partition(".")[2]: each.value() for each in parsed if each.key_or_group.startswith(f"{GROUP}.")}
    node = checked(GROUP, read_choice(GROUP, str(name), conf) | given, Settings, {GROUP: str(name)}, conf)
    own = [str(each.input_line) for each in parsed if each.key_or_group.partition(".")[0] != GROUP]
    return str(name), Settings(**node), own


def knob_of(name: str, settings: Settings, method: str) -> tuple[str, Range]:
    key, file = f"{GROUP}.space.{method}", f"conf/{GROUP}/{name}.yaml"
    if method not in settings.space:
        raise ConfigError(f"{key} ({file}): method={method} has no knob there; add `{method}: {{method.<key>: {{low: ..., high: ...}}}}`")
    knobs = settings.space[method]
    if not isinstance(knobs, dict) or len(knobs) != 1:
        raise ConfigError(f"{key} ({file}): {knobs!r}; one knob a method, so that all are tuned as much: keep one")
    (knob, node), conf = next(iter(knobs.items())), conf_folder()
    if not isinstance(node, dict):
        raise ConfigError(f"{key}.{knob} ({file}): {node!r} is no range; write {{low: ..., high: ..., log: true}}")
    range_ = Range(**checked(f"{key}.{knob}", node, Range, {GROUP: name}, conf))
    if not range_.low < range_.high or (range_.log and range_.low <= 0):
        raise ConfigError(f"{key}.{knob} ({file}): {range_.low:g} to {range_.high:g}; low is below high, and above 0 where log is true")
    return knob, range_
