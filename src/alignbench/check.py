"""Checks a composed config against the constructors it names, which are read from their source: nothing is imported, nothing is built."""

import difflib
import json
import types
import typing
from collections.abc import Iterable
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from alignbench.config import FACTS, LIMITS, Budget, ConfigError, Eval, TopLevel
from alignbench.signatures import ALLOWED, Argument, arguments_of, constructor_of, expected, literals, nearest

ROOTS = {
    "method": "alignbench.methods.",
    "model": "alignbench.models.",
    "sampler": "alignbench.samplers.",
    "reward": "alignbench.rewards.",
    "dataset": "alignbench.datasets.",
    "trainer": "lightning.pytorch.trainer.trainer.",
    "tracker": "alignbench.trackers.",
    "launcher": "alignbench.launchers.",
}
NODES = {"eval": Eval, "budget": Budget}
NESTED = ("alignbench.features.",)  # what a config names inside a group


def check(config: dict, choices: dict[str, str], conf: Path) -> dict:
    """The resolved config with every number in its declared type. Raises ConfigError: one line with key, file, what is wrong, remedy."""
    return _Check(choices, conf).top(config)


def checked(key: str, node: dict, kind: type, choices: dict[str, str], conf: Path) -> dict:
    """A node that is no part of a run's config, against the dataclass that it is read as. Raises ConfigError."""
    return _Check(choices, conf).node(key, node, arguments_of(kind))


# --- where a key lives, and what is wrong with it


def file_of(key: str, choices: dict[str, str], conf: Path) -> str:
    """The file under conf/ that gives `key` its value, or would."""
    group, *path = key.split(".")
    for overlay in ("experiment", "recipe"):
        node = _read(conf / overlay / f"{choices[overlay]}.yaml") if choices.get(overlay) else None
        for part in (group, *path):
            node = node.get(part) if isinstance(node, dict) else None
        if node is not None:
            return f"conf/{overlay}/{choices[overlay]}.yaml"
    return f"conf/{group}/{choices[group]}.yaml" if group in choices else "conf/config.yaml"


@lru_cache
def _read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None


def read_choice(group: str, choice: str, conf: Path) -> dict:
    """A choice's YAML over those of its group that it builds on; the rest of Hydra's composition is left out."""
    own = _read(conf / group / f"{choice}.yaml") or {}
    below = [each for each in own.get("defaults", []) if isinstance(each, str) and each != "_self_"]
    return {key: value for each in below for key, value in read_choice(group, each, conf).items()} | own


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- the checks


