"""Tables in files: .txt (a prompt a line), .csv, .jsonl, .json (a list) and .parquet, read whole or refused with the row that is wrong.

Line breaks are LF or CRLF and nothing else; a byte-order mark is let pass; empty lines at the end are no rows.
"""

import csv
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from alignbench.config import ConfigError
from alignbench.datasets.table import Table, short, unreadable, wrong

LONGEST_LINE = 1_000_000  # characters, ours: more is a damaged file
LINES = ("prompt",)  # what the one column of a .txt is called, and of a .json that lists words


def read(file: Path, called: str, wanted: Collection[str] | None = None) -> Table:
    """The table in `file`, which errors call `called`. wanted: the columns to read of a .parquet, all without.

    Raises ConfigError where the file is missing, empty or damaged, with the row where there is one.
    """
    kind = KINDS.get(file.suffix.lower())
    try:
        if file.is_dir():
            raise ConfigError(f"{called}: a folder; name a file in it")
        if file.exists() and not file.is_file():
            raise ConfigError(f"{called}: a pipe or a device, which is not read; write it to a file")
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
    """Bytes that are no UTF-8 become single surrogates, which `unreadable` finds in their row."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError(f"{called}: UTF-16; save it as UTF-8")
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _lines(data: bytes, called: str, header: int = 0) -> list[str]:
    """Lines without their ends; header: how many come before row 1."""
    lines = _decoded(data, called).rstrip("\r\n").split("\n")
    lines = [line.removesuffix("\r") for line in lines] if lines != [""] else []
    for number, line in enumerate(lines, 1 - header):
        where = f"{called}, row {number}" if number > 0 else f"{called}, header"
        if len(line) > LONGEST_LINE:
            raise ConfigError(f"{where}: a line of {len(line):,} characters; at most {LONGEST_LINE:,} are read")
        if fault := unreadable(line) or ("a carriage return; end lines with LF or CRLF" if "\r" in line else ""):
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
        if fault := unreadable(json.dumps(item, ensure_ascii=False)):
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
