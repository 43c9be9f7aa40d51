"""From the words of a command line to one checked, fully resolved config, its identity and its folder; the only place that asks Hydra."""

import hashlib
import itertools
import json
import math
import re
import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignbench.check import NODES, ROOTS, check, file_of, read_choice, short
from alignbench.config import GROUPS, HOST_ONLY, ConfigError, arguments, choices, conf_folder, parted
from alignbench.datasets.shards import matches
from alignbench.signatures import arguments_of, constructor_of, fact_of, nearest

RESULTS_VERSION = 2  # raised by hand when the same config gives other numbers
OVERLAYS = ("recipe", "experiment")
LONGEST = 10_000  # characters of a word, and MOST jobs of a sweep: more is a slip, and would be read for minutes
MOST = 1000
# ends of keys whose files count in a run's identity by what is in them
FILES = (
    *(".path", ".init", ".script", ".requirements", ".head", ".scorer", ".tokenizer", ".clip", ".metadata"),
    *(".train", ".validation", ".test"),
)
FOLDERS = (".folder",)  # and of whose files the names and sizes do
LISTINGS = (".jsonl", ".csv", ".json", ".txt")  # of a folder of data: small, and by what is in them
FACT_KEYS = ("method.track", "model.tracks")


@dataclass(frozen=True)
class Composed:
    choices: dict[str, str]  # group -> choice; `sampler` is never auto, absent recipes and experiments are left out
    config: dict  # plain and resolved; facts kept (config.arguments takes them out)
    identity: dict  # the config without the keys that only say where and how fast
    hash: str  # sha256 of the identity, the assets and RESULTS_VERSION
    cell: str  # the same without the seed: what the runs of one row of a table share
    folder: Path
    track: str
    command: str  # what to type to get this run again, wherever its results go

    @property
    def entry(self) -> dict[str, str]:
        """What the ledger calls this run."""
        return {"hash": self.hash, "name": self.folder.name, "command": self.command}

    @property
    def named(self) -> dict[str, str]:
        """The choices that a result depends on."""
        return {group: choice for group, choice in self.choices.items() if not _host_only(group)}

    @property
    def elsewhere(self) -> bool:
        """Whether the run is for another process to make: a cluster's, say."""
        return self.choices["launcher"] != "local"


def compose(overrides: Sequence[str], conf: Path | None = None) -> Composed:
    """Compose, check and resolve. Raises ConfigError, one line, before any folder is made or anything heavy is imported."""
    conf = (conf or conf_folder()).resolve()
    parsed = parse(overrides, conf)
    if swept := next((each for each in parsed if each.is_sweep_override()), None):
        raise ConfigError(f"{swept.key_or_group}: several values make a sweep; add -m, or quote the value if it is one word with a comma")
    if searched := next((each for each in parsed if each.key_or_group.partition(".")[0] == "hparams_search"), None):
        raise ConfigError(f"{searched.key_or_group}: a search is many runs and no part of one; add -m without --cfg, or take it out")
    try:
        chosen, track, config = _resolve(parsed, conf)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        where = f"conf/{Path(at.name).relative_to(conf)}, line {at.line + 1}" if at and Path(at.name).is_relative_to(conf) else "conf"
        raise ConfigError(f"{where}: not YAML ({error.problem}); mend that line or the one before") from None
    except RecursionError:
        raise ConfigError(f"{short(max(overrides, key=len, default=''))}: nested too deeply; write a plainer value") from None
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{_one_line(error)}; see `alignbench --help` for what can be set") from error
    config = check(config, chosen, conf)
    if not config["epochs"] and config["method"].get("trains", True):
        raise ConfigError(f"epochs (conf/config.yaml): 0 is no value for it; method={chosen['method']} trains: set 1 or more")
    _fitting_reward(chosen, conf)
    identity = _identity(config)
    digest = _hash(identity, Path(config["output"]))
    name = _name(chosen, config["seed"], digest)
    words = sorted(str(each.input_line) for each in parsed if not _host_only(each.key_or_group))
    command = shlex.join(["python", "-m", "alignbench", *words])
    cell = _hash({key: value for key, value in identity.items() if key != "seed"}, Path(config["output"]))
    return Composed(chosen, config, identity, digest, cell, Path(config["output"]) / name, track, command)


