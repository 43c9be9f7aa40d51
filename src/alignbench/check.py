"""Checks a composed config against the constructors it names, which are read from their source: nothing is imported, nothing is built."""

import ast
import builtins
import collections.abc
import difflib
import importlib.util
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from alignbench import ranges
from alignbench.config import FACTS, LIMITS, Budget, ConfigError, Eval, TopLevel, TrainerFacts

ALLOWED = ("alignbench.", "torch.optim.", "lightning.pytorch.")
ROOTS = {
    "method": "alignbench.methods.",
    "model": "alignbench.models.",
    "sampler": "alignbench.samplers.",
    "reward": "alignbench.rewards.",
    "dataset": "alignbench.datasets.",
    "trainer": "lightning.pytorch.trainer.trainer.",
}
NODES = {"eval": Eval, "budget": Budget}
GIVEN = {  # arguments that run.py gives, and where the user has a say in them
    "alignbench.methods.": {field.name: f"set trainer.{field.name}" for field in fields(TrainerFacts)},
    "lightning.pytorch.trainer.": {
        "accumulate_grad_batches": "set trainer.micro_batch",
        "default_root_dir": "set output",
        **dict.fromkeys(("callbacks", "plugins", "logger", "enable_progress_bar", "enable_model_summary"), "take it out"),
    },
}


def nearest(name: str, names: Iterable[str]) -> str:
    """The remedy's last words: the nearest valid name, or all of them."""
    names = sorted(set(names))
    near = difflib.get_close_matches(name, names, 1, 0.6)
    return f"did you mean {near[0]}?" if near else f"there is {', '.join(names) or 'none'}"


def check(config: dict, choices: dict[str, str], conf: Path) -> dict:
    """The resolved config with every number in its declared type. Raises ConfigError: one line with key, file, what is wrong, remedy."""
    return _Check(choices, conf).top(config)


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


@dataclass(frozen=True)
class Argument:
    annotation: Any
    required: bool
    kind: Literal["value", "object", "unchecked"] = "value"  # object: YAML may name a class, never a value; unchecked: another library's
    given: str = ""  # by run.py; what to do instead


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
        if target.startswith("alignbench.") and not target.startswith(tuple(ROOTS.values())):
            raise self.fail(key, f"{target} is not for a config", f"name a class under {', '.join(ROOTS.values())} or torch.optim.")
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


# --- what a class takes


def arguments_of(node: type) -> dict[str, Argument]:
    """The keys of a dataclass of config.py."""
    hints = get_type_hints(node, include_extras=True)
    return {field.name: Argument(hints[field.name], True, "value" if _plain(hints[field.name]) else "object") for field in fields(node)}


@lru_cache
def _constructor(target: str) -> tuple[tuple[str, Argument], ...]:
    module, _, name = target.rpartition(".")
    return tuple(_arguments(module, name).items())


def constructor_of(target: str) -> dict[str, Argument]:
    """The arguments of the class `target` from its source. Raises ValueError, saying what to write instead, where there is none."""
    return dict(_constructor(target))


def _arguments(module: str, name: str) -> dict[str, Argument]:
    tree = _source(module)
    classes = _classes(module)
    imported = dict(_imports(tree))
    if name not in classes:
        elsewhere = [each for each in imported.values() if each.startswith(ALLOWED)]
        if imported.get(name) in elsewhere:
            raise ValueError(f"did you mean {imported[name]}?")
        raise ValueError(nearest(f"{module}.{name}", [f"{module}.{each}" for each in classes] or elsewhere))
    init = next((item for item in classes[name].body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    inherited: dict[str, Argument] = {}
    if init is None or init.args.kwarg:
        for base in classes[name].bases:
            full = f"{module}.{base.id}" if isinstance(base, ast.Name) and base.id in classes else imported.get(ast.unparse(base), "")
            if full.startswith("alignbench."):
                inherited = constructor_of(full)
                break
    return inherited | (dict(_parameters(init.args, module)) if init else {})


def _parameters(args: ast.arguments, module: str) -> Iterator[tuple[str, Argument]]:
    theirs = not module.startswith("alignbench.")
    positional = [*args.posonlyargs, *args.args][1:]
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults[-len(positional) :] if positional else [])
    for argument, default in (*zip(positional, defaults, strict=True), *zip(args.kwonlyargs, args.kw_defaults, strict=True)):
        annotation = _evaluated(argument.annotation, module)
        if given := next((rows[argument.arg] for start, rows in GIVEN.items() if module.startswith(start) and argument.arg in rows), ""):
            yield argument.arg, Argument(annotation, False, given=given)
        elif _plain(annotation):
            yield argument.arg, Argument(annotation, default is None)
        else:
            yield argument.arg, Argument(annotation, False, "unchecked" if theirs else "object")


@lru_cache
def _source(module: str) -> ast.Module:
    """The parsed source of a module, found from its top-level package's folder alone: looking for a submodule would import its parents."""
    top, *parts = module.split(".")
    spec = importlib.util.find_spec(top)
    folder = Path((spec.submodule_search_locations or [""])[0]) if spec else Path()
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if last and part.isidentifier() and (folder / f"{part}.py").is_file():
            return ast.parse((folder / f"{part}.py").read_text(encoding="utf-8"))
        if not part.isidentifier() or not (folder / part).is_dir():
            found = [each.stem for each in folder.iterdir() if not each.stem.startswith("_") and (each.suffix == ".py" or each.is_dir())]
            above = ".".join([top, *parts[:index]])
            raise ValueError(nearest(f"{above}.{part}", [f"{above}.{each}" for each in found]))
        folder = folder / part
    if not (folder / "__init__.py").is_file():
        raise ValueError(f"{module} is a folder without a module")
    return ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))


