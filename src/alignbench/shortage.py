"""What a paper's runs would miss on this machine, all of a table at once: weights, data, the GPU. Loads nothing, fetches nothing."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alignbench import doctor, machine
from alignbench.assets import Asset, named
from alignbench.compose import Composed
from alignbench.config import located
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
    seen = doctor.Seen()
    yield from doctor.looked_for(list(weights.values()), seen)
    if seen.to_fetch:
        yield Row("in all", "warning", f"{machine.amount(seen.to_fetch)} of weights to fetch, as far as their sizes are stated")
    for config in _distinct([each.config for each in runs], "eval"):
        yield from pictures(config)
    for config in _distinct([each.config for each in runs], "method"):
        yield from doctor.labels(config)
    for config in _distinct([each.config for each in runs], "dataset", "eval"):
        yield doctor.dataset(config)


def pictures(config: dict[str, Any]) -> Iterator[Row]:
    """The real pictures that sets of images are compared with."""
    for key, value in doctor.files(config["eval"]["real"], "eval.real"):
        if not Path(located(value)).exists():
            yield Row(key, "missing", f"{value}: no such file or folder", f"{key}=<a folder of pictures, listed as docs/datasets.md says>")


def _distinct(configs: Sequence[dict[str, Any]], *groups: str) -> list[dict[str, Any]]:
    """Of configs that are alike in these groups the first."""
    found: dict[str, dict[str, Any]] = {}
    for config in configs:
        found.setdefault(json.dumps([config[group] for group in groups], sort_keys=True), config)
    return list(found.values())
