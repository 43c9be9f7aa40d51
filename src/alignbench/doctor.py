"""`alignbench doctor ...`: what a run with these words would miss, before a GPU-second is spent. Loads no weights, fetches nothing."""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbench import machine
from alignbench.assets import OFFLINE, Asset, Damaged, Sizes, asked, here, made_by, named, sizes
from alignbench.check import is_object
from alignbench.compose import Composed, compose
from alignbench.config import MissingAsset, arguments, located
from alignbench.machine import Row, amount, nearest, one_line

WIDTH = 20  # of the checks' names
GENERATIONS = 3  # of a checkpoint at the worst moment: two are kept while the next is written
CHECKPOINT = 3 * 4  # bytes a trained parameter: weight and Adam's two moments
TRAINING = 4 * 4  # the same with its gradient
FILES = ("path", "file", "folder")  # what a dataset's or a method's own files are called in YAML


@dataclass
class Seen:
    """What the asset rows have found, for the rows after them."""

    sizes: Sizes | None = None
    to_fetch: float = 0.0  # bytes that are still to come


def doctor(words: list[str]) -> int:
    """The exit code: 0 where nothing is missing, else 3. Raises ConfigError where a run would."""
    composed = compose(words)
    print(f"A run of this would go to {composed.folder}\n")
    states = []
    for row in rows(composed):
        print(f"  {row.name:<{WIDTH}}  {row.state:<7}  {row.what}", flush=True)
        if row.remedy:
            print(f"  {'':<{WIDTH}}  {'':<7}  -> {row.remedy}", flush=True)
        states.append(row.state)
    missing, warned = states.count("missing"), states.count("warning")
    said = "Nothing is missing" if not missing else f"{missing} thing{'s are' if missing > 1 else ' is'} missing"
    print(f"\n{said}{f'; {warned} warning' + ('s' if warned > 1 else '') if warned else ''}.")
    return 3 if missing else 0


def rows(composed: Composed) -> Iterator[Row]:
    config, seen = composed.config, Seen()
    yield machine.versions()
    yield machine.torchvision()
    yield machine.device(config)
    yield from assets(config, seen)
    yield from labels(config)
    yield dataset(config)
    yield memory(config, seen)
    yield from disk(config, seen)
    yield machine.output(Path(config["output"]))


# --- memory


def memory(config: dict[str, Any], seen: Seen) -> Row:
    """The measured figure where the model's YAML has one, else an estimate from the weights alone."""
    model, sizes = config["model"], seen.sizes
    if measured := model.get("memory_gb"):
        need, said = measured * 1e9, f"{amount(measured * 1e9)} measured for DDPO with LoRA at micro-batch 1"
        said += "; a full copy needs more" * (config["adapter"] == "full")
    elif "path" not in model:
        return Row("memory", "ok", "no weights to speak of")
    elif sizes is None:
        return Row("memory", "warning", "not measured (conf/model: memory_gb), and not estimated while the weights are not here")
    else:
        need = (sizes.frozen + sizes.denoiser * (model.get("init") is not None)) * (2 if model.get("dtype") == "bfloat16" else 4)
        need += trained(config, sizes) * TRAINING
        said = f"at least {amount(need)}, an estimate: weights, gradients and Adam's moments, no activations"
    free = machine.free(config)
    if free is None:
        return Row("memory", "warning", f"{said}; how much is free is not known")
    if need > free:
        less = "adapter=lora" if config["adapter"] == "full" else "model.dtype=bfloat16" if model.get("dtype") == "float32" else ""
        return Row("memory", "missing", f"{said}; {amount(free)} are free", f"{less or 'a larger device'}, or free some")
    return Row("memory", "ok", f"{said}; {amount(free)} are free")


def trained(config: dict[str, Any], sizes: Sizes) -> int:
    """Parameters of the policy and of the method's other networks (a critic, an average), at most."""
    return sizes.trained * (1 + len(getattr(made_by(config["method"]), "copies", ())))


# --- weights, prompts, pictures


def assets(config: dict[str, Any], seen: Seen) -> Iterator[Row]:
    yield from looked_for(named(config), seen, config)


def looked_for(assets: Sequence[Asset], seen: Seen, config: dict[str, Any] | None = None) -> Iterator[Row]:
    """config: of the run that the sizes are for; None: sizes are not counted."""
    silent = ""  # why the Hub gave no answer: it is not asked twice
    for asset in assets:
        local, state = asset.hub is None or Path(asset.value).exists(), "is not here"
        try:
            found = here(asset)
        except Damaged as damage:
            found, state = None, f"is not whole: {damage}"
            if local or damage.cut:
                remedy = f"copy it again, or {asset.key}=<another>" if local else f"{asset.command} --force-download"
                yield Row(asset.key, "missing", f"{asset.value} {state}", remedy)
                continue
        if found is not None:
            if config is not None and asset.key == "model.path" and found.is_dir():
                with suppress(Damaged, OSError):
                    seen.sizes = sizes(found, asset, config)
            cached = "" if local else f" is in the Hub's cache{f', revision {asset.revision}' if asset.revision else ''}"
            yield Row(asset.key, "ok", f"{asset.value}{cached}")
        elif local:
            yield Row(asset.key, "missing", f"{asset.value}: no such file or folder", f"{asset.key}=<a folder, or an id of the Hub>")
        else:
            answer, why = ("silent", silent) if silent else asked(asset)
            silent = why if answer == "silent" else ""
            seen.to_fetch += 1e9 * (asset.gb or 0)
            yield absent(asset, state, answer, why)


