"""A run's folder as files: what a run writes, and what tables, pages and tests read back.

config.yaml  run.json  judges.json  metrics.jsonl  metrics.csv  samples.parquet  samples/*.png  result.json  report.html  timing.json
All but timing.json are compared byte for byte between machines: no time, host or path enters them.
"""

import csv
import io
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

PICTURE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.png")
PARQUET = {"version": "2.6", "compression": "zstd", "compression_level": 3, "store_schema": False}
ARROW = {
    frozenset({"str"}): pa.string(),
    frozenset({"bool"}): pa.bool_(),
    frozenset({"int"}): pa.int64(),
    **dict.fromkeys((frozenset({"float"}), frozenset({"float", "int"}), frozenset()), pa.float64()),
}


def write_atomically(path: Path | str, data: bytes) -> None:
    """Give `path` this content or leave it as it was, through a crash, a kill or a full disk (OSError)."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Record:
    """The files of one run. Every write replaces a whole file, so a reader never meets half of one."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def open(self, config: dict[str, Any], run: dict[str, Any]) -> None:
        """Make the folder and write config.yaml and run.json, which says what a run is before it has any result.

        ValueError where the folder belongs to another config. One writer at a time.
        """
        path = self.folder / "config.yaml"
        config = _plain(config, "config")
        if path.exists() and (key := _first_difference(read_config(self.folder), config)) is not None:
            raise ValueError(f"{path} is another run's ({key} differs): choose another `output`, or move that folder away")
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        for leftover in (*self.folder.glob(".*.tmp"), *self.folder.glob("samples/.*.tmp")):  # of a killed run
            leftover.unlink(missing_ok=True)
        if not path.exists():
            write_atomically(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120).encode())
        write_atomically(self.folder / "run.json", (_json(run, "run", indent=1) + "\n").encode())

    def judges(self, identities: dict[str, dict[str, str]]) -> None:
        """judges.json: who scores this run. ValueError where another judge began it: its later scores would be another's."""
        path = self.folder / "judges.json"
        if path.exists() and (key := _first_difference(json.loads(path.read_bytes()), identities)) is not None:
            raise ValueError(
                f"{path}: the judge is not the one that this run began with ({key} differs): "
                "bring that one back, or choose another `output`"
            )
        if not path.exists():
            write_atomically(path, (_json(identities, "judges", indent=1) + "\n").encode())

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        """metrics.jsonl and metrics.csv, rewritten from the full history `rows`: a resumed run never repeats or loses a line."""
        write_atomically(self.folder / "metrics.jsonl", "".join(_json(row, "metrics") + "\n" for row in rows).encode())
        write_atomically(self.folder / "metrics.csv", _csv(rows).encode())

    def samples(self, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
        """samples.parquet, one row an image. Rows share their keys; a value is a str, int, bool, finite float or None.

        about: of the run, kept in the file's metadata under `alignbench`, so that a table needs nothing but this file.
        """
        columns: dict[str, list[Any]] = {key: [] for key in rows[0]} if rows else {}
        for n, row in enumerate(rows):
            if row.keys() != columns.keys():
                raise ValueError(f"samples row {n}: its columns differ from row 0's in {sorted(row.keys() ^ columns.keys())}")
            for key, value in _plain(row, f"samples row {n}").items():
                columns[key].append(value)
        buffer = io.BytesIO()
        table = pa.table({key: _column(key, values) for key, values in columns.items()})
        with pq.ParquetWriter(buffer, table.schema, **PARQUET) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({"alignbench": _json(about, "about")})
        write_atomically(self.folder / "samples.parquet", buffer.getvalue())

    def picture(self, name: str, array: np.ndarray) -> None:
        """samples/<name> from pixels [H,W,3] uint8, as a PNG without metadata."""
        path = picture_path(self.folder, name)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"picture {name}: [H,W,3] uint8 is wanted, not {list(array.shape)} {array.dtype}")
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", compress_level=6)
        write_atomically(path, buffer.getvalue())

    def result(self, result: dict[str, Any]) -> None:
        write_atomically(self.folder / "result.json", (_json(result, "result", indent=1) + "\n").encode())

    def timing(self, timing: dict[str, Any]) -> None:
        """timing.json, merged into what is there: keys of nested mappings too, so that stages add their seconds."""
        path = self.folder / "timing.json"
        before = json.loads(path.read_bytes()) if path.exists() else {}
        write_atomically(path, (_json(_merged(before, timing), "timing", indent=1) + "\n").encode())

    @property
    def epoch(self) -> int:
        """The last one that metrics.jsonl has; 0 before there is any."""
        try:
            return max((row["epoch"] for row in read_metrics(self.folder)), default=0)
        except ValueError:
            return 0

    @property
    def finished(self) -> bool:
        """Both the numbers and the page are there; the page is written last."""
        try:
            read_result(self.folder)
        except ValueError:
            return False
        return (self.folder / "report.html").is_file()


