"""The run's folder: whole files or none, the same bytes anywhere, nothing in it that is not a number, a word or a picture."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow.csv import read_csv

from alignbench.report.record import Record, read_about, read_config, read_metrics, read_result, read_run, read_samples, write_atomically

CONFIG = {"seed": 0, "method": {"_target_": "alignbench.methods.ddpo.DDPO", "clip": 1e-4, "betas": [0.9, 0.999]}, "budget": None}
RUN = {"choices": {"method": "ddpo"}, "seed": 0, "note": "دائرة"}
ROWS: list[dict[str, Any]] = [
    {"who": who, "split": "test", "prompt_id": n, "prompt": prompt, "k": 0, "image": "", "reward": 0.1 * n + 1 / 3, "kl": 0}
    for n, prompt in enumerate(["a red ring", '<b> "quoted"\u2028line', "دائرة"])
    for who in ("reference", "policy")
]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    record = Record(tmp_path / "outputs" / "run")
    record.open(CONFIG, RUN)
    return record


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_written_is_read_back(record: Record) -> None:
    record.metrics([{"epoch": n, "split": "train", "reward": np.float32(0.1), "queries": np.int64(n)} for n in range(3)])
    record.samples(ROWS, RUN)
    record.result({"metrics": [{"name": "reward", "interval": (0.1, 1 / 3)}]})
    assert read_config(record.folder) == CONFIG
    assert list(read_config(record.folder)) == list(CONFIG)
    reward = float(np.float32(0.1))
    assert read_metrics(record.folder) == [{"epoch": n, "split": "train", "reward": reward, "queries": n} for n in range(3)]
    assert read_samples(record.folder) == ROWS
    assert read_samples(record.folder, "validation") == []
    assert read_about(record.folder) == read_run(record.folder) == RUN
    assert read_result(record.folder) == {"metrics": [{"name": "reward", "interval": [0.1, 1 / 3]}]}


def test_json_is_sorted_exact_and_ascii(record: Record) -> None:
    record.result({"b": 0.1 + 0.2, "a": "\u2028é"})
    record.metrics([{"z": 1, "a": "one\nline\u2028"}])
    assert (record.folder / "result.json").read_text() == '{\n "a": "\\u2028\\u00e9",\n "b": 0.30000000000000004\n}\n'
    assert (record.folder / "metrics.jsonl").read_text() == '{"a": "one\\nline\\u2028", "z": 1}\n'


def test_the_history_as_csv_is_the_history(record: Record) -> None:
    """Read back by another library: the same rows, the union of their columns, every float exact, nothing where a row has no value."""
    rows = [{"reward": 0.1 + 0.2, "split": "train", "epoch": 1}, {"epoch": 1, "split": "validation", "kl": 1e-300, "queries": 8}]
    record.metrics(rows)
    text = (record.folder / "metrics.csv").read_text()
    assert text == "epoch,split,kl,queries,reward\n1,train,,,0.30000000000000004\n1,validation,1e-300,8,\n"
    table = read_csv(record.folder / "metrics.csv").to_pylist()
    assert [{key: value for key, value in row.items() if value is not None} for row in table] == rows
    record.metrics([])
    assert (record.folder / "metrics.csv").read_text() == "epoch,split\n"


def test_two_folders_hold_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        record = Record(tmp_path / name)
        record.open(CONFIG, RUN)
        record.metrics([{"epoch": 0, "reward": 0.5}])
        record.samples(ROWS, RUN)
        record.picture("0-0-policy.png", np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
        record.result({"format": 1})
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 7


def test_history_is_replaced_not_appended(record: Record) -> None:
    record.metrics([{"epoch": 0}, {"epoch": 1}])
    record.metrics([{"epoch": 0}])
    assert read_metrics(record.folder) == [{"epoch": 0}]
    record.metrics([])
    assert read_metrics(record.folder) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_what_is_not_a_number_is_refused_and_named(record: Record, value: float) -> None:
    with pytest.raises(ValueError, match=r"result\.metrics\[0\]\.policy: (nan|-?inf)"):
        record.result({"metrics": [{"policy": value}]})
    with pytest.raises(ValueError, match=r"metrics\.reward"):
        record.metrics([{"reward": value}])
    with pytest.raises(ValueError, match=r"samples row 1\.reward"):
        record.samples([{"reward": 0.0}, {"reward": value}], RUN)
    assert {path.name for path in record.folder.iterdir()} == {"config.yaml", "run.json", "samples"}


@pytest.mark.parametrize("value", [{1: 2}, {"a": object()}, {"a": np.zeros(2)}, {"a": Path("x")}, {"a": {1}}])
def test_what_json_would_bend_is_refused(record: Record, value: dict) -> None:
    with pytest.raises(ValueError, match="result"):
        record.result(value)


def test_another_config_is_never_overwritten(record: Record) -> None:
    before = contents(record.folder)
    record.open(json.loads(json.dumps(CONFIG)), RUN)
    other = {**CONFIG, "method": CONFIG["method"] | {"clip": 1e-3}}  # type: ignore[operator]
    for changed, key in (
        (other, "method.clip"),
        ({**CONFIG, "new": 1}, "new"),
        ({"seed": 0}, "method"),
        ({**CONFIG, "seed": False}, "seed"),
    ):
        with pytest.raises(ValueError, match=rf"another run's \({key} differs\)"):
            Record(record.folder).open(changed, RUN)
    assert contents(record.folder) == before


def test_leftovers_of_a_killed_run_are_cleared(record: Record) -> None:
    for name in (".result.json.12345.tmp", "samples/.0-0-policy.png.12345.tmp"):
        (record.folder / name).write_bytes(b"half")
    record.open(CONFIG, RUN)
    assert list(contents(record.folder)) == ["config.yaml", "run.json"]


def test_finished_needs_the_numbers_and_the_page(record: Record) -> None:
    assert not record.finished
    record.result({"format": 1})
    assert not record.finished
    write_atomically(record.folder / "report.html", b"<!doctype html>")
    assert record.finished
    for damage in (b"", b"{", b"[]", b"\xff\xfe"):
        (record.folder / "result.json").write_bytes(damage)
        assert not record.finished


def test_timing_is_merged(record: Record) -> None:
    record.timing({"device": "cpu", "seconds": {"training": 1.5}})
    record.timing({"seconds": {"evaluation": 0.5}, "host": "here"})
    assert json.loads((record.folder / "timing.json").read_text()) == {
        "device": "cpu",
        "host": "here",
        "seconds": {"training": 1.5, "evaluation": 0.5},
    }


@pytest.mark.parametrize(
    "name", ["../a.png", "a/b.png", "a\\b.png", "..png", "a..png", ".png", "a.jpg", "", "a.png\n", "-a.png", "ä.png", "\0.png"]
)
def test_picture_names_stay_in_the_folder(record: Record, name: str) -> None:
    with pytest.raises(ValueError, match="picture name"):
        record.picture(name, np.zeros((4, 4, 3), np.uint8))
    assert list(contents(record.folder)) == ["config.yaml", "run.json"]


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)])
def test_pictures_are_bytes_by_rows(record: Record, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 is wanted"):
        record.picture("a.png", array)


def test_pictures_keep_every_pixel_and_nothing_else(record: Record) -> None:
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (8, 5, 3), dtype=np.uint8)
    record.picture("7-1-reference.png", pixels[:, ::-1])
    with Image.open(record.folder / "samples" / "7-1-reference.png") as picture:
        assert picture.info == {}
        assert (np.asarray(picture) == pixels[:, ::-1]).all()


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"a": 1}, {"b": 1}], r"row 1: its columns differ from row 0's in \['a', 'b'\]"),
        ([{"a": 1}, {"a": "x"}], "'a' holds int and str"),
        ([{"a": 1}, {"a": True}], "'a' holds bool and int"),
        ([{"a": [1]}], "'a' holds list"),
    ],
)
def test_samples_are_one_plain_type_a_column(record: Record, rows: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record.samples(rows, RUN)


def test_a_missing_score_is_null(record: Record) -> None:
    rows = [{"split": "test", **row} for row in ({"a": "a", "score": None}, {"a": None, "score": 1}, {"a": "b", "score": 0.5})]
    record.samples(rows, RUN)
    assert read_samples(record.folder) == rows
    record.samples([], RUN)
    assert read_samples(record.folder) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(record: Record, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    record.result({"generation": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), full)
    with pytest.raises(OSError, match="No space"):
        record.result({"generation": 2})
    assert read_result(record.folder) == {"generation": 1}
    assert {path.name for path in record.folder.iterdir()} == {"config.yaml", "run.json", "samples", "result.json"}


@pytest.mark.parametrize(
    "read, name, damage",
    [
        (read_config, "config.yaml", b"a: [1"),
        (read_config, "config.yaml", b"- 1\n"),
        (read_config, "config.yaml", b"!!python/object/apply:os.getcwd []"),
        (read_result, "result.json", b'{"a":'),
        (read_metrics, "metrics.jsonl", b'{"a": 1}\n{"a"\n'),
        (read_metrics, "metrics.jsonl", b"\xff\n"),
        (read_samples, "samples.parquet", b"PAR1"),
        (read_samples, "samples.parquet", b""),
        (read_run, "run.json", b"{"),
    ],
)
def test_readers_name_the_file_in_one_line(tmp_path: Path, read: Any, name: str, damage: bytes) -> None:
    with pytest.raises(ValueError, match=f"{name} is missing"):
        read(tmp_path)
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(ValueError, match=name) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)
