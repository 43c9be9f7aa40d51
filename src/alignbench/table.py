"""`alignbench table FOLDER ...`: methods side by side, from the samples.parquet of their runs alone."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alignbench.config import ConfigError, MissingAsset
from alignbench.evaluation.compared import Cell, Run, common
from alignbench.evaluation.crossed import Bootstrap
from alignbench.evaluation.tabulate import tabulate
from alignbench.report.comparison import markdown, picture, rows_csv
from alignbench.report.latex import latex
from alignbench.report.record import read_about, read_run, read_samples, write_atomically
from alignbench.signatures import nearest

DEFAULTS: dict[str, str] = {"to": "", "metric": "", "level": "0.95", "replicates": "2000", "power": "0.8", "seed": "0"}
USAGE = "[FOLDER ...] [to=FOLDER] [metric=NAME] [level=0.95] [replicates=2000] [power=0.8]: run folders, or what holds them"
SETS = ("real", "precision_neighbours", "coverage_neighbours")
SAME = ("prompts", "images", "noise")  # of eval: what makes test images of two runs comparable one by one


@dataclass(frozen=True)
class Found:
    """A run's folder: finished, or begun and without results."""

    folder: Path
    said: dict[str, Any]  # run.json, or all of samples.parquet's
    run: Run | None


def table(words: list[str]) -> int:
    """Print the table and write it to a folder. The exit code. Raises ConfigError for what cannot be compared."""
    folders, given = asked("table", words)
    to = Path(given["to"]) if given["to"] else folders[0] / "table"
    print(write(folders, to, given))
    print(f"written to {to}: table.md, table.tex, table.csv, table.png and, with every digit, table.json", file=sys.stderr)
    return 0


def write(folders: list[Path], to: Path, given: dict[str, str]) -> str:
    """Write the comparison of the runs in these folders; the text of table.md. given: as DEFAULTS. Raises ConfigError, MissingAsset."""
    _, made = comparison("table", folders, given)
    save("table", to, files(made))
    return markdown(made)


def asked(verb: str, words: list[str]) -> tuple[list[Path], dict[str, str]]:
    """The folders and the settings that the words after a verb name; ConfigError for a word that is neither."""
    given = dict(DEFAULTS)
    for word in (word for word in words if "=" in word):
        key, _, value = word.partition("=")
        if key not in DEFAULTS or not value:
            why = nearest(key, DEFAULTS) if key not in DEFAULTS else "no value"
            raise ConfigError(f"{verb}: {word}: {why}; alignbench {verb} {USAGE}")
        given[key] = value
    return [Path(word) for word in words if "=" not in word] or [Path("outputs")], given


def comparison(verb: str, folders: list[Path], given: dict[str, str]) -> tuple[list[Found], dict[str, Any]]:
    """The runs in these folders and what is computed of them. Raises ConfigError, which names the verb."""
    try:
        how = Bootstrap(replicates=int(given["replicates"]), level=float(given["level"]), seed=int(given["seed"]))
        found = list(found_in(folders))
        return found, compared(found, given["metric"], how, float(given["power"]))
    except ValueError as error:
        raise ConfigError(f"{verb}: {error}") from error


def files(made: dict[str, Any]) -> dict[str, bytes]:
    """A comparison as files, by their names."""
    return {
        "table.json": (json.dumps(made, indent=1, sort_keys=True, allow_nan=False) + "\n").encode(),
        "table.csv": rows_csv(made).encode(),
        "table.md": markdown(made).encode(),
        "table.tex": latex(made).encode(),
        "table.png": picture(made),
    }


def save(verb: str, to: Path, made: dict[str, bytes]) -> None:
    try:
        to.mkdir(parents=True, exist_ok=True)
        for name, data in made.items():
            write_atomically(to / name, data)
    except OSError as error:
        raise MissingAsset(f"{verb}: to={to}: cannot be written ({error.strerror or error})") from error


def found_in(folders: list[Path]) -> Iterator[Found]:
    """The runs in folders that are runs or hold them."""
    there: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; {USAGE}")
        own = [folder] if _begun(folder) else sorted(each for each in folder.iterdir() if each.is_dir() and _begun(each))
        if not own:
            raise ValueError(f"{folder}: no runs in it; `python -m alignbench -m method=ddpo,kl_rlhf seed=0,1,2` makes some")
        there |= dict.fromkeys(each.resolve() for each in own)
    for folder in there:
        if (folder / "samples.parquet").is_file():
            about = read_about(folder)
            yield Found(folder, about, Run(about, [row for split in ("test", "validation") for row in read_samples(folder, split)]))
        else:
            yield Found(folder, read_run(folder), None)


def _begun(folder: Path) -> bool:
    return (folder / "samples.parquet").is_file() or (folder / "run.json").is_file()