def reseeded(composed: Composed, seed: int) -> Composed:
    """What `compose` of the same words with another `seed=` gives, without asking Hydra again: a config only depends on its seed in `seed`.

    ValueError where the words give no seed, or another value is read from it.
    """
    words = shlex.split(composed.command)
    if not any(word.startswith("seed=") for word in words) or any("${" in word for word in words):
        raise ValueError(f"{composed.command}: cannot be given another seed; compose it anew")
    config, identity = composed.config | {"seed": seed}, composed.identity | {"seed": seed}
    digest = _hash(identity, Path(config["output"]))
    folder = Path(config["output"]) / _name(composed.choices, seed, digest)
    command = shlex.join(f"seed={seed}" if word.startswith("seed=") else word for word in words)
    return replace(composed, config=config, identity=identity, hash=digest, folder=folder, command=command)


def _name(chosen: dict[str, str], seed: int, digest: str) -> str:
    return "-".join([*(chosen[group] for group in ("method", "model", "reward", "dataset")), f"s{seed}", digest[:10]])


def sweep(overrides: Sequence[str], conf: Path | None = None) -> list[list[str]]:
    """The overrides of every job of `-m`, in Hydra's order: the last key varies fastest."""
    values = []
    for each in parse(overrides, (conf or conf_folder()).resolve()):
        key = each.key_or_group
        if each.is_sweep_override() and not each.is_discrete_sweep():
            raise ConfigError(f"{key}: an interval cannot be enumerated; list the values: {key}=1,2,3")
        listed = each.sweep_string_iterator() if each.is_sweep_override() else [_raw(each)]
        values.append([f"{key}={value}" for value in itertools.islice(listed, MOST + 1)])
        if math.prod(map(len, values)) > MOST:
            raise ConfigError(f"{key}: makes more than {MOST} jobs; split the sweep")
    return [list(job) for job in itertools.product(*values)]


# --- the words


def parse(overrides: Sequence[str], conf: Path) -> list[Override]:
    """Hydra's grammar, less what a run does not need: deletions, packages, hydra.* itself, resolvers."""
    parser = OverridesParser.create()
    parsed: dict[str, Override] = {}
    for word in overrides:
        if len(word) > LONGEST:
            raise ConfigError(f"{short(word)}: {len(word)} characters; a setting has at most {LONGEST}")
        try:
            override = parser.parse_override(word)
        except (HydraException, ValueError, RecursionError) as error:
            why = _one_line(error).partition(" expecting")[0]
            raise ConfigError(
                f"{short(word)}: {why}; write key=value, with quotes around a value that holds brackets, commas or '='"
            ) from None
        key = override.key_or_group
        if not key:
            raise ConfigError(f"{short(word)}: no key before '='; write key=value")
        if key in parsed and _raw(parsed[key]) != _raw(override):
            raise ConfigError(f"{key}: given twice, as {short(parsed[key].input_line)} and {short(word)}; keep one")
        _allow(override, conf)
        parsed[key] = override
    return list(parsed.values())


def _raw(override: Override) -> str:
    """The value as it was typed."""
    return (override.input_line or "").partition("=")[2]


