"""What a class takes, read from its source: nothing is imported, so that a wrong config is refused before torch is even loaded."""

import ast
import builtins
import collections.abc
import difflib
import importlib.util
import re
import types
import typing
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from alignbench import ranges
from alignbench.config import TrainerFacts

ALLOWED = ("alignbench.", "torch.optim.", "lightning.pytorch.")
GIVEN = {  # arguments that run.py gives, and where the user has a say in them
    "alignbench.methods.": {
        **{field.name: f"set trainer.{field.name}" for field in fields(TrainerFacts)},
        "processes": "set trainer.devices",
        "overlap": "set judging.overlap",
    },
    "lightning.pytorch.trainer.": {
        "accumulate_grad_batches": "set trainer.micro_batch",
        "default_root_dir": "set output",
        **dict.fromkeys(("callbacks", "plugins", "logger", "enable_progress_bar", "enable_model_summary"), "take it out"),
        **dict.fromkeys(("fast_dev_run", "limit_train_batches", "max_steps", "max_time", "overfit_batches"), "set epochs"),
    },
}


@dataclass(frozen=True)
class Argument:
    annotation: Any
    required: bool
    kind: Literal["value", "object", "unchecked"] = "value"  # object: YAML may name a class, never a value; unchecked: another library's
    given: str = ""  # by run.py; what to do instead


def nearest(name: str, names: Iterable[str]) -> str:
    """The remedy's last words: the nearest valid name, or all of them."""
    names = sorted(set(names))
    near = difflib.get_close_matches(name, names, 1, 0.6)
    return f"did you mean {near[0]}?" if near else f"there is {', '.join(names) or 'none'}"


def arguments_of(node: type) -> dict[str, Argument]:
    """The keys of a dataclass of config.py."""
    hints = get_type_hints(node, include_extras=True)
    return {
        field.name: Argument(hints[field.name], field.default is MISSING, "value" if is_plain(hints[field.name]) else "object")
        for field in fields(node)
    }


@lru_cache
def _constructor(target: str) -> tuple[tuple[str, Argument], ...]:
    module, _, name = target.rpartition(".")
    return tuple(_arguments(module, name).items())


def constructor_of(target: str) -> dict[str, Argument]:
    """The arguments of the class `target` from its source. Raises ValueError, saying what to write instead, where there is none."""
    return dict(_constructor(target))


def fact_of(target: str, name: str) -> Any:
    """The constant that a class of ours, or the nearest one that it builds on, assigns to `name` in its body; None without one."""
    module, _, owner = target.rpartition(".")
    made = _classes(module)[owner]
    for statement in made.body:
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(statement.value, ast.Constant | ast.Tuple):
            continue
        if name in map(ast.unparse, statement.targets if isinstance(statement, ast.Assign) else [statement.target]):
            with suppress(ValueError):  # a tuple of something else
                return ast.literal_eval(statement.value)
    for base in made.bases:
        full = _named(base, module)
        if full.startswith("alignbench.") and (found := fact_of(full, name)) is not None:
            return found
    return None


def _named(base: ast.expr, module: str) -> str:
    """The full name of a class that another one names as its base; empty where it is not found."""
    own = isinstance(base, ast.Name) and base.id in _classes(module)
    return f"{module}.{ast.unparse(base)}" if own else dict(_imports(_source(module))).get(ast.unparse(base), "")


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
            full = _named(base, module)
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
        elif is_plain(annotation):
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
            return _parsed(folder / f"{part}.py")
        if not part.isidentifier() or not (folder / part).is_dir():
            found = [each.stem for each in folder.iterdir() if not each.stem.startswith("_") and (each.suffix == ".py" or each.is_dir())]
            above = ".".join([top, *parts[:index]])
            raise ValueError(nearest(f"{above}.{part}", [f"{above}.{each}" for each in found]))
        folder = folder / part
    if not (folder / "__init__.py").is_file():
        raise ValueError(f"{module} is a folder without a module")
    return _parsed(folder / "__init__.py")


def _parsed(file: Path) -> ast.Module:
    """Without what its functions do, which is 5 MB of the forty modules whose trees stay as long as a run does."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for each in ast.walk(tree):
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            each.body = []
    return tree


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


def is_plain(annotation: Any) -> bool:
    """Whether YAML can give the value: numbers, words, and lists, dicts and choices of them."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return True
    if origin is typing.Annotated:
        return is_plain(inner[0])
    if origin in (Union, types.UnionType, list, dict, tuple, collections.abc.Sequence, collections.abc.Mapping):
        return all(each is Ellipsis or is_plain(each) for each in inner)
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