def compared(found: list[Found], metric: str, how: Bootstrap, power: float, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One comparison for each model, dataset, sampler and evaluation among the runs. ValueError where runs do not fit together.

    names: of rows, by their cell; the others are named by their method and settings.
    """
    by_hash: dict[str, Found] = {}
    for each in sorted(found, key=lambda one: one.run is None):
        by_hash.setdefault(each.said["hash"], each)  # the same run in two places is one
    groups: dict[str, list[Found]] = {}
    for each in by_hash.values():
        if each.run is not None:
            groups.setdefault(json.dumps(terms(each.said), sort_keys=True), []).append(each)
    if not groups:
        raise ValueError(f"none of the {len(found)} runs is finished; the commands that began them continue them")
    rows = {(key, one.said["cell"], one.said.get("trained_cell", one.said["cell"])) for key, ones in groups.items() for one in ones}
    lost = [each for each in by_hash.values() if each.run is None]
    for each in lost:  # it is missing from its own row, and from those of what its training would have made
        for key, cell, trained in sorted(rows):
            if each.said["cell"] == trained:
                groups[key].append(replace(each, said=each.said | {"cell": cell}))
    return {
        "level": how.level,
        "replicates": how.replicates,
        "seed": how.seed,
        "power": power,
        "without_a_row": sorted(each.folder.name for each in lost if each.said["cell"] not in {trained for *_, trained in rows}),
        "comparisons": [_comparison(json.loads(key), ones, metric, how, power, names or {}) for key, ones in sorted(groups.items())],
    }


def terms(about: dict[str, Any]) -> dict[str, Any]:
    """What runs must share to stand in one table."""
    config = about["config"]
    return {
        **{group: about["choices"][group] for group in ("model", "dataset")},
        "track": about["track"],
        "sampler": about["sampler"],
        "of": {group: config[group] for group in ("dataset", "sampler")},
        "anchor": about["anchor"],
        "results_version": about["results_version"],
        **{key: config["eval"][key] for key in SAME},
        **{key: config["eval"].get(key) for key in SETS},  # what columns of sets mean
    }


def _comparison(
    shared: dict[str, Any], ones: list[Found], metric: str, how: Bootstrap, power: float, given: Mapping[str, str]
) -> dict[str, Any]:
    finished = [one.run for one in ones if one.run is not None]
    agree(finished)
    by_cell: dict[str, list[Found]] = {}
    for one in ones:
        by_cell.setdefault(one.said["cell"], []).append(one)
    names = labels([next(one.said for one in own if one.run) for own in by_cell.values()])
    cells = [
        Cell(
            given.get(cell, label),
            sorted((one.run for one in own if one.run), key=lambda run: run.about["seed"]),
            sorted(one.said["seed"] for one in own if one.run is None),
            finished[0],
        )
        for label, (cell, own) in zip(names, by_cell.items(), strict=True)
    ]
    made = tabulate(cells, _ranked(cells, metric), how, power)
    start = finished[0]
    judges = {name: identity for run in finished for name, identity in run.about["judges"].items()}
    return {
        **shared,
        "judges": judges,
        "test_images": len(start.images),
        "about": {metric["name"]: metric for run in finished for metric in run.about["metrics"]},
        **made,
    }


def agree(runs: list[Run]) -> None:
    """One reference and one judge under one name, or the differences would compare nothing."""
    seen: dict[str, tuple[Run, Any]] = {}
    for run in runs:
        if run.images != runs[0].images:
            raise ValueError(f"runs {_two(runs[0], run)} have other test images; give the folders of one evaluation")
        for name, identity in run.about["judges"].items():
            other, theirs = seen.setdefault(f"judge {name}", (run, identity))
            if identity != theirs:
                raise ValueError(f"runs {_two(other, run)} have two judges under the name {name}; give only runs with one of them")
        for name in run.labels:
            other, _ = seen.setdefault(f"column {name}", (run, None))
            if not np.allclose(other.table("reference", name), run.table("reference", name), rtol=1e-3, atol=1e-4, equal_nan=True):
                raise ValueError(
                    f"runs {_two(other, run)} score the reference's images differently by {name}: other weights or another machine"
                )


def _two(one: Run, other: Run) -> str:
    return f"{one.about['hash'][:10]} and {other.about['hash'][:10]}"


def labels(abouts: list[dict[str, Any]]) -> list[str]:
    """A row's name: its method, and the settings in which rows of that method differ."""
    flat = [dict(_leaves({key: value for key, value in about["config"].items() if key != "seed"})) for about in abouts]
    names = []
    for about, own in zip(abouts, flat, strict=True):
        method = about["choices"]["method"]
        same = [other for rival, other in zip(abouts, flat, strict=True) if rival["choices"]["method"] == method]
        changed = sorted(key for key in own if len({repr(other.get(key)) for other in same}) > 1)
        rewards = {rival["choices"]["reward"] for rival in abouts if rival["choices"]["method"] == method}
        named = [f"reward={about['choices']['reward']}"] if len(rewards) > 1 else []  # a choice says more than its settings
        settings = [_setting(key, own) for key in changed if not (named and key.startswith("reward."))]
        names.append(", ".join([method, *named, *settings]))
    twice = {name for name in names if names.count(name) > 1}  # what differs is in no setting: the content of a file
    return [f"{name}, {about['cell'][:6]}" if name in twice else name for name, about in zip(names, abouts, strict=True)]


def _setting(key: str, config: dict[str, Any]) -> str:
    return f"{key.removeprefix('method.').removeprefix('evaluated.')}={config[key]}"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _ranked(cells: list[Cell], metric: str) -> str | None:
    """What methods are compared by: gold if every row has it, else a held-out judge; never what one of them was trained on."""
    trained = {name for cell in cells for name in cell.named("trained")}
    able = [name for label in ("gold", "held out") for name in common(cells, label)]
    if metric and metric in trained:
        raise ValueError(f"metric={metric}: {metric} was trained on, and is no evidence; choose {' or '.join(able) or 'another'}")
    if metric and metric not in able:
        raise ValueError(f"metric={metric}: no judge that every row has and none was trained on; {nearest(metric, able)}")
    return metric or next(iter(able), None)
