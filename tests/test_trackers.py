"""Trackers: what they are told is what the run wrote, in the real libraries without a network, and nothing that they do reaches the run."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.config import HOST_ONLY, MissingAsset, Stopped, choices, conf_folder
from alignbench.evaluation.callbacks import Saver
from alignbench.experiment import made
from alignbench.report.record import read_metrics
from alignbench.trackers import guarded
from alignbench.trackers.base import Tracker
from alignbench.trackers.guarded import Guarded

SMALL = [
    *("model=gaussian", "reward=jpeg_compressibility", "eval=plain", "eval.prompts=3", "eval.images=2", "eval.validation_prompts=2"),
    *("eval.grid=2", "epochs=3", "eval.every=1", "method.images=8", "method.batch=4", "sampler.steps=3"),
]
RUN = {"hash": "0123456789abcdef", "cell": "fedcba9876543210", "name": "ddpo-gaussian-s0-0123456789", "seed": 0}
ROWS: list[dict[str, Any]] = [
    {"epoch": 0, "split": "validation", "reward": 0.25},
    {"epoch": 1, "split": "train", "reward": 0.5, "loss": -1.5},
    {"epoch": 1, "split": "validation", "reward": 0.75},
    {"epoch": 1, "split": "test", "reward": 0.875},
]
POINTS = {  # of ROWS, as trackers name them: (epoch, value)
    "validation/reward": [(0, 0.25), (1, 0.75)],
    "train/reward": [(1, 0.5)],
    "train/loss": [(1, -1.5)],
    "test/reward": [(1, 0.875)],
}


# --- nothing that a tracker does reaches the run


class Odd(Tracker):
    """Stands where a chosen tracker would, and takes what that one is given."""

    heard: ClassVar[list[Any]] = []
    ready: ClassVar[threading.Event] = threading.Event()

    def __init__(self, *, project: str, folder: str, patience: float):
        self.folder, self.patience = Path(folder), patience

    def log(self, row: dict[str, Any]) -> None:
        self.heard.append(row)

    def end(self, state: str) -> None:
        self.heard.append(state)


class Raises(Odd):
    def begin(self, run: dict[str, Any], config: dict[str, Any]) -> None:
        raise RuntimeError("no\nserver")

    log = picture = begin  # type: ignore[assignment]


class RaisesLater(Odd):
    def log(self, row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise OSError("gone")


class Exits(Odd):
    def log(self, row: dict[str, Any]) -> None:
        raise SystemExit(3)


class Hangs(Odd):
    def begin(self, run: dict[str, Any], config: dict[str, Any]) -> None:
        self.ready.wait()


class HangsAtTheEnd(Odd):
    def end(self, state: str) -> None:
        self.ready.wait()


class Prints(Odd):
    def log(self, row: dict[str, Any]) -> None:
        print("a line of mine", row)
        row.clear()  # and it takes what is not its own


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    Odd.heard.clear()
    Odd.ready.clear()
    yield
    Odd.ready.set()


def run(output: Path, *more: str) -> Path:
    words = [*SMALL, f"output={output}", *more]
    assert main(words) == 0
    return compose(words).folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "timing.json"}


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("untracked"))


@pytest.mark.parametrize(
    "odd, said",
    [
        (Odd, None),
        (Prints, None),
        (Raises, "tracker Raises failed (RuntimeError: no server); the run goes on without it"),
        (RaisesLater, "tracker RaisesLater failed (OSError: gone); the run goes on without it"),
        (Exits, "tracker Exits failed (SystemExit: 3); the run goes on without it"),
        (Hangs, "tracker Hangs has not finished 0.2 s after the run; the run goes on without it"),
        (HangsAtTheEnd, "tracker HangsAtTheEnd has not finished 0.2 s after the run; the run goes on without it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_whatever_a_tracker_does_the_run_is_the_same(
    odd: type[Odd], said: str | None, untracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("alignbench.trackers.tensorboard.TensorBoard", odd)
    folder = run(tmp_path, "tracker=tensorboard", *(["tracker.patience=0.2"] if said else []))
    there = contents(folder)
    assert {"metrics.jsonl", "metrics.csv", "samples.parquet", "weights/policy.safetensors", "checkpoints/last.ckpt"} < there.keys()
    assert there == contents(untracked)
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("alignbench: ")] == (
        [f"alignbench: {said}"] if said else []
    )


def test_another_seed_is_another_run(untracked: Path, tmp_path: Path) -> None:
    """The comparison above can fail."""
    assert contents(run(tmp_path, "seed=1")) != contents(untracked)


def test_a_tracker_that_lags_is_left_behind(tmp_path: Path) -> None:
    said: list[str] = []
    with Guarded(Hangs(project="", folder=str(tmp_path), patience=60.0), said.append) as tracker:
        tracker.begin(RUN, {})
        for count in range(guarded.BEHIND + 10):
            tracker.log([{"epoch": epoch, "split": "train"} for epoch in range(count)])
    assert said == [f"alignbench: tracker Hangs is {guarded.BEHIND} calls behind; the run goes on without it"]  # and nobody waited a minute


@pytest.mark.parametrize("error, state", [(None, "done"), (ValueError(), "failed"), (Stopped(15), "stopped")])
def test_a_tracker_hears_how_it_ended(error: BaseException | None, state: str, tmp_path: Path) -> None:
    def whole() -> None:
        with Guarded(Odd(project="", folder=str(tmp_path), patience=60.0), print) as tracker:
            tracker.begin(RUN, {})
            tracker.log(ROWS[:1])
            if error is not None:
                raise error

    if error is None:
        whole()
    else:
        with pytest.raises(type(error)):
            whole()
    assert Odd.heard == [ROWS[0], state]


def test_a_process_that_does_not_begin_tracks_nothing(tmp_path: Path) -> None:
    """Of several that share a run, one begins."""
    with Guarded(Odd(project="", folder=str(tmp_path), patience=60.0), print) as tracker:
        tracker.log(ROWS)
        tracker.picture(tmp_path)
    assert Odd.heard == []


# --- an epoch is told once


def test_a_stopped_run_tells_no_row_twice_and_leaves_none_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at the worst moment: the epoch has been told of, and is done again as its checkpoint was not saved."""
    monkeypatch.setattr("alignbench.trackers.tensorboard.TensorBoard", Odd)
    words = [*SMALL, f"output={tmp_path}", "tracker=tensorboard"]
    save = Saver.on_train_epoch_end

    def stops(self: Saver, trainer: Any, method: Any) -> None:
        if trainer.current_epoch == 1:
            raise Stopped(15)
        save(self, trainer, method)

    monkeypatch.setattr(Saver, "on_train_epoch_end", stops)
    assert main(words) == 128 + 15
    before = [row["epoch"] for row in Odd.heard[:-1]]
    assert before[-1] == 2
    assert Odd.heard.pop() == "stopped"
    monkeypatch.setattr(Saver, "on_train_epoch_end", save)
    assert main(words) == 0
    assert Odd.heard.pop() == "done"
    assert Odd.heard.pop()["split"] == "test"
    assert Odd.heard == read_metrics(compose(words).folder)


