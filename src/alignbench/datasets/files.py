"""Tables in files: .txt (a prompt a line), .csv, .jsonl, .json (a list) and .parquet, read whole or refused with the row that is wrong.

Line breaks are LF or CRLF and nothing else; a byte-order mark is let pass; empty lines at the end are no rows.
"""

import csv
import difflib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbench.config import ConfigError

LONGEST_LINE, LONGEST_CELL = 1_000_000, 10_000  # characters, ours: more is a damaged file, or no prompt
LINES = ("prompt",)  # what the one column of a .txt is called, and of a .json that lists words


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
        return [self._word(number, column, row) for number, row in enumerate(self.rows, 1)]

    def _word(self, number: int, column: str, row: dict[str, Any]) -> str:
        cell = row.get(column)
        if cell is None:
            near = "" if column in row else f"; {nearest(column, row)}"
            raise self.wrong(number, f"no {column}{near or '; give it one, or take the row out'}")
        if not isinstance(cell, str):
            raise self.wrong(number, f"{column} is text, not {short(cell)}")
        if not cell.strip():
            raise self.wrong(number, f"{column} is blank; fill it, or take the row out")
        if len(cell) > LONGEST_CELL:
            raise self.wrong(number, f"{column} has {len(cell):,} characters; at most {LONGEST_CELL:,} are read")
        if fault := _unreadable(cell):
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


def read(file: Path, called: str, wanted: Collection[str] | None = None) -> Table:
    """The table in `file`, which errors call `called`. wanted: the columns to read of a .parquet, all without.

    Raises ConfigError where the file is missing, empty or damaged, with the row where there is one.
    """
    kind = KINDS.get(file.suffix.lower())
    try:
        if file.is_dir():
            raise ConfigError(f"{called}: a folder; name a file in it")
        if kind is None:
            raise ConfigError(f"{called}: files that end in {short(file.suffix)} are not read; there is {', '.join(KINDS)}")
        table = _parquet(file, called, wanted) if kind is _parquet else kind(file.read_bytes(), called)
    except FileNotFoundError:
        raise ConfigError(f"{called}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{called}: cannot be read ({error.strerror or error})") from None
    if not table.rows:
        raise ConfigError(f"{called}: no rows in it; the file is empty or holds a header alone")
    return table


# --- text