def absent(asset: Asset, state: str, answer: str, why: str) -> Row:
    """Weights that are not in the Hub's cache, or not whole there: for the run to fetch, or missing."""
    if answer == "absent":
        return Row(asset.key, "missing", f"{asset.value}: {why}", f"{asset.key}=<another>")
    remedy = ("HF_HUB_OFFLINE=0 " if why == OFFLINE else "") + asset.command
    if answer == "gated" or asset.gated:
        page = f"its page on the Hub ({(asset.hub or (asset.value, None))[0]})"
        remedy = f"accept the terms on {page}, then `hf auth login`, then `{remedy}`"
    size = f"{asset.gb:g} GB of it are loaded" if asset.gb else "its size is not stated"
    what = f"{asset.value} {state} ({size}{f', {asset.licence}' if asset.licence else ''})"
    if answer == "there":
        return Row(asset.key, "warning", f"{what}; the run can fetch it{f' ({why})' if why else ''}", remedy)
    return Row(asset.key, "missing", f"{what}; {why}", remedy)


def files(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """The files that a node names, each with its key."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        below = f"{key}[{name}]" if isinstance(name, int) else f"{key}.{name}"
        if isinstance(value, str) and (name in FILES or value.startswith("package://")):
            yield below, value
        yield from files(value, below)


def labels(config: dict[str, Any]) -> Iterator[Row]:
    """What a method learns from beside the reward: a labels folder, pictures."""
    for key, value in files(arguments("method", config["method"]), "method"):
        if Path(located(value)).exists():
            yield Row(key, "ok", value)
        else:
            yield Row(
                key, "missing", f"{value}: no such file or folder", f"{key}=<folder>; `alignbench label outputs/<run>` makes one of labels"
            )


def dataset(config: dict[str, Any]) -> Row:
    node = config["dataset"]
    for key, value in files(node, "dataset"):
        if not Path(located(value)).exists():
            return Row("dataset", "missing", f"{key}={value}: no such file or folder", f"{key}=<a file or folder that exists>")
    if "repository" in node and (row := _from_the_hub(node)):
        return row
    make: Callable[..., Any] | None = made_by(node)
    if make is None or any(map(is_object, node.values())):
        return Row("dataset", "warning", "its files are here; the prompts were not read")
    try:
        prompts = make(**{key: value for key, value in node.items() if key != "_target_"})
        counts = {split: len(getattr(prompts, split)) for split in ("train", "validation", "test")}
    except (MissingAsset, ValueError, OSError) as error:
        return Row("dataset", "missing", one_line(error), "dataset=<another> (`alignbench ls dataset`)")
    if config["epochs"] and not counts["train"]:
        return Row("dataset", "missing", "the train split is empty and the method trains", "dataset.shares with some for train")
    for split, key in (("validation", "validation_prompts"), ("test", "prompts")):
        if config["eval"][key] > counts[split] and (config["epochs"] or split == "test"):
            what = f"eval.{key}={config['eval'][key]}, but the {split} split has {counts[split]} prompts"
            return Row("dataset", "missing", what, f"eval.{key}={counts[split]}")
    return Row("dataset", "ok", "prompts: " + ", ".join(f"{count:,} {split}" for split, count in counts.items()))


def _from_the_hub(node: dict[str, Any]) -> Row | None:
    """None where all files are in the cache and a commit says that they are the ones: nothing is asked of the Hub then."""
    from huggingface_hub import try_to_load_from_cache

    from alignbench.datasets.hub import fetch

    repository, revision = node["repository"], node["revision"]
    for file in node["files"]:
        try:
            found = try_to_load_from_cache(repository, file, revision=revision, repo_type="dataset")
        except ValueError as error:  # no repository's name
            return Row("dataset", "missing", one_line(error), "dataset.repository=<owner>/<name>")
        if not isinstance(found, str):
            return Row("dataset", "missing", f"{repository}: {file} is not here", fetch(repository, revision, node["files"]))
    pinned = re.fullmatch("[0-9a-f]{40}", revision or "")
    return None if pinned else Row("dataset", "warning", "its files are here; dataset.revision is no commit, so a run may fetch newer ones")


# --- disk and run folder


def disk(config: dict[str, Any], seen: Seen) -> Iterator[Row]:
    """Checkpoints go to the output, downloads to the Hub's cache: one row where both are on one disk."""
    places = {"output": nearest(Path(config["output"]))}
    needs = {"output": [(float(GENERATIONS * CHECKPOINT * trained(config, seen.sizes)), "checkpoints")] if seen.sizes else []}
    if seen.to_fetch:
        from huggingface_hub.constants import HF_HUB_CACHE

        cache = nearest(Path(HF_HUB_CACHE))
        same = cache.stat().st_dev == places["output"].stat().st_dev
        places |= {} if same else {"HF_HUB_CACHE": cache}
        needs.setdefault("output" if same else "HF_HUB_CACHE", []).append((seen.to_fetch, "downloads"))
    for key, place in places.items():
        need, free = sum(size for size, _ in needs[key]), shutil.disk_usage(place).free
        parts = ", ".join(f"{amount(size)} of {what}" for size, what in needs[key]) or "how much checkpoints need is not known"
        what = f"{amount(free)} free in {place}; needed: {parts}"
        if need > free:
            remedy = (
                f"output=<folder on a larger disk>{', adapter=lora' * (config['adapter'] == 'full')}"
                if key == "output"
                else f"export {key}=<folder>"
            )
            yield Row("disk", "missing", what, f"free {amount(need - free)} there, or {remedy}")
        else:
            yield Row("disk", "ok", what.replace("needed: how", "how"))
