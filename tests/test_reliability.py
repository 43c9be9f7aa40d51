"""Real processes, killed, stopped and robbed of their files (R1, R2, R5, R11): the same command again ends byte for byte the same."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import pytest

from alignbench.checkpoint import AtomicCheckpointIO, previous
from alignbench.compose import Composed, compose
from alignbench.report.record import read_metrics, read_result

pytestmark = pytest.mark.slow

CASES = {
    "gaussian": [
        *("model=gaussian", "eval=plain", "reward=jpeg_compressibility", "epochs=12", "sampler.steps=8"),
        *("method.images=64", "method.images_per_prompt=4", "method.batch=16", "method.advantage=group", "method.optimizer.lr=0.01"),
        *("eval.prompts=4", "eval.validation_prompts=2", "eval.every=2"),
    ],
    "sandbox": [
        *("model=sandbox", "adapter=lora", "reward=colour", "epochs=3", "sampler.steps=3", "method.images=8", "method.batch=4"),
        *("eval=quick", "eval.prompts=4", "eval.validation_prompts=2"),
    ],
}
SLOWEST = 180  # seconds a process may take, on a busy machine

# kills its process before the n-th file of a name takes its place
KILLED_WRITING = """
import os, signal, sys
name, left = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
replace = os.replace
def replaced(source, destination):
    global left
    left -= os.path.basename(destination) == name
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, destination)
os.replace = replaced
from alignbench.__main__ import main
sys.exit(main())
"""


class Run:
    """One command and its folder; each start is a process of its own."""

    def __init__(self, words: list[str], root: Path):
        self.words, self.root = [*words, f"output={root}"], root
        root.mkdir(parents=True, exist_ok=True)

    @cached_property
    def composed(self) -> Composed:
        return compose(self.words)

    @property
    def folder(self) -> Path:
        return self.composed.folder

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @contextmanager
    def started(self, *python: str) -> Iterator[subprocess.Popen]:
        with open(self.root / "stdout", "w") as out, open(self.root / "stderr", "w") as err:
            process = subprocess.Popen([sys.executable, *(python or ("-m", "alignbench")), *self.words], stdout=out, stderr=err)
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    @property
    def said(self) -> str:
        """stderr of the latest process."""
        return (self.root / "stderr").read_text()

    def ends(self, code: int, *python: str) -> None:
        with self.started(*python) as process:
            process.wait(SLOWEST)
        assert process.returncode == code, self.said

    def progress(self) -> int:
        """How far the folder is: 0 until there is one, then a point for each metrics row and for each later file."""
        try:
            rows = (self.folder / "metrics.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            rows = 0
        later = ("samples.parquet", "weights", "result.json", "report.html")
        return self.folder.is_dir() + rows + sum((self.folder / name).exists() for name in later)

    def until(self, process: subprocess.Popen, ready: Callable[[], bool]) -> None:
        limit = time.monotonic() + SLOWEST
        while not ready():
            assert process.poll() is None and time.monotonic() < limit, self.said
            time.sleep(0.002)

    def sends(self, signum: int, progress: int, wait: float) -> tuple[int, float]:
        """Start, and `wait` seconds after that progress send a signal: the exit code, and how long the process took to end."""
        with self.started() as process:
            self.until(process, lambda: str(self.folder) in self.said)  # imports are over, work begins
            self.until(process, lambda: self.progress() >= progress)
            time.sleep(wait)
            sent = time.monotonic()
            process.send_signal(signum)
            process.wait(SLOWEST)
            return process.returncode, time.monotonic() - sent

    def contents(self) -> dict[str, bytes]:
        """All that is compared: whatever lies in the folder but its times and its checkpoints."""
        files = {str(path.relative_to(self.folder)): path for path in sorted(self.folder.rglob("*")) if path.is_file()}
        return {name: path.read_bytes() for name, path in files.items() if name != "timing.json" and not name.startswith("checkpoints/")}

    def times(self) -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in sorted(self.folder.rglob("*"))}


@dataclass
class Undisturbed:
    run: Run
    reached: list[float]  # seconds at which each point of progress was first seen; the first is the folder
    contents: dict[str, bytes]

    @property
    def rows(self) -> int:
        return len(read_metrics(self.run.folder))

    def point(self, moment: float) -> tuple[int, float]:
        """A moment of this run as a point of progress and the seconds that follow it."""
        progress = sum(each <= moment for each in self.reached)
        return progress, moment - self.reached[progress - 1]

    def after_row(self, row: int, rng: random.Random) -> tuple[int, float]:
        """Some time before the next row."""
        here, there = self.reached[row], self.reached[row + 1]
        return self.point(here + rng.uniform(0, 0.9) * (there - here))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Undisturbed]:
    known: dict[str, Undisturbed] = {}

    def of(case: str) -> Undisturbed:
        if case not in known:
            run, reached = Run(CASES[case], tmp_path_factory.mktemp(case)), []
            with run.started() as process:
                while process.poll() is None:
                    now = time.monotonic()
                    reached += [now] * (run.progress() - len(reached))
                    time.sleep(0.002)
            assert process.returncode == 0, run.said
            reached += [time.monotonic()] * (run.progress() - len(reached))
            known[case] = Undisturbed(run, reached, run.contents())
        return known[case]

    return of


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


# --- R1


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_and_continued(case: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    """kill -9 once in each fifth of the run, from the making of its folder to its result; the page's own kill is in the next test."""
    whole, run, rng = undisturbed(case), Run(CASES[case], tmp_path), random.Random(case)
    begin, end = whole.reached[0], whole.reached[-2]
    edges = [begin + n * (end - begin) / 5 for n in range(6)]
    continued = 0
    for earliest, latest in pairwise(edges):
        code, _ = run.sends(signal.SIGKILL, *whole.point(rng.uniform(earliest, latest)))
        assert code == -signal.SIGKILL, run.said
        assert not (run.folder / "report.html").exists()
        continued += "continuing from last" in run.said
    assert continued >= 2  # it did not begin again each time
    run.ends(0)
    assert "continuing from last" in run.said
    assert differing(run.contents(), whole.contents) == []

    before = run.times()
    run.ends(0)
    assert "already done, nothing to run" in run.said
    assert run.times() == before