def test_a_tracker_that_was_lost_is_told_what_it_missed(tmp_path: Path) -> None:
    for odd, rows in ((RaisesLater, [{"epoch": epoch, "split": "train"} for epoch in range(4)]), (Odd, ROWS)):
        with Guarded(odd(project="", folder=str(tmp_path), patience=60.0), print) as tracker:
            tracker.begin(RUN, {})
            tracker.log(rows)
    assert Odd.heard == [*ROWS[2:], "done"]  # the two before its failure are there already


# --- the config


@pytest.mark.parametrize("name", choices("tracker", conf_folder()))
def test_a_tracker_is_no_part_of_what_a_run_is(name: str) -> None:
    plain, tracked = compose(["seed=3"]), compose(["seed=3", f"tracker={name}", *(["tracker.patience=3"] if name != "none" else [])])
    assert (tracked.hash, tracked.cell, tracked.command, tracked.named) == (plain.hash, plain.cell, plain.command, plain.named)
    assert "tracker" not in tracked.identity
    assert tracked.config["tracker"]["_target_"].startswith(f"alignbench.trackers.{name}.")
    assert HOST_ONLY["tracker"] is None


def test_the_readme_s_run_is_still_the_readme_s() -> None:
    assert compose([]).hash.startswith("b2006e96fc")


