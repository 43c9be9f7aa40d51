"""What a paper's runs would miss on this machine, all of a table at once: weights, data, the GPU. Loads nothing, fetches nothing."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from alignbench import doctor, machine
from alignbench.assets import Asset, named
from alignbench.compose import Composed
from alignbench.machine import Row


def shortages(runs: Sequence[Composed]) -> list[Row]:
    """What is missing, and what is still to be fetched (a warning): each thing once, with its remedy."""
    found = {(row.name, row.what): row for row in _rows(runs) if row.state != "ok"}
    return list(found.values())


def _rows(runs: Sequence[Composed]) -> Iterator[Row]:
    for config in _distinct([each.config for each in runs], "trainer"):
        yield machine.device(config)
    weights: dict[tuple[str, str | None], Asset] = {}
    for config in _distinct([each.config for each in runs], "model", "reward", "eval"):
        for asset in named(config):
            weights.setdefault((asset.value, asset.revision), asset)
    yield from doctor.looked_for(list(weights.values()), doctor.Seen())
    for config in _distinct([each.config for each in runs], "method"):
        yield from doctor.labels(config)
    for config in _distinct([each.config for each in runs], "dataset", "eval"):
        yield doctor.dataset(config)


def _distinct(configs: Sequence[dict[str, Any]], *groups: str) -> list[dict[str, Any]]:
    """Of configs that are alike in these groups the first."""
    found: dict[str, dict[str, Any]] = {}
    for config in configs:
        found.setdefault(json.dumps([config[group] for group in groups], sort_keys=True), config)
    return list(found.values())
