"""Data files: what is well formed is read alike in every format; what is not is one line with the row, exit code 2, and no run folder."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from alignbench.__main__ import main
from alignbench.config import ConfigError
from alignbench.datasets.files import LONGEST_LINE, read
from alignbench.datasets.table import LONGEST_CELL, Table

ODD = [  # what a careless reader splits, strips, joins or loses
    "a cat",
    " leading and trailing ",
    'a sign that says "stop", in red',
    "une façade à Évora, 猫, 🐈",
    "line\u2028separator and \x0bvertical tab and \x85next line",
    "tab\there",
    "'single' and “curly”",
    "null",
    "3",
]


def parquet(columns: dict[str, Any] | pyarrow.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns), buffer, **options)
    return buffer.getvalue()


def as_csv(rows: list[list[str]], end: str = "\n") -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows(rows)
    return text.getvalue().encode()


LINES = "\n".join(ODD).encode()
OBJECTS = [{"prompt": each, "n": index} for index, each in enumerate(ODD)]
GOOD: dict[str, bytes] = {
    "plain.txt": LINES,
    "ended.txt": LINES + b"\n",
    "empty lines at the end.txt": LINES + b"\n\n\r\n",
    "windows.txt": "\r\n".join(ODD).encode("utf-8-sig") + b"\r\n",
    "plain.csv": as_csv([["n", "prompt"], *([str(index), each] for index, each in enumerate(ODD))]),
    "windows.csv": b"\xef\xbb\xbf" + as_csv([["prompt"], *([each] for each in ODD)], "\r\n"),
    "plain.jsonl": "\n".join(json.dumps(each, ensure_ascii=False) for each in OBJECTS).encode(),
    "windows.jsonl": b"\xef\xbb\xbf" + "".join(json.dumps(each) + "\r\n" for each in OBJECTS).encode(),
    "plain.json": json.dumps(OBJECTS, indent=1).encode(),
    "words.json": json.dumps(ODD).encode("utf-8-sig"),
    "PLAIN.JSON": json.dumps(OBJECTS, ensure_ascii=False).encode(),
    "plain.parquet": parquet({"prompt": ODD, "n": range(len(ODD)), "picture": [b"\xff"] * len(ODD)}),
    "large.parquet": parquet({"prompt": pyarrow.array(ODD, pyarrow.large_string())}, row_group_size=2, compression="zstd"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_file_that_is_well_formed_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(GOOD[name])
    assert read(tmp_path / name, "x").words("prompt") == ODD


def test_a_folder_of_a_partition_adds_no_column(tmp_path: Path) -> None:
    (tmp_path / "style=anime").mkdir()
    (tmp_path / "style=anime" / "x.parquet").write_bytes(GOOD["plain.parquet"])
    table = read(tmp_path / "style=anime" / "x.parquet", "x", wanted={"prompt", "style"})
    assert table.columns == ["prompt", "n", "picture"]
    assert table.rows[0] == {"prompt": "a cat"}  # and pictures are not read where nobody asks for them


# --- malformed: name -> (file, bytes, words beside its path, what is said)

PROMPTS = b"a cat\na dog\n"
NO_UTF8 = "what is not UTF-8"
long_line, long_prompt = b"x" * 10_000_000, b"x" * (LONGEST_CELL + 1)
broken = parquet({"prompt": pyarrow.array([b"a cat", b"\xff dog"], pyarrow.binary()).view(pyarrow.string())})
twice = parquet(pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"]))
BAD: dict[str, tuple[str, bytes | None, list[str], str]] = {
    # lines
    "empty": ("p.txt", b"", [], "no rows"),
    "empty lines alone": ("p.txt", b"\n\n\r\n", [], "no rows"),
    "mark alone": ("p.txt", b"\xef\xbb\xbf", [], "no rows"),
    "blank line": ("p.txt", b"a cat\n\na dog\n", [], "row 2: a blank line"),
    "spaces": ("p.txt", b"a cat\na dog\n \t \na cow", [], "row 3: a blank line"),
    "no utf-8": ("p.txt", b"a cat\na dog\n\xe9gg\n", [], f"row 3: it holds {NO_UTF8}"),
    "cut character": ("p.txt", "a cat\n猫".encode()[:-1], [], f"row 2: it holds {NO_UTF8}"),
    "utf-16": ("p.txt", "a cat\na dog".encode("utf-16"), [], "UTF-16; save it as UTF-8"),
    "nul": ("p.txt", b"a cat\na \x00dog\n", [], "row 2: it holds a NUL byte"),
    "lone return": ("p.txt", b"a cat\ra dog\ra cow\n", [], "row 1: it holds a carriage return"),
    "10 MB line": ("p.txt", PROMPTS + long_line, [], "row 3: a line of 10,000,000 characters; at most 1,000,000"),
    "long prompt": ("p.txt", PROMPTS + long_prompt, [], "row 3: prompt has 10,001 characters; at most 10,000"),
    "repeated": ("p.txt", PROMPTS + b"a cow\na cat\n", [], "row 4: the prompt of row 1 again ('a cat')"),
    "another column": ("p.txt", PROMPTS, ["dataset.column=prompz"], "no column prompz; did you mean prompt?"),
    # csv
    "empty csv": ("p.csv", b"", [], "no rows"),
    "header alone": ("p.csv", b"prompt,style\n", [], "no rows"),
    "column": ("p.csv", b"Prompt,style\na cat,x\n", [], "no column prompt; did you mean Prompt?"),
    "no column like it": ("p.csv", b"x,y\na cat,x\n", [], "no column prompt; there is x, y"),
    "group's column": ("p.csv", b"prompt,style\na cat,x\n", ["dataset.group=styles"], "no column styles; did you mean style?"),
    "kept column": ("p.csv", b"prompt,style\na cat,x\n", ["dataset.keep=[seed]"], "no column seed; there is prompt, style"),
    "too many cells": ("p.csv", b"prompt,style\na cat,x\na dog, running,y\n", [], "row 2: 3 cells for 2 columns"),
    "too few cells": ("p.csv", b"prompt,style\na cat,x\na dog\n", [], "row 2: 1 cells for 2 columns"),
    "open quote": ("p.csv", b'prompt,style\na cat,x\n"a dog,y\na cow,z\n', [], "row 2: a double quote is not closed"),
    "stray quote": ("p.csv", b'prompt,style\n"a "big" cat",x\n', [], "row 1: not CSV"),
    "line break in quotes": ("p.csv", b'prompt\n"a cat\nand a dog"\n', [], "row 1: a double quote is not closed"),
    "blank csv line": ("p.csv", b"prompt\na cat\n\na dog\n", [], "row 2: a blank line"),
    "blank cell": ("p.csv", b"prompt,style\na cat,x\n ,y\n", [], "row 2: prompt is blank"),
    "blank group": ("p.csv", b"prompt,style\na cat,x\na dog,\n", ["dataset.group=style"], "row 2: style is blank"),
    "two columns": ("p.csv", b"prompt,style,prompt\na,b,c\n", [], "header: two columns are called prompt"),
    "column without a name": ("p.csv", b"prompt,,style\na,b,c\n", [], "header: column 2 has no name"),
    "no utf-8 in csv": ("p.csv", b"prompt,style\na cat,x\na dog,\xe9gg\n", [], f"row 2: it holds {NO_UTF8}"),
    "nul in the header": ("p.csv", b"pro\x00mpt\na cat\n", [], "header: it holds a NUL byte"),
    "10 MB header": ("p.csv", long_line, [], "header: a line of 10,000,000 characters"),
    "10 MB cell": ("p.csv", b'prompt,style\na cat,"' + long_line + b'"\n', [], "row 1: a line of 10,000,008 characters"),
    "archive": ("p.csv", b"PK\x03\x04\x14\x00\x00\x00../../etc/passwd\n", [], "header: it holds a NUL byte"),
    "split's word": (
        "p.csv",
        b"prompt,s\na cat,train\na dog,val\n",
        ["dataset.split=s"],
        "row 2: s is val; it is one of train, validation",
    ),
    "near-duplicates": (
        "p.csv",
        b"prompt,s\nA cat and a dog.,train\na cow,train\nthe dog and the cat,test\n",
        ["dataset.split=s"],
        "row 3: 'the dog and the cat' in test is nearly 'A cat and a dog.' in train, row 1; take one out",
    ),
    # a line an object
    "no json": ("p.jsonl", b'{"prompt": "a cat"}\n{"prompt": "a d\n', [], "row 2: not JSON"),
    "two in a line": ("p.jsonl", b'{"prompt": "a cat"} {"prompt": "a dog"}\n', [], "row 1: not JSON"),
    "blank jsonl line": ("p.jsonl", b'{"prompt": "a cat"}\n\n{"prompt": "a dog"}\n', [], "row 2: a blank line"),
    "no object": ("p.jsonl", b'{"prompt": "a cat"}\n["a dog"]\n', [], "row 2: ['a dog'] is no object"),
    "missing key": ("p.jsonl", b'{"prompt": "a cat"}\n{"prompz": "a dog"}\n', [], "row 2: no prompt; did you mean prompz?"),
    "null": ("p.jsonl", b'{"prompt": "a cat"}\n{"prompt": null}\n', [], "row 2: no prompt"),
    "number": ("p.jsonl", b'{"prompt": "a cat"}\n{"prompt": 3}\n', [], "row 2: prompt must be words, not 3"),
    "list": ("p.jsonl", b'{"prompt": ["a cat"]}\n', [], "row 1: prompt must be words, not ['a cat']"),
    "key twice": ("p.jsonl", b'{"prompt": "a cat", "prompt": "a dog"}\n', [], "row 1: not JSON (prompt is given twice"),
    "nan": ("p.jsonl", b'{"prompt": "a cat", "score": NaN}\n', [], "row 1: not JSON (NaN is no number"),
    "many digits": ("p.jsonl", b'{"prompt": "a cat", "n": ' + b"1" * 5000 + b"}\n", [], "row 1: not JSON"),
    "nested": ("p.jsonl", b'{"prompt": "a cat"}\n' + b"[" * 100_000 + b"\n", [], "row 2: not JSON (nested too deeply)"),
    "half a character": ("p.jsonl", b'{"prompt": "a cat", "style": "\\ud800"}\n', [], f"row 1: it holds {NO_UTF8}"),
    "escaped nul": ("p.jsonl", b'{"prompt": "a cat"}\n{"prompt": "a \\u0000dog"}\n', [], "row 2: prompt holds a NUL byte"),
    "10 MB object": ("p.jsonl", b'{"prompt": "' + long_line + b'"}\n', [], "row 1: a line of 10,000,014 characters"),
    # a list of objects
    "empty json": ("p.json", b"", [], "no rows"),
    "empty list": ("p.json", b"[]", [], "no rows"),
    "one object": ("p.json", b'{"prompt": "a cat"}', [], "is no list"),
    "objects without a list": ("p.json", b'{"prompt": "a cat"}\n{"prompt": "a dog"}\n', [], "not JSON (Extra data, line 2"),
    "words and objects": ("p.json", b'["a cat", {"prompt": "a dog"}]', [], "row 1: 'a cat' is no object"),
    "no utf-8 in json": ("p.json", b'[{"prompt": "a cat"}, {"prompt": "\xe9gg"}]', [], f"row 2: it holds {NO_UTF8}"),
    "long word": ("p.json", b'["a cat", "' + long_line + b'"]', [], "row 2: prompt has 10,000,000 characters"),
    # parquet
    "no parquet": ("p.parquet", b"prompt\na cat\n", [], "no parquet, or cut short"),
    "cut parquet": ("p.parquet", parquet({"prompt": ["a cat", "a dog"]})[:-40], [], "no parquet, or cut short"),
    "parquet without its end": ("p.parquet", parquet({"prompt": [f"{n} cats" for n in range(9999)]})[:4000], [], "or cut short"),
    "pointer of git-lfs": ("p.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", [], "no parquet"),
    "parquet of no rows": ("p.parquet", parquet({"prompt": pyarrow.array([], pyarrow.string())}), [], "no rows"),
    "parquet's column": ("p.parquet", parquet({"caption": ["a cat"]}), [], "no column prompt; there is caption"),
    "parquet's null": ("p.parquet", parquet({"prompt": ["a cat", None]}), [], "row 2: no prompt"),
    "parquet of numbers": ("p.parquet", parquet({"prompt": [1, 2]}), [], "row 1: prompt must be words, not 1"),
    "parquet of bytes": ("p.parquet", parquet({"prompt": [b"a cat"]}), [], "row 1: prompt must be words, not b'a cat'"),
    "no utf-8 in parquet": ("p.parquet", broken, [], "row 2: prompt holds bytes that are not UTF-8"),
    "parquet's two columns": ("p.parquet", twice, [], "two columns are called prompt"),
    # no file
    "no file": ("p.csv", None, [], "there is no such file"),
    "no name": ("", None, [], "dataset.path"),
    "long name": ("x" * 300 + ".csv", None, [], "cannot be read (File name too long)"),
    "ending": ("p.xlsx", b"PK", [], "files that end in '.xlsx' are not read; there is .txt, .csv"),
    "no ending": ("prompts", PROMPTS, [], "files that end in '' are not read"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_malformed_is_one_line_with_its_row(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    name, data, words, said = BAD[case]
    if data is not None:
        Path(name).write_bytes(data)
    assert main(["dataset=prompts", f"dataset.path={name}", "model=gaussian", "epochs=1", "output=runs", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert line.startswith(f"alignbench: dataset.path={name[:50]}" if name else "alignbench: dataset.path")
    assert len(line) < 400
    assert not Path("runs").exists()


def test_there_are_cases_enough() -> None:
    assert len(BAD) >= 40
    assert sum("row " in said for *_, said in BAD.values()) >= 30


def test_folders_and_pipes_are_no_files(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    os.symlink(tmp_path / "round.csv", tmp_path / "round.csv")
    for name, said in (("folder.csv", "a folder; name a file in it"), ("pipe.csv", "a pipe or a device"), ("round.csv", "cannot be read")):
        assert main(["dataset=prompts", f"dataset.path={tmp_path / name}", "epochs=1", f"output={tmp_path / 'runs'}"]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("size", [LONGEST_CELL, LONGEST_CELL + 1])
def test_the_longest_prompt_is_read_and_the_next_is_not(size: int, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("x" * size)
    table = read(tmp_path / "p.txt", "x")
    if size > LONGEST_CELL:
        with pytest.raises(ConfigError, match=r"row 1: prompt has 10,001 characters"):
            table.words("prompt")
    else:
        assert len(table.words("prompt")[0]) == size


def test_the_longest_line_is_read_and_csv_s_own_limit_is_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (tmp_path / "p.csv").write_text(f"prompt,picture\na cat,{'x' * (LONGEST_LINE - 6)}\n")
    assert read(tmp_path / "p.csv", "x").words("prompt") == ["a cat"]
    assert csv.field_size_limit() == before


def test_a_row_is_named_by_the_file_s_own_counting() -> None:
    table = Table("prompts.csv", ["prompt"], [{"prompt": "a cat"}, {"prompt": ""}])
    with pytest.raises(ConfigError, match=r"^prompts\.csv, row 2: prompt is blank"):
        table.words("prompt")


def test_the_row_is_that_of_the_file_in_a_file_for_each_split(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "train.txt").write_text("a cat\na dog\n")
    (tmp_path / "validation.txt").write_text("a cow\n")
    words = ["dataset=prompt_files", *(f"dataset.{split}={tmp_path / split}.txt" for split in ("train", "validation", "test")), "epochs=1"]
    for test, said in {
        "a fox\na DOG!\n": "dataset.test=test.txt, row 2: 'a DOG!' in test is nearly 'a dog' in train, row 2 of dataset.train=train.txt;",
        "a fox\na cow\n": "dataset.test=test.txt, row 2: the prompt of row 1 of dataset.validation=validation.txt again ('a cow');",
        "a fox\n\na cat\n": "dataset.test=test.txt, row 2: a blank line",
    }.items():
        (tmp_path / "test.txt").write_text(test)
        assert main(words) == 2
        assert said in capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert main([*words[:1], *(f"dataset.{split}=null" for split in ("train", "validation", "test")), "epochs=1"]) == 2
    assert "name a file" in capsys.readouterr().err