@pytest.mark.parametrize(
    "name, package", [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("trackio", "trackio"), ("mlflow", "mlflow.tracking")]
)
def test_a_missing_library_is_said_before_anything_begins(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main([*SMALL, f"output={tmp_path}", f"tracker={name}"]) == 3
    err = capsys.readouterr().err
    assert "pip install 'alignbench[trackers]'" in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_broken_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trackio.py").write_text("raise TypeError('two\\nlines')")
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingAsset, match=r"trackio cannot be imported \(two lines\)"):
        made(compose([f"output={tmp_path}", "tracker=trackio"]).config["tracker"])


# --- the real libraries, read back by their own readers

TWICE = """
import importlib, json, sys
from pathlib import Path
from alignbench.compose import compose
from alignbench.trackers.guarded import Guarded
words, run, rows, picture = json.loads(sys.argv[1])
said = []
node = compose(words).config["tracker"]
module, _, name = node.pop("_target_").rpartition(".")
with Guarded(getattr(importlib.import_module(module), name)(**node), said.append) as tracker:
    tracker.begin(run, {"method": {"clip": 0.5}})
    for count in range(1, len(rows) + 1):
        tracker.log(rows[:count])
    if picture:
        tracker.picture(Path(picture))
sys.exit(said[0] if said else 0)
"""


def told(tmp_path: Path, name: str) -> Path:
    """Two processes of one run, the second of which goes on after the second row; the tracker's folder."""
    picture = tmp_path / "grid.png"
    Image.fromarray(np.full((4, 6, 3), 128, np.uint8)).save(picture)
    words = [f"output={tmp_path / 'outputs'}", f"tracker={name}", "tracker.patience=60"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "TRACKIO_", "MLFLOW_"))}
    for rows, last in ((ROWS[:2], ""), (ROWS, str(picture))):
        given = json.dumps([words, RUN, rows, last])
        done = subprocess.run([sys.executable, "-c", TWICE, given], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / ".trackers" / name
    assert (folder / "0123456789.rows").read_text() == "4"
    return folder


def test_tensorboard_has_every_row_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(told(tmp_path, "tensorboard") / "alignbench" / RUN["name"]))
    events.Reload()
    assert {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == POINTS
    assert [each.step for each in events.Images("grid")] == [1]


def records(data: bytes) -> Iterator[bytes]:
    """What lies in a .wandb file: seven bytes, then LevelDB's log format (google/leveldb, doc/log_format.md)."""
    at, whole = 7, b""
    while at < len(data):
        if 32768 - at % 32768 < 7:  # a block's end that has no room for a header
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            yield whole
            whole = b""


def test_wandb_offline_has_every_row_once(tmp_path: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted((told(tmp_path, "wandb") / "wandb").glob("offline-run-*/run-0123456789.wandb"))
    assert len(files) == 2  # which `wandb sync` puts together, as they are of one run
    points: dict[str, list[tuple[int, float]]] = {}
    for file in files:
        for data in records(file.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("run"):
                assert (record.run.run_id, record.run.project, record.run.run_group) == ("0123456789", "alignbench", RUN["cell"][:10])
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for key, value in items.items():
                if not key.startswith("_"):
                    points.setdefault(key, []).append((items["_step"], value))
    grid = {key: points.pop(key) for key in list(points) if key.startswith("grid/")}
    assert grid["grid/height"] == [(1, 4)]
    assert points == POINTS


def test_mlflow_has_every_row_once(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{told(tmp_path, 'mlflow')}/runs.db")
    experiment = client.get_experiment_by_name("alignbench")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["method.clip"] == "0.5"
    assert {
        name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
    } == POINTS
    assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["grid.png"]


def test_trackio_has_every_row_once(tmp_path: Path) -> None:
    read = f"""
import json
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps([SQLiteStorage.get_runs("alignbench"), SQLiteStorage.get_logs("alignbench", {RUN["name"]!r})]))
"""
    environment = os.environ | {"TRACKIO_DIR": str(told(tmp_path, "trackio"))}
    done = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True, check=True)
    runs, logs = json.loads(done.stdout.splitlines()[-1])
    assert len(runs) == 1
    points: dict[str, list[tuple[int, float]]] = {}
    for row in logs:
        for key, value in row.items():
            if "/" in key:
                points.setdefault(key, []).append((row["step"], value))
    assert points == POINTS
    assert [row["step"] for row in logs if "grid" in row] == [1]