def _allow(override: Override, conf: Path) -> None:
    key, head = override.key_or_group, re.split(r"[./@]", override.key_or_group)[0]
    if override.type == OverrideType.DEL:
        remedy = f"choose another (see `alignbench ls {key}`)" if key in GROUPS else f"set it: {key}=..."
        raise ConfigError(f"~{key}: nothing can be deleted; {remedy}")
    if head == "hydra":
        raise ConfigError(f"{key}: Hydra's own settings are fixed here; where results go is output=<folder>, a sweep is -m")
    if override.package is not None or "/" in key:
        raise ConfigError(f"{key}: there is no such group or package; {nearest(head, GROUPS)}")
    if key in FACT_KEYS or key.startswith("model.tracks."):
        raise ConfigError(f"{key} (conf/{head}): a fact about the {head}, not a setting; write another conf/{head}/<name>.yaml instead")
    if _reads_outside(_raw(override)):
        raise ConfigError(
            f"{key}: {short(_raw(override))} reads from outside the config; a run depends on its config alone: write the value"
        )
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        raise ConfigError(f"{key}: glob(...) is not available; list the values: {key}=a,b")
    if key in GROUPS:
        if not override.is_sweep_override():
            _allow_choice(key, override.value(), conf)
        elif override.is_discrete_sweep():
            for value in override.sweep_string_iterator():
                _allow_choice(key, value, conf)


def _allow_choice(group: str, choice: Any, conf: Path) -> None:
    there = choices(group, conf)
    text = "null" if choice is None else str(choice)
    if text not in there:
        raise ConfigError(f"{group}={short(text)[1:-1]} (conf/{group}): no such choice; {nearest(text, there)}")


# --- composition


def _resolve(parsed: list[Override], conf: Path) -> tuple[dict[str, str], str, dict]:
    """The choices, the track, and the config with every interpolation and `auto` replaced."""
    groups = [f"{each.key_or_group}={_raw(each)}" for each in parsed if each.key_or_group in GROUPS]
    values = [f"++{each.key_or_group}={_raw(each)}" for each in parsed if each.key_or_group not in GROUPS]
    chosen, config = _hydra(groups, conf)
    for each in parsed:
        _reachable(each.key_or_group, config, chosen, conf)
    for group in ROOTS:
        _allow_choice(group, chosen.get(group), conf)

    if read_choice("method", chosen["method"], conf).get("trains") is False:
        if given := next((word for word in values if word.startswith("++epochs=")), None):
            raise ConfigError(f"{given[2:]}: method={chosen['method']} does not train; take it out")
        values.append("++epochs=0")
    track, facts = _track(config, chosen, conf)
    if chosen["sampler"] == "auto":
        groups = [word for word in groups if not word.startswith("sampler=")] + [f"sampler={facts['samplers'][0]}"]
        _allow_choice("sampler", facts["samplers"][0], conf)
    elif chosen["sampler"] not in facts["samplers"]:
        raise ConfigError(
            f"sampler={chosen['sampler']} (conf/model/{chosen['model']}.yaml: tracks): method={chosen['method']} is {track}, for which "
            f"model={chosen['model']} has other samplers; choose {' or '.join(facts['samplers'])}, or leave it auto"
        )
    chosen, config = _hydra([*groups, *values], conf)
    for key in ("adapter", "guidance"):
        if config.get(key) == "auto":
            config[key] = facts[key]
    return chosen, track, _plain(config, chosen, conf)


def _fitting_reward(chosen: dict[str, str], conf: Path) -> None:
    """A method that needs a pixel map or a gradient gets a reward that has one."""
    needs = read_choice("method", chosen["method"], conf).get("needs", "score")
    if needs == "score":
        return
    fact, what = {"map": ("spatial", "a pixel map"), "gradient": ("differentiable", "a gradient")}[needs]
    able = [name for name in choices("reward", conf) if fact_of(read_choice("reward", name, conf).get("_target_", ""), fact) is True]
    if chosen["reward"] not in able:
        raise ConfigError(
            f"reward={chosen['reward']} (conf/method/{chosen['method']}.yaml: needs): method={chosen['method']} needs {what}, which it has "
            f"not; choose reward={'|'.join(able) or 'none yet'}"
        )


