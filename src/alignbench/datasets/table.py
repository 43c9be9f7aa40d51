"""A table that was read from a file: rows that errors name, and cells that must be words."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from alignbench.config import ConfigError

LONGEST_CELL = 10_000  # characters, ours: more is no prompt


@dataclass(frozen=True)
class Table:
    """Row n is rows[n - 1]: a line of .txt and .jsonl, a line after the header of .csv, an item of .json and .parquet."""

    called: str  # the file as its key names it: `dataset.path=prompts.csv`
    columns: list[str]
    rows: list[dict[str, Any]]

    def wrong(self, number: int, what: str) -> ConfigError:
        return wrong(self.called, number, what)

    def need(self, column: str) -> None:
        """Raises ConfigError where no row has the column."""
        if column not in self.columns:
            raise ConfigError(f"{self.called}: no column {short(column)}; {nearest(column, self.columns)}")

    def words(self, column: str) -> list[str]:
        """The column's cells. Raises ConfigError where one is missing, blank, too long or no text."""
        self.need(column)
        return [self.word(number, column) for number in range(1, len(self.rows) + 1)]

    def word(self, number: int, column: str) -> str:
        """One of them."""
        row = self.rows[number - 1]
        cell = row.get(column)
        if cell is None:
            near = "" if column in row else f"; {nearest(column, row)}"
            raise self.wrong(number, f"no {column}{near or '; give it one, or take the row out'}")
        if not isinstance(cell, str):
            raise self.wrong(number, f"{column} must be words, not {short(cell)}")
        if not cell.strip():
            raise self.wrong(number, f"{column} is blank; fill it, or take the row out")
        if len(cell) > LONGEST_CELL:
            raise self.wrong(number, f"{column} has {len(cell):,} characters; at most {LONGEST_CELL:,} are read")
        if fault := unreadable(cell):
            raise self.wrong(number, f"{column} holds {fault}")
        return cell


def wrong(called: str, number: int, what: str) -> ConfigError:
    return ConfigError(f"{called}, row {number}: {what}")


def nearest(word: str, words: Collection[str]) -> str:
    near = difflib.get_close_matches(word, words, 1, 0.6)
    return f"did you mean {near[0]}?" if near else f"there is {', '.join(map(short, words)) or 'none'}"


def short(value: Any) -> str:
    text = value if isinstance(value, str) and value.isidentifier() else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def unreadable(text: str) -> str:
    if "\0" in text:
        return "a NUL byte; is the file damaged?"
    if any("\ud800" <= each <= "\udfff" for each in text):
        return "what is not UTF-8; save the file as UTF-8"
    return ""
