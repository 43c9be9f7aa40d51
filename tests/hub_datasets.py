"""A cache of the Hub with small files in the place of a dataset's."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet


def put(cache: Path, repository: str, revision: str | None, files: dict[str, bytes]) -> None:
    """Files as huggingface_hub lays them out; a revision that is no commit gets a commit of zeros."""
    folder = cache / f"datasets--{repository.replace('/', '--')}"
    commit = revision if revision and len(revision) == 40 else "0" * 40
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / (revision or "main")).write_text(commit)
    for name, data in files.items():
        (folder / "snapshots" / commit / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / commit / name).write_bytes(data)


def filled(file: str, column: str, prompts: list[str]) -> bytes:
    """A file of prompts in the format that its name says."""
    match Path(file).suffix:
        case ".txt":
            return "\n".join(prompts).encode()
        case ".json":
            return json.dumps(prompts).encode()
        case ".parquet":
            buffer = pyarrow.BufferOutputStream()
            pyarrow.parquet.write_table(pyarrow.table({column: prompts}), buffer)
            return buffer.getvalue().to_pybytes()
    raise ValueError(file)


def stand_in(cache: Path, node: dict, count: int = 4000) -> None:
    """Prompts, none near another, in the place of the files that a choice names."""
    for index, file in enumerate(node["files"]):
        prompts = [f"a picture of thing {count * index + number}" for number in range(count)]
        put(cache, node["repository"], node["revision"], {file: filled(file, node["column"], prompts)})
