"""Which files a path means that names many: a file, a folder of them, a glob, or braces as the shell and WebDataset write them."""

import glob
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
    if Path(path).is_dir():
        found = sorted(each for each in Path(path).iterdir() if each.suffix == suffix and each.is_file())
        if not found:
            raise MissingAsset(f"{called}: no {suffix} file in that folder")
        return found
    found = []
    for name in [path] if Path(path).is_file() else expanded(path, called):
        matches = [name] if Path(name).is_file() else sorted(glob.glob(name)) if glob.has_magic(name) else []
        if not matches:
            raise MissingAsset(f"{called}: there is no file {name}")
        found += [Path(each) for each in matches]
    if odd := next((each for each in found if each.suffix != suffix), None):
        raise ConfigError(f"{called}: {odd.name!r} is no {suffix} file; name {suffix} files, or a folder of them")
    return found


def expanded(text: str, called: str) -> list[str]:
    """The names that braces make: `{000..012}` counts, keeping its zeros, and `{a,b}` lists."""
    names = [""]
    position = 0
    for braces in BRACES.finditer(text):
        inner = braces[1]
        options = list(_counted(inner, called)) if ".." in inner else inner.split(",")
        before = text[position : braces.start()]
        if len(names) * len(options) > MOST:
            raise ConfigError(f"{called}: {braces[0]} makes more than {MOST:,} names")
        names = [f"{name}{before}{option}" for name in names for option in options]
        position = braces.end()
    return [name + text[position:] for name in names]


def _counted(inner: str, called: str) -> Iterator[str]:
    match = re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", inner)
    if not match or int(match[1]) > int(match[2]):
        raise ConfigError(f"{called}: {{{inner}}} counts nothing; write {{000..012}}, the smaller number first")
    width = len(match[1]) if match[1].startswith("0") else 0
    if int(match[2]) - int(match[1]) >= MOST:
        raise ConfigError(f"{called}: {{{inner}}} makes more than {MOST:,} names")
    yield from (f"{number:0{width}d}" for number in range(int(match[1]), int(match[2]) + 1))