def _classes(module: str) -> dict[str, ast.ClassDef]:
    return {statement.name: statement for statement in _source(module).body if isinstance(statement, ast.ClassDef)}


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names that a module takes from others, as (name here, full name there); relative imports are not followed."""
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            yield from ((alias.asname or alias.name, f"{statement.module}.{alias.name}") for alias in statement.names)


# --- annotations


class _ForeignType(type):
    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, item: Any) -> type:
        return cls


class Foreign(metaclass=_ForeignType):
    """Stands for every type that is known only after an import: a tensor, a policy, a reward."""


_KNOWN = (
    {name: getattr(builtins, name) for name in ("int", "float", "bool", "str", "list", "dict", "tuple")}
    | {name: getattr(typing, name) for name in typing.__all__}
    | {name: getattr(collections.abc, name) for name in collections.abc.__all__}
    | {name: value for name, value in vars(ranges).items() if not name.startswith("_")}
)


class _Names(dict):
    """What the names of a module's annotations mean: known types, aliases written in this package, and Foreign for the rest."""

    def __init__(self, module: str):
        super().__init__(_KNOWN)
        self.module = module

    def __missing__(self, name: str) -> Any:
        tree = _source(self.module)
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and [ast.unparse(each) for each in statement.targets] == [name]:
                return _evaluated(statement.value, self.module)
        module, _, there = dict(_imports(tree)).get(name, "").rpartition(".")
        return _Names(module)[there] if module.startswith("alignbench.") and there not in _classes(module) else Foreign


def _evaluated(annotation: ast.expr | None, module: str) -> Any:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if annotation is None or any(isinstance(each, ast.Call | ast.Lambda) for each in ast.walk(annotation)):
        return Foreign
    try:
        return eval(ast.unparse(annotation), {"__builtins__": {}}, _Names(module))  # names, subscripts and unions of installed sources
    except (TypeError, ValueError, SyntaxError):
        return Foreign


def _plain(annotation: Any) -> bool:
    """Whether YAML can give the value: numbers, words, and lists, dicts and choices of them."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return True
    if origin is typing.Annotated:
        return _plain(inner[0])
    if origin in (Union, types.UnionType, list, dict, tuple, collections.abc.Sequence, collections.abc.Mapping):
        return all(each is Ellipsis or _plain(each) for each in inner)
    return annotation in (int, float, bool, str, list, dict, tuple, None, types.NoneType) or is_dataclass(annotation)


def literals(annotation: Any) -> list[str]:
    inner = get_args(annotation)
    return [str(each) for each in inner] if get_origin(annotation) is Literal else [word for each in inner for word in literals(each)]


def expected(annotation: Any) -> str:
    """An annotation in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(each) for each in inner)
    if origin is typing.Annotated:
        bounds = [f"{sign} {getattr(each, name)}" for each in inner[1:] for name, sign in _SIGNS.items() if hasattr(each, name)]
        return " ".join([expected(inner[0]), " and ".join(bounds)]).strip()
    if origin in (Union, types.UnionType):
        return " | ".join(expected(each) for each in inner)
    if origin in (list, tuple, collections.abc.Sequence):
        words = ["..." if each is Ellipsis else expected(each) for each in inner] + ["..."] * (origin is not tuple)
        return f"a list [{', '.join(words)}]"
    if origin in (dict, collections.abc.Mapping):
        return f"{{{expected(inner[0])}: {expected(inner[1])}}}"
    if is_dataclass(annotation):
        return f"{{{', '.join(field.name for field in fields(annotation))}}}"
    names = {int: "a whole number", float: "a number", bool: "true | false", str: "a word", types.NoneType: "null", None: "null"}
    return names.get(annotation) or re.sub(r"<class '(.*)'>", r"\1", str(annotation))


_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