WRITES = [
    *(("config.yaml", 1), ("metrics.jsonl", 2), ("last.ckpt", 1), ("last.prev.ckpt", 1), ("last.ckpt", 3), ("metrics.jsonl", 4)),
    *(("samples.parquet", 1), ("result.json", 1), ("grid.png", 1), ("report.html", 1)),
]


def test_killed_between_writing_a_file_and_naming_it(undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    whole, run = undisturbed("gaussian"), Run(CASES["gaussian"], tmp_path)
    for name, count in WRITES:
        run.ends(-signal.SIGKILL, "-c", KILLED_WRITING, name, str(count))
    (run.folder / "weights" / ".tmpAbc123").write_bytes(b"half")  # what safetensors leaves when it is killed in writing
    run.ends(0)
    assert differing(run.contents(), whole.contents) == []


# --- R2


@pytest.mark.parametrize("case", CASES)
def test_stopped_by_signals_and_continued(case: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    whole, run, rng = undisturbed(case), Run(CASES[case], tmp_path), random.Random(case)
    rows = [row for row in range(1, whole.rows) if read_metrics(whole.run.folder)[row]["epoch"] < whole.run.composed.config["epochs"]]
    rows = [rows[n * (len(rows) - 1) // 2] for n in range(3)]
    for signum, code, row in zip((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), (143, 130, 138), rows, strict=True):
        ended, seconds = run.sends(signum, *whole.after_row(row + 1, rng))
        assert ended == code, run.said
        assert seconds < 10
        assert run.said.splitlines()[-1] == f"alignbench: stopped by signal {signum.value}; the same command continues"
        assert "Traceback" not in run.said
    run.ends(0)
    assert "continuing from last.ckpt" in run.said
    assert differing(run.contents(), whole.contents) == []


# --- R11, and what a run may touch


@pytest.mark.parametrize("case", CASES)
def test_the_same_command_elsewhere_writes_the_same_bytes(case: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    whole, run = undisturbed(case), Run(CASES[case], tmp_path / "elsewhere")
    run.ends(0)
    assert differing(run.contents(), whole.contents) == []
    assert {"config.yaml", "metrics.jsonl", "metrics.csv", "samples.parquet", "result.json", "report.html"} < run.contents().keys()
    assert any(name.startswith("weights/") for name in run.contents())
    assert any(name.startswith("samples/") for name in run.contents())
    assert not [name for name, data in run.contents().items() if str(tmp_path.parent).encode() in data]


def test_another_seed_is_another_folder(undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    first, root = undisturbed("gaussian").run, tmp_path / "outputs"
    shutil.copytree(first.root, root)
    run, other = Run(CASES["gaussian"], root), Run([*CASES["gaussian"], "seed=1"], root)
    before = run.times()
    other.ends(0)
    assert run.times() == before
    assert sorted(path.parent.name for path in root.glob("*/run.json")) == sorted([run.folder.name, other.folder.name])
    assert {"metrics.jsonl", "samples.parquet", "result.json"} < set(differing(run.contents(), other.contents()))
    run.ends(0)
    assert "already done" in run.said


# --- R5


@pytest.fixture(scope="module")
def killed(undisturbed: Callable[[str], Undisturbed], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that was killed with both generations of its checkpoint in place."""
    run = Run(CASES["gaussian"], tmp_path_factory.mktemp("killed"))
    run.ends(-signal.SIGKILL, "-c", KILLED_WRITING, "last.prev.ckpt", "5")
    assert run.checkpoint.exists() and previous(run.checkpoint).exists()
    return run.root


def test_a_damaged_checkpoint_is_not_resumed_from(undisturbed: Callable[[str], Undisturbed], killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path / "run")
    whole, run = undisturbed("gaussian"), Run(CASES["gaussian"], tmp_path / "run")
    data = bytearray(run.checkpoint.read_bytes())
    data[len(data) // 2] ^= 1
    run.checkpoint.write_bytes(data)
    run.ends(0)
    assert "last.ckpt: damaged (its checksum does not match); continuing from last.prev.ckpt\n" in run.said
    assert "continuing from last.prev.ckpt\nepoch 5/12" in run.said
    assert differing(run.contents(), whole.contents) == []
    assert AtomicCheckpointIO(run.composed.hash).load_checkpoint(run.checkpoint)["epoch"] == 11
    assert run.checkpoint.with_name("last.ckpt.damaged").read_bytes() == data


def test_two_damaged_checkpoints_end_the_run(killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path / "run")
    run = Run(CASES["gaussian"], tmp_path / "run")
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:1000])
    previous(run.checkpoint).write_bytes(b"")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    run.ends(3)
    (line,) = (line for line in run.said.splitlines() if line.startswith("alignbench:"))
    assert line == run.said.splitlines()[-1]
    assert all(word in line for word in (str(run.checkpoint.parent), "last.ckpt: damaged", "last.prev.ckpt: damaged", "remove them"))
    assert "Traceback" not in run.said
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


# --- the budget's hard stop


def test_a_budget_ends_a_run_and_is_not_overdrawn_when_it_goes_on(tmp_path: Path) -> None:
    """64 images an epoch: 130 queries are reached in the third, and no later start adds a fourth."""
    words = [*CASES["gaussian"], "budget=reward_queries", "budget.reward_queries=130"]
    whole = Run(words, tmp_path / "whole")
    whole.ends(0)
    result = read_result(whole.folder)
    assert (result["epochs"], result["meters"]["reward_queries"]) == (3, 192)
    assert [row["reward_queries"] for row in read_metrics(whole.folder) if row["split"] == "train"] == [64, 128, 192]

    run = Run(words, tmp_path / "run")
    for name, count in (("last.ckpt", 3), ("samples.parquet", 1)):  # in the third epoch's save, and once it was saved
        run.ends(-signal.SIGKILL, "-c", KILLED_WRITING, name, str(count))
    saved = run.checkpoint.read_bytes()
    run.ends(0)
    assert "epoch 4" not in run.said
    assert run.checkpoint.read_bytes() == saved
    assert differing(run.contents(), whole.contents()) == []