def _decoded(data: bytes, called: str) -> str:
    """Bytes that are no UTF-8 become single surrogates, which `_unreadable` finds in their row."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError(f"{called}: UTF-16; save it as UTF-8")
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _unreadable(text: str) -> str:
    if "\0" in text:
        return "a NUL byte; is the file damaged?"
    if any("\ud800" <= each <= "\udfff" for each in text):
        return "what is not UTF-8; save the file as UTF-8"
    return ""


def _lines(data: bytes, called: str, header: int = 0) -> list[str]:
    """Lines without their ends; header: how many come before row 1."""
    lines = _decoded(data, called).rstrip("\r\n").split("\n")
    lines = [line.removesuffix("\r") for line in lines] if lines != [""] else []
    for number, line in enumerate(lines, 1 - header):
        where = f"{called}, row {number}" if number > 0 else f"{called}, header"
        if len(line) > LONGEST_LINE:
            raise ConfigError(f"{where}: a line of {len(line):,} characters; at most {LONGEST_LINE:,} are read")
        if fault := _unreadable(line) or ("a carriage return; end lines with LF or CRLF" if "\r" in line else ""):
            raise ConfigError(f"{where}: it holds {fault}")
        if not line.strip():
            raise ConfigError(f"{where}: a blank line; take it out")
    return lines


def _txt(data: bytes, called: str) -> Table:
    return Table(called, [*LINES], [{LINES[0]: line} for line in _lines(data, called)])


def _csv(data: bytes, called: str) -> Table:
    head, *rest = _lines(data, called, header=1) or [""]
    columns = _cells(head, f"{called}, header") if head else []
    if "" in columns or len({*columns}) < len(columns):
        twice = next((each for each in columns if columns.count(each) > 1), "")
        fault = f"two columns are called {short(twice)}" if twice else f"column {columns.index('') + 1} has no name"
        raise ConfigError(f"{called}, header: {fault}; each needs a name of its own")
    rows = []
    for number, line in enumerate(rest, 1):
        cells = _cells(line, f"{called}, row {number}")
        if len(cells) != len(columns):
            raise wrong(called, number, f"{len(cells)} cells for {len(columns)} columns; put a cell with a comma in double quotes")
        rows.append(dict(zip(columns, cells, strict=True)))
    return Table(called, columns, rows)


def _cells(line: str, where: str) -> list[str]:
    """A line is a row: a quote that is left open would otherwise swallow the rows after it."""
    limit = csv.field_size_limit(LONGEST_LINE)
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        fault = "a double quote is not closed in its line" if "end of data" in str(error) else f"not CSV ({error})"
        raise ConfigError(f"{where}: {fault}; cells with line breaks need .jsonl, a quote in quotes is written twice") from None
    finally:
        csv.field_size_limit(limit)


def _jsonl(data: bytes, called: str) -> Table:
    items = []
    for number, line in enumerate(_lines(data, called), 1):
        try:
            items.append(_parsed(line))
        except _NotJSON as error:
            raise wrong(called, number, f"not JSON ({error})") from None
    return _objects(items, called)


def _json(data: bytes, called: str) -> Table:
    text = _decoded(data, called)
    if not text.strip():
        return Table(called, [], [])
    try:
        items = _parsed(text)
    except _NotJSON as error:
        raise ConfigError(f"{called}: not JSON ({error}); a line an object is .jsonl") from None
    if not isinstance(items, list):
        raise ConfigError(f"{called}: {short(items)} is no list; a list of objects is wanted")
    if items and all(isinstance(item, str) for item in items):
        items = [{LINES[0]: item} for item in items]
    return _objects(items, called)


class _NotJSON(ValueError):
    pass


def _parsed(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise _NotJSON(f"{short(twice)} is given twice in an object")
        return dict(pairs)

    def constant(word: str) -> None:
        raise _NotJSON(f"{word} is no number there")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise _NotJSON(f"{error.msg}, line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _NotJSON("nested too deeply") from None
    except _NotJSON:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise _NotJSON(str(error)) from None


def _objects(items: list[Any], called: str) -> Table:
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise wrong(called, number, f"{short(item)} is no object; write {{{json.dumps(LINES[0])}: ...}}")
        if fault := _unreadable(json.dumps(item, ensure_ascii=False)):
            raise wrong(called, number, f"it holds {fault}")
    return Table(called, list(dict.fromkeys(name for item in items for name in item)), items)


# --- parquet


def _parquet(file: Path, called: str, wanted: Collection[str] | None) -> Table:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:  # not read_table, which makes columns of folders called a=b
            names = parquet.schema_arrow.names
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ConfigError(f"{called}: two columns are called {short(twice)}; each needs a name of its own")
            columns = [name for name in names if wanted is None or name in wanted]
            read, count = parquet.read(columns=columns), parquet.metadata.num_rows
    except FileNotFoundError:
        raise
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{called}: no parquet, or cut short ({str(error).splitlines()[0].rstrip('.')})") from None
    cells = {name: _column(read.column(name), name, called) for name in columns}
    return Table(called, names, [{name: column[row] for name, column in cells.items()} for row in range(count)])


def _column(column: Any, name: str, called: str) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        for number, cell in enumerate(column, 1):
            try:
                cell.as_py()
            except UnicodeDecodeError:
                raise wrong(called, number, f"{name} holds bytes that are not UTF-8") from None
        raise


KINDS: dict[str, Callable[..., Table]] = {".txt": _txt, ".csv": _csv, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
