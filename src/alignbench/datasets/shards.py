"""Which files a path means that names many: a file, a folder of them, a glob, or braces as the shell and WebDataset write them."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from alignbench.config import ConfigError, MissingAsset

MOST = 1_000_000  # names that braces may make, ours: more is a slip
BRACES = re.compile(r"\{([^{}]*)\}")


def files_of(path: str, suffix: str, called: str) -> list[Path]:
    """The files in the order of their names, those of braces in the order of the braces.

    Raises MissingAsset where there is none or one that braces name is not there, ConfigError for braces that mean nothing.
    """
    if os.path.isdir(path):
        found = sorted(each for each in Path(path).iterdir() if each.suffix == suffix and each.is_file())
        if not found:
            raise MissingAsset(f"{called}: no {suffix} file in that folder")
        return found
    found = []
    for name in expanded(path, called):
        there = matching(name)
        if not there:
            raise MissingAsset(f"{called}: there is no file {name}")
        found += there
    if odd := next((each for each in found if each.suffix != suffix), None):
        raise ConfigError(f"{called}: {odd.name!r} is no {suffix} file; name {suffix} files, or a folder of them")
    return found


def matches(path: str) -> list[Path]:
    """The files that a pattern names and that are there."""
    return [each for name in expanded(path, path) for each in matching(name)]


def matching(name: str) -> list[Path]:
    return [Path(name)] if os.path.isfile(name) else [Path(each) for each in sorted(glob.glob(name)) if glob.has_magic(name)]


def expanded(text: str, called: str) -> list[str]:
    """The names that braces make: `{000..012}` counts, keeping its zeros, and `{a,b}` lists."""
    if os.path.exists(text):
        return [text]
    names = [""]
    position = 0
    for braces in BRACES.finditer(text):
        options = list(_counted(braces[1], called)) if ".." in braces[1] else braces[1].split(",")
        if len(names) * len(options) > MOST:
            raise ConfigError(f"{called}: {braces[0]} makes more than {MOST:,} names")
        names = [f"{name}{text[position : braces.start()]}{option}" for name in names for option in options]
        position = braces.end()
    return [name + text[position:] for name in names]


def _counted(inner: str, called: str) -> Iterator[str]:
    match = re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", inner)
    if not match or int(match[1]) > int(match[2]):
        raise ConfigError(f"{called}: {{{inner}}} counts nothing; write {{000..012}}, the smaller number first")
    if int(match[2]) - int(match[1]) >= MOST:
        raise ConfigError(f"{called}: {{{inner}}} makes more than {MOST:,} names")
    width = len(match[1]) if match[1].startswith("0") else 0
    yield from (f"{number:0{width}d}" for number in range(int(match[1]), int(match[2]) + 1))
