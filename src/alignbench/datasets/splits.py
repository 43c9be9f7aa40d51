"""Rows of prompt files parted into training, validation and test, so that no prompt and no near-duplicate of one is in two of them.

By hash: where a prompt goes is a function of its key alone. No seed, no order and no other prompt has a say in it.
"""

import hashlib
import unicodedata
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from alignbench.config import ConfigError
from alignbench.datasets.table import Table, short
from alignbench.ranges import Fraction

Split = Literal["train", "validation", "test"]
Shares = dict[Split, Fraction]
Repeated = Literal["refuse", "once"]  # a prompt that is there twice: an error, or its first row is taken and the others are left out
SPLITS: tuple[Split, ...] = get_args(Split)
ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Entry:
    prompt: str
    called: str  # the file
    row: int
    about: dict[str, Any] = field(default_factory=dict)
    split: str = ""

    def wrong(self, what: str) -> ConfigError:
        return ConfigError(f"{self.called}, row {self.row}: {what}")

    def seen_from(self, other: "Entry") -> str:
        return f"row {self.row}" + (f" of {self.called}" if self.called != other.called else "")


@dataclass(frozen=True)
class Parted:
    train: list[str]
    validation: list[str]
    test: list[str]
    about: dict[str, dict[str, Any]]


def entries(table: Table, column: str, group: str | None, keep: list[str], split: str | None) -> list[Entry]:
    """The prompts of `column`; `group` and the columns in `keep` go into `about`, where a row has them. split: a column of splits."""
    if group and "group" in keep and group != "group":
        raise ConfigError(f"{table.called}: a column called group is to be kept and {group} is the group; rename one, or do not keep it")
    for name in keep:
        table.need(name)
    prompts, groups, splits = (table.words(name) if name else [] for name in (column, group, split))
    made = []
    for number, (prompt, row) in enumerate(zip(prompts, table.rows, strict=True), 1):
        about = {name: row[name] for name in keep if row.get(name) is not None}
        if group:
            about["group"] = groups[number - 1]
        if split and splits[number - 1] not in SPLITS:
            raise table.wrong(number, f"{split} is {short(splits[number - 1])}; it is one of {', '.join(SPLITS)}")
        made.append(Entry(prompt, table.called, number, about, splits[number - 1] if split else ""))
    return made


def parted(rows: list[Entry], shares: Shares | None, repeated: Repeated) -> Parted:
    """Rows by split, in their order. shares: by hash; None: by the splits that the rows say."""
    rows = _different(rows, repeated)
    if shares is None:
        _apart(rows)
        where = [row.split for row in rows]
    else:
        _whole(shares)
        where = [place(row.prompt, shares) for row in rows]
    found = {split: [row.prompt for row, own in zip(rows, where, strict=True) if own == split] for split in SPLITS}
    for split in SPLITS:
        if shares is not None and shares.get(split) and not found[split]:
            raise ConfigError(
                f"dataset.shares: of {len(rows)} prompts none falls in {split}; make its share more than {shares[split]:g}, make it 0, "
                "or add prompts"
            )
    return Parted(found["train"], found["validation"], found["test"], {row.prompt: row.about for row in rows if row.about})


def key(prompt: str) -> str:
    """What near-duplicates share: NFKC, case folded, without punctuation and articles, words in alphabetical order."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", prompt).casefold())
    words = "".join(map(_plain, text)).split()
    return " ".join(sorted(word for word in words if word not in ARTICLES)) or " ".join(text.split())  # nothing but articles: as it is


def _plain(character: str) -> str:
    kind = unicodedata.category(character)
    if character in "'’" or kind == "Cf":  # dog's is one word; what has no width is nothing
        return ""
    return " " if kind[0] in "PZ" or character.isspace() else character


def place(prompt: str, shares: Shares) -> str:
    """The split whose part of [0,1) holds the hash of the key: test comes first, then validation, then train."""
    at = int.from_bytes(hashlib.sha256(f"alignbench split\0{key(prompt)}".encode()).digest()[:8], "big") / 2**64
    last, edge = "", 0.0
    for split in reversed(SPLITS):
        if share := shares.get(split):
            last, edge = split, edge + share
            if at < edge:
                break
    return last


def _whole(shares: Shares) -> None:
    total = sum(shares.values())
    if abs(total - 1) > 1e-6:
        raise ConfigError(
            f"dataset.shares: they add up to {total:g}, not to 1; say all three: dataset.shares={{train: 0.8, validation: 0.1, test: 0.1}}"
        )


def _different(rows: list[Entry], repeated: Repeated) -> list[Entry]:
    first: dict[str, Entry] = {}
    for row in rows:
        before = first.setdefault(row.prompt, row)
        if before is not row and repeated == "refuse":
            what = f"the prompt of {before.seen_from(row)} again ({short(row.prompt)})"
            raise row.wrong(f"{what}; take one out, or set dataset.repeated=once")
    if left := len(rows) - len(first):
        warnings.warn(f"{rows[0].called}: {left:,} of {len(rows):,} rows repeat an earlier prompt and were left out", stacklevel=2)
    return list(first.values())


def _apart(rows: list[Entry]) -> None:
    """Raises ConfigError where near-duplicates are given different splits."""
    first: dict[str, Entry] = {}
    for row in rows:
        before = first.setdefault(key(row.prompt), row)
        if before.split != row.split:
            raise row.wrong(
                f"{short(row.prompt)} in {row.split} is nearly {short(before.prompt)} in {before.split}, {before.seen_from(row)}; "
                "take one out, or put them in one split"
            )