def picture_path(folder: Path | str, name: str) -> Path:
    """Where the picture of this name lies; ValueError for a name that could leave the folder."""
    if not PICTURE.fullmatch(name) or ".." in name:
        raise ValueError(f"picture name {name!r}: letters, digits, '_', '-' and single dots, ending in .png")
    return Path(folder) / "samples" / name


def read_config(folder: Path | str) -> dict[str, Any]:
    return _mapping(folder, "config.yaml", yaml.safe_load, yaml.YAMLError)


def read_result(folder: Path | str) -> dict[str, Any]:
    return _mapping(folder, "result.json", json.loads, json.JSONDecodeError)


def read_run(folder: Path | str) -> dict[str, Any]:
    return _mapping(folder, "run.json", json.loads, json.JSONDecodeError)


def read_metrics(folder: Path | str) -> list[dict[str, Any]]:
    path, rows = Path(folder) / "metrics.jsonl", []
    for n, line in enumerate(_text(path).split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {n}: not JSON ({error})") from None
    return rows


def read_samples(folder: Path | str, split: str = "test") -> list[dict[str, Any]]:
    """The rows of one split."""
    return [row for row in _parquet(Path(folder) / "samples.parquet", pq.read_table).to_pylist() if row["split"] == split]


def read_about(folder: Path | str) -> dict[str, Any]:
    """What samples.parquet says of its run: result.json without its statistics, and the config."""
    path = Path(folder) / "samples.parquet"
    said = (_parquet(path, pq.read_metadata).metadata or {}).get(b"alignbench")
    if said is None:
        raise ValueError(f"{path} does not say which run it is of: an older version wrote it; make that run again")
    return json.loads(said)


def _parquet(path: Path, read: Any) -> Any:
    if not path.is_file():
        raise ValueError(f"{path} is missing: is this the folder of a finished run?")
    try:
        return read(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: is this the folder of a finished run?") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8") from None


def _mapping(folder: Path | str, name: str, parse: Any, broken: type[Exception]) -> dict[str, Any]:
    path = Path(folder) / name
    text = _text(path)
    try:
        value = parse(text)
    except broken as error:
        raise ValueError(f"{path}: damaged ({str(error).splitlines()[0]})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a mapping is wanted, not {type(value).__name__}")
    return value


def _json(value: Any, where: str, indent: int | None = None) -> str:
    return json.dumps(_plain(value, where), sort_keys=True, indent=indent)  # ASCII, floats as repr


def _csv(rows: list[dict[str, Any]]) -> str:
    """Every column that a row has, epoch and split first; a cell is empty where its row has no such value. Floats as repr."""
    columns = ["epoch", "split", *sorted({key for row in rows for key in row} - {"epoch", "split"})]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_plain(rows, "metrics"))
    return text.getvalue()


def _plain(value: Any, where: str) -> Any:
    """Only what JSON, YAML and parquet all hold, exactly; ValueError naming the place of anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} is not a number that a record holds")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"{where}: a key that is not a string")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{n}]") for n, item in enumerate(value)]
    raise ValueError(f"{where}: a {type(value).__name__} cannot be recorded")


def _column(key: str, values: list[Any]) -> pa.Array:
    kinds = frozenset(type(value).__name__ for value in values if value is not None)
    if kinds not in ARROW:
        raise ValueError(f"samples column {key!r} holds {' and '.join(sorted(kinds))}: one plain type is wanted")
    return pa.array(values, ARROW[kinds])


def _merged(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    nested = [key for key in before.keys() & after.keys() if isinstance(before[key], dict) and isinstance(after[key], dict)]
    return {**before, **after, **{key: _merged(before[key], after[key]) for key in nested}}


def _first_difference(a: Any, b: Any, key: str = "") -> str | None:
    """The dotted key at which two configs part, or None."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return None if a == b and type(a) is type(b) else key
    for name in (*a, *(name for name in b if name not in a)):
        if name not in a or name not in b:
            return f"{key}.{name}".lstrip(".")
        if (found := _first_difference(a[name], b[name], f"{key}.{name}".lstrip("."))) is not None:
            return found
    return None