class _Check:
    def __init__(self, choices: dict[str, str], conf: Path):
        self.choices, self.conf = choices, conf

    def fail(self, key: str, wrong: str, remedy: str) -> ConfigError:
        return ConfigError(f"{key} ({file_of(key, self.choices, self.conf)}): {wrong}; {remedy}")

    def top(self, config: dict) -> dict:
        self.targets("", config)
        groups = {*ROOTS, *NODES}
        own = self.node("", {key: value for key, value in config.items() if key not in groups}, arguments_of(TopLevel), known=groups)
        for group in (*ROOTS, *NODES):
            node = config.get(group)
            if not isinstance(node, dict):
                raise self.fail(group, f"{short(node)} holds no keys", f"choose a file: {group}={self.choices.get(group)}")
            own[group] = self.group(group, node)
        if own["trainer"].get("max_epochs") != own["epochs"]:
            raise self.fail("trainer.max_epochs", f"{short(own['trainer'].get('max_epochs'))} is not epochs", "set epochs")
        return {key: own[key] for key in config}

    def targets(self, key: str, value: Any) -> None:
        """Refuse what Hydra would call or read that is no class of ours, at any depth, before anything else is looked at."""
        if isinstance(value, list):
            for index, item in enumerate(value):
                self.targets(f"{key}[{index}]", item)
        if not isinstance(value, dict):
            return
        dot = f"{key}." if key else ""
        target = value.get("_target_", ALLOWED[0])
        if not isinstance(target, str) or not target.startswith(ALLOWED):
            raise self.fail(f"{dot}_target_", f"{short(target)} is refused", f"a _target_ starts with {', '.join(ALLOWED)}")
        for name, item in value.items():
            if not isinstance(name, str):
                raise self.fail(f"{dot}{name}", f"the key {short(name)} is not a word", "quote it or take it out")
            if name.startswith("_") and name not in ("_target_", "_partial_"):
                raise self.fail(dot + name, f"{name} is not available here", "take it out")
            self.targets(dot + name, item)

    def group(self, group: str, node: dict) -> dict:
        if group in NODES:
            return self.node(group, node, arguments_of(NODES[group]))
        facts = arguments_of(FACTS[group]) if group in FACTS else {}
        target = node.get("_target_")
        if target is None:
            raise self.fail(f"{group}._target_", "missing", f"name a class under {ROOTS[group]}")
        if not target.startswith(ROOTS[group]):
            raise self.fail(f"{group}._target_", f"{target} is not a {group}", f"name a class under {ROOTS[group]}")
        taken = {**self.constructor(f"{group}._target_", target), **facts}
        return self.node(group, node, taken, built=True)

    def constructor(self, key: str, target: str) -> dict[str, Argument]:
        ours = (*ROOTS.values(), *NESTED)
        if target.startswith("alignbench.") and not target.startswith(ours):
            raise self.fail(key, f"{target} is not for a config", f"name a class under {', '.join(ours)} or torch.optim.")
        try:
            taken = constructor_of(target)
        except ValueError as error:
            raise self.fail(key, f"there is no class {target}", str(error)) from None
        for start, limits in LIMITS.items():
            if target.startswith(start):
                taken |= {name: Argument(each.annotation, False) for name, each in arguments_of(limits).items() if name in taken}
        return taken

    def node(self, key: str, node: dict, taken: dict[str, Argument], known: Iterable[str] = (), built: bool = False) -> dict:
        dot = f"{key}." if key else ""
        out = {}
        for name, value in node.items():
            if name == "_partial_" and not (value is True and str(node.get("_target_")).startswith("torch.optim.")):
                raise self.fail(dot + name, "_partial_ is for torch.optim only", "take it out")
            if built and name in ("_target_", "_partial_"):
                out[name] = value
                continue
            if name not in taken:
                names = [dot + each for each in (*(each for each, one in taken.items() if one.kind != "object" and not one.given), *known)]
                raise self.fail(dot + name, "no such key", nearest(dot + name, names))
            out[name] = self.argument(dot + name, value, taken[name])
        for name, argument in taken.items():
            if argument.required and name not in node:
                raise self.fail(dot + name, "missing", f"set it to {expected(argument.annotation)}")
        return out

    def argument(self, key: str, value: Any, argument: Argument) -> Any:
        if argument.given:
            raise self.fail(key, "not set here", argument.given)
        if argument.kind != "value" and is_object(value):
            return self.object(key, value)
        if argument.kind == "object" and value is None and types.NoneType in get_args(argument.annotation):
            return None
        if argument.kind == "object":
            raise self.fail(key, f"{short(value)} is no object", "name a class: a _target_ and its arguments, or take it out")
        return value if argument.kind == "unchecked" else self.value(key, value, argument.annotation)

    def object(self, key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [self.object(f"{key}[{index}]", item) for index, item in enumerate(value)]
        return self.node(key, value, self.constructor(f"{key}._target_", value["_target_"]), built=True)

    def value(self, key: str, value: Any, annotation: Any) -> Any:
        if is_dataclass(annotation) and isinstance(value, dict):
            return self.node(key, value, arguments_of(typing.cast(type, annotation)))
        if get_origin(annotation) is dict and is_dataclass(get_args(annotation)[1]) and isinstance(value, dict):
            name, node = get_args(annotation)
            return {self.value(f"{key}.{each}", each, name): self.value(f"{key}.{each}", item, node) for each, item in value.items()}
        try:
            if not is_dataclass(annotation):
                return _validated(annotation, value)
        except ValueError:
            pass
        near = difflib.get_close_matches(value, literals(annotation), 1, 0.6) if isinstance(value, str) else []
        remedy = f"did you mean {near[0]}?" if near else f"it must be {expected(annotation)}"
        raise self.fail(key, f"{short(value)} is no value for it", remedy)


def is_object(value: Any) -> bool:
    if isinstance(value, list):
        return all(is_object(item) for item in value)
    return isinstance(value, dict) and "_target_" in value


def _validated(annotation: Any, value: Any) -> Any:
    """`value` as pydantic reads its JSON, strictly: an int may stand for a float, a list for a tuple, and nothing else for anything."""
    adapter = _adapter(annotation)
    return adapter.dump_python(adapter.validate_json(json.dumps(value), strict=True), mode="json")


@lru_cache
def _adapter(annotation: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True))