def _hydra(overrides: list[str], conf: Path) -> tuple[dict[str, str], DictConfig]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mistake is one line, and ours
        with initialize_config_dir(str(conf), version_base="1.3"):
            config = hydra_compose("config", overrides, return_hydra_config=True)
    chosen = {group: choice for group, choice in config.hydra.runtime.choices.items() if group in GROUPS and choice is not None}
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return {group: chosen[group] for group in GROUPS if group in chosen and choices(group, conf).get(chosen[group]) is not None}, config


def _reachable(key: str, config: DictConfig, chosen: dict[str, str], conf: Path) -> None:
    """A dotted key must not lead through a value."""
    node: Any = config
    for depth, part in enumerate(parts := key.split(".")):
        if node is not None and not isinstance(node, DictConfig):
            above = ".".join(parts[:depth])
            raise ConfigError(f"{key} ({file_of(above, chosen, conf)}): {above} holds a value, not keys; did you mean {above}?")
        node = node._get_node(part) if node is not None else None


def _track(config: DictConfig, chosen: dict[str, str], conf: Path) -> tuple[str, dict]:
    """The method's track and what the model says of it; both YAMLs are checked in full later."""
    plain: Any = OmegaConf.to_container(config)
    track: Any = (plain.get("method") or {}).get("track")
    tracks: Any = (plain.get("model") or {}).get("tracks")
    for key, value, kind in (("method.track", track, str), ("model.tracks", tracks, dict)):
        if not isinstance(value, kind):
            raise ConfigError(f"{key} ({file_of(key, chosen, conf)}): {short(value)}; say it there, as its neighbours do")
    if track == "any":
        track = next(iter(tracks), track)
    if track not in tracks:
        able = [name for name in choices("model", conf) if track in (read_choice("model", name, conf).get("tracks") or {})]
        fitting = [name for name in choices("method", conf) if read_choice("method", name, conf).get("track") in tracks]
        raise ConfigError(
            f"method={chosen['method']} (conf/model/{chosen['model']}.yaml: tracks) is {track}, which model={chosen['model']} is not; "
            f"choose model={'|'.join(able) or 'none yet'} or method={'|'.join(fitting) or 'none yet'}"
        )
    facts = tracks[track]
    if not isinstance(facts, dict) or not facts.get("samplers") or not {"samplers", "adapter", "guidance"} <= facts.keys():
        where = f"model.tracks.{track} (conf/model/{chosen['model']}.yaml)"
        raise ConfigError(f"{where}: {short(facts)}; it needs samplers, adapter and guidance")
    return str(track), facts


def _plain(config: DictConfig, chosen: dict[str, str], conf: Path) -> dict:
    """The config without interpolations: each `${key}` replaced by the value there, and nothing read from outside the config."""
    for group in OVERLAYS:
        if group in config:
            raise ConfigError(f"{group} (conf/{group}/{chosen[group]}.yaml): no header; make `# @package _global_` its first line")
    for key, value in _leaves(OmegaConf.to_container(config)):
        if value == "???":
            raise ConfigError(f"{key} ({file_of(key, chosen, conf)}): no value yet; add {key}=<value>")
        if isinstance(value, str) and _reads_outside(value):
            raise ConfigError(f"{key} ({file_of(key, chosen, conf)}): {short(value)} reads from outside the config; write the value itself")
    try:
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except (OmegaConfBaseException, RecursionError) as error:
        key = str(getattr(error, "full_key", None) or "an interpolation")
        where = f"{key} ({file_of(key, chosen, conf)})"
        raise ConfigError(f"{where}: cannot be resolved ({_one_line(error)}); write the value itself") from None


def _reads_outside(text: str) -> bool:
    """Whether a resolver (`${name:...}`) stands in it: what is left of interpolations after the plain ones, innermost first."""
    while (rest := re.sub(r"\$\{[^${}:]*\}", "_", text)) != text:
        text = rest
    return "${" in text


