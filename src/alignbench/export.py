"""`alignbench export RUN`: what a run has trained, in the files that other programs load, with a model card; sent to the Hub when asked."""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.config import PACKAGED, ConfigError, MissingAsset
from alignbench.report.model_card import Facts, card
from alignbench.report.record import read_result, write_atomically
from alignbench.signatures import nearest

if TYPE_CHECKING:
    from alignbench.experiment import Experiment
    from alignbench.models.pipeline import Pipeline

KEYS = ("to", "kohya", "pipeline", "push")
USAGE = "alignbench export <run folder> [to=FOLDER] [kohya=true] [pipeline=true] [push=NAME/REPOSITORY]"
LISTING = "export.json"  # what an export wrote: only that is ever replaced
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Order:
    run: Path
    to: Path
    kohya: bool
    pipeline: bool
    push: str | None


def export(words: list[str]) -> int:
    """The exit code. Raises ConfigError for what cannot be done as asked, MissingAsset where a checkpoint, disk or Hub is not there."""
    order = ordered(words)
    try:
        free(order.to)
        if order.push is not None:
            token()
        write(order)
    except (ConfigError, MissingAsset):
        raise
    except ValueError as error:
        raise ConfigError(f"export: {error}") from error
    except OSError as error:
        raise MissingAsset(f"export: {order.to} cannot be written ({error.strerror or error})") from error
    print(order.to)
    if order.push is not None:
        print(push(order.to, order.push))
    return 0


def ordered(words: list[str]) -> Order:
    if not words or "=" in words[0]:
        raise ConfigError(f"export: which run? {USAGE}")
    given: dict[str, str] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key not in KEYS:
            raise ConfigError(f"export: {word}: no such setting; {nearest(key, KEYS)}; {USAGE}")
        if not equals or not value or key in given:
            raise ConfigError(f"export: {word}: {'given twice' if key in given else 'no value'}; {USAGE}")
        if key in ("kohya", "pipeline") and value not in ("true", "false"):
            raise ConfigError(f"export: {word}: true or false is wanted")
        if key == "push" and not REPOSITORY.fullmatch(value):
            raise ConfigError(f"export: {word}: a repository on the Hub is NAME/REPOSITORY")
        given[key] = value
    run = Path(words[0])
    to = Path(given["to"]) if "to" in given else run / "export"
    return Order(run, to, given.get("kohya") == "true", given.get("pipeline") == "true", given.get("push"))


def free(to: Path) -> None:
    """Refuse a folder that holds anything but what an earlier export wrote there."""
    if not to.exists():
        return
    if not to.is_dir():
        raise ConfigError(f"export: to={to} is a file; name a folder")
    there = {path.relative_to(to).as_posix() for path in to.rglob("*") if not path.is_dir()}
    try:
        known = {LISTING, *json.loads((to / LISTING).read_text(encoding="utf-8"))["files"]} if there else set()
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    if foreign := sorted(there - known):
        raise ConfigError(f"export: to={to} holds {foreign[0]}, which no export wrote; name another folder, or move that away")


def write(order: Order) -> None:
    """Fill the folder beside its place, then put it there: a reader never meets half of one."""
    import logging

    from alignbench.experiment import Experiment
    from alignbench.models.pipeline import Pipeline

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    result = read_result(order.run)
    chosen = result["choices"]
    if result["adapter"] != "lora" and order.kohya:
        raise ConfigError("export: kohya=true is for a LoRA, and this run trained a full copy; take it out, or run with adapter=lora")
    experiment = Experiment.finished(order.run)
    policy, model = experiment.method.evaluated, experiment.model
    if not policy.trainable():
        raise ConfigError(f"export: method={chosen['method']} trains no weights; there is nothing to export")
    if not isinstance(model, Pipeline):
        raise ConfigError(f"export: model={chosen['model']} is no diffusers pipeline; nothing else could load it")
    who = str(policy.who)
    if order.kohya and model.component != "unet":
        raise ConfigError(f"export: kohya=true is for a UNet; model={chosen['model']} has a {model.component}; take it out")
    half = order.to.absolute().with_name(f".{order.to.absolute().name}.partial")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    try:
        model.export(who, half, experiment.spec)
        if order.kohya:
            model.export_kohya(who, half / "kohya.safetensors")
        if order.pipeline:
            model.export_pipeline(who, half / "pipeline")
        for file in sorted(half.rglob("*.json")):
            without_place(file)
        text = card(result, facts(experiment, model, who, chosen["model"], order))
        write_atomically(half / "README.md", text.encode())
        files = {path.relative_to(half).as_posix(): digest(path) for path in sorted(half.rglob("*")) if path.is_file()}
        listing = {"format": 1, "run": order.run.resolve().name, "hash": result["hash"], "files": files}
        write_atomically(half / LISTING, (json.dumps(listing, indent=1, sort_keys=True) + "\n").encode())
        if order.to.exists():
            shutil.rmtree(order.to)
        half.rename(order.to)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def facts(experiment: "Experiment", model: "Pipeline", who: str, name: str, order: Order) -> Facts:
    node = experiment.config["model"]
    return Facts(
        base=public(node["path"], name),
        revision=node["revision"],
        init=None if node["init"] is None else public(node["init"], f"{name}'s init"),
        licence=node["licence"],
        family=model.family,
        component=model.component,
        network=type(model.denoiser).__name__,
        who=who,
        prompt=experiment.prompts.test[0],
        rank=experiment.spec.rank,
        alpha=experiment.spec.alpha,
        kohya=order.kohya,
        pipeline=order.pipeline,
        deterministic=experiment.config["sampler"].get("deterministic", 0),
        window=experiment.config["sampler"].get("window"),
        pixels=experiment.config["eval"].get("pixels") or node.get("pixels"),
    )


def public(path: str, name: str) -> str:
    """A Hub id or package://folder as it is; a local folder's place is nobody's business."""
    return path if path.startswith(PACKAGED) or (REPOSITORY.fullmatch(path) and not Path(path).exists()) else f"<folder of {name}>"


def without_place(file: Path) -> None:
    """Take out of a config where on this machine its weights were loaded from."""
    config: Any = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(config, dict) and Path(str(config.get("_name_or_path") or "Hub/id")).is_absolute():
        del config["_name_or_path"]
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def token() -> None:
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise MissingAsset("export: push: nobody is logged in to the Hub; run `hf auth login`, or leave push out")


def push(folder: Path, repository: str) -> str:
    """Upload the folder to a model repository, made private if it is new; its address."""
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # of the client that it was built on

    try:
        hub = huggingface_hub.HfApi()
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Weights exported by alignbench")
    except (OSError, HTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingAsset(f"export: push={repository}: the Hub did not take it ({reason}); {folder} is complete, push it later") from error
    return f"{huggingface_hub.constants.ENDPOINT}/{repository}"