def _leaves(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for name, item in value.items() for leaf in _leaves(item, f"{key}.{name}" if key else str(name))]
    if isinstance(value, list):
        return [leaf for index, item in enumerate(value) for leaf in _leaves(item, f"{key}[{index}]")]
    return [(key, value)]


def _one_line(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# --- identity


def _host_only(key: str) -> bool:
    head, _, rest = key.partition(".")
    keys = HOST_ONLY.get(head, ())
    return keys is None or rest in keys


def _identity(config: dict) -> dict:
    """The config without what changes no result: where and how fast a run goes, and the facts, whose consequences are in the config."""
    identity = {
        name: {
            key: item
            for key, item in arguments(name, node).items()
            if not _host_only(f"{name}.{key}") and not (item is None and _optional(name, key, node))
        }
        if isinstance(node, dict)
        else node
        for name, node in config.items()
        if not _host_only(name)
    }
    if identity["judging"] == {"on_error": "fail"}:  # a run in which every image has its score is the same under each policy
        del identity["judging"]
    if config["trainer"].get("vae_tiling"):  # the one economy that can change an image
        identity["trainer"]["vae_tiling"] = True
    return identity


def _optional(group: str, key: str, node: dict) -> bool:
    """Whether a class of ours does without the value. Its null then says nothing, and runs older than the key keep their hash."""
    target = str(node.get("_target_", ""))
    taken = constructor_of(target) if target.startswith("alignbench.") else arguments_of(NODES[group]) if group in NODES else {}
    return key in taken and taken[key].kind == "value" and not taken[key].required


def _hash(identity: dict, output: Path) -> str:
    named = [(key, value) for key, value in _leaves(identity) if key.endswith((*FILES, *FOLDERS)) and isinstance(value, str)]
    assets = {}
    for key, value in named:
        try:
            assets[key] = _digest(_asset(key, value), output)
        except ConfigError as error:  # braces that mean nothing
            raise ConfigError(f"{key}={error}") from None
        except OSError as error:  # a name that is too long, a file that may not be read
            raise ConfigError(f"{key}={short(value)[1:-1]}: cannot be read ({error.strerror or error}); name another file") from None
    text = json.dumps([RESULTS_VERSION, identity, assets], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _asset(key: str, value: str) -> Path:
    """The file or folder that a value names; a requirement list's bare name is one of conf/reward/env."""
    if key.endswith(".requirements") and Path(value).name == value:
        return conf_folder() / "reward" / "env" / value
    return Path(*filter(None, parted(value)))


@lru_cache
def _digest(path: Path, output: Path) -> str | None:
    """sha256 of a local file, pipeline, labels folder or data; None for what is not here (a Hub id, which its revision pins)."""
    if path.is_file():
        files = [path]
    elif (path / "model_index.json").is_file() or (path / "config.json").is_file():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".json", ".txt", ".safetensors") and file.is_file())
    elif (path / "items.json").is_file():
        files = [path / name for name in ("preferences.jsonl", "rollouts.safetensors") if (path / name).is_file()]
        pictures = ["heat/*.png"] if path / "rollouts.safetensors" in files else ["heat/*.png", "images/*.png"]  # which trajectories imply
        files = [path / "items.json", *files, *(file for each in pictures for file in sorted(path.glob(each)))]
    else:
        return _digest_of_data(path, output)
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(file.relative_to(path).as_posix().encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _digest_of_data(path: Path, output: Path) -> str | None:
    """Of a folder of data, or of the files that a pattern names: names, sizes and what the listings hold; there may be far more to read.

    What runs write is no part of it, where they write into that folder.
    """
    files = list(_below(path, output.resolve())) if path.is_dir() else [Path(each) for each in matches(str(path))]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(path) if path.is_dir() else file}\0{file.stat().st_size}\0".encode())
        if file.suffix in LISTINGS or file.name == "metadata.parquet":
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest() if files else None


def _below(folder: Path, output: Path) -> Iterator[Path]:
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            yield from _below(each, output) if each.resolve() != output else ()
        elif each.is_file():
            yield each
