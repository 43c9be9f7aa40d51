"""Sweeps behind a ledger: what is finished is not run again, what was killed goes on, what failed waits to be asked for (R8, R9)."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignbench import ledger, status
from alignbench import sweep as sweeping
from alignbench.compose import compose
from alignbench.config import ConfigError, Stopped
from alignbench.launchers import local
from alignbench.sweep import Job, jobs_of, run_jobs

LOCAL: dict[str, Any] = {
    "_target_": "alignbench.launchers.local.Local",
    "jobs": 1,
    "threads": None,
    "memory_gb": None,
    "gpus": [],
    "requeue": 2,
}
FAKE = Path(__file__).with_name("fake_job.py")


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for the interpreter that starts jobs: it runs a made-up one instead."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("FAKE_JOBS", str(tmp_path / "jobs.json"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return path


@pytest.fixture
def made(python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Job]]:
    monkeypatch.setattr(sys, "executable", str(python))

    def make(*does: str, seconds: float = 0.0) -> list[Job]:
        jobs = jobs_of([[f"seed={n}", f"output={tmp_path / 'out'}", "launcher.jobs=2"] for n in range(len(does))])
        said = {
            " ".join(job.words[:]): {**job.composed.entry, "folder": str(job.composed.folder), "do": do, "seconds": seconds}
            for job, do in zip(jobs, does, strict=True)
        }
        (tmp_path / "jobs.json").write_text(json.dumps({f"{words}": each for words, each in said.items()}))
        return jobs

    return make


def events(root: Path, job: Job) -> list[str]:
    return [each["event"] for each in ledger.read(root)[job.composed.hash].events]


def test_words_about_the_launcher_do_not_reach_a_job(made: Callable[..., list[Job]]) -> None:
    (job,) = made("done")
    assert not [word for word in job.words if word.startswith("launcher")]
    assert job.composed.hash == compose(job.words).hash  # nor its identity


@pytest.mark.parametrize("at_once", [1, 2])
def test_all_are_run_once_and_a_second_call_runs_nothing(made: Callable[..., list[Job]], tmp_path: Path, at_once: int) -> None:
    jobs = made("done", "done", "done")
    for _ in range(2):
        assert run_jobs(jobs, LOCAL | {"jobs": at_once}) == {job.composed.hash: "done" for job in jobs}
    assert [events(tmp_path / "out", job) for job in jobs] == [["planned", "started", "done"]] * 3
    assert run_jobs([jobs[0], jobs[0]], LOCAL) == {jobs[0].composed.hash: "done"}


def test_a_failed_job_stops_no_other_and_waits_to_be_asked_for(made: Callable[..., list[Job]], tmp_path: Path, capsys: Any) -> None:
    jobs = made("done", "fail_once", "done")
    failed = jobs[1].composed.hash
    assert run_jobs(jobs, LOCAL)[failed] == "failed"
    assert Counter(run_jobs(jobs, LOCAL).values()) == {"done": 2, "failed": 1}
    assert "ValueError: as it was told" in capsys.readouterr().err
    assert events(tmp_path / "out", jobs[1]) == ["planned", "started", "failed"]
    assert run_jobs(jobs, LOCAL, retry=True)[failed] == "done"
    assert events(tmp_path / "out", jobs[1]) == ["planned", "started", "failed", "planned", "started", "done"]


def test_a_killed_job_is_continued_by_the_same_sweep(made: Callable[..., list[Job]], tmp_path: Path) -> None:
    jobs = made("die_once", "done")
    assert set(run_jobs(jobs, LOCAL | {"jobs": 2}).values()) == {"done"}
    assert events(tmp_path / "out", jobs[0]) == ["planned", "started", "preempted", "started", "done"]
    jobs = made("done", "done", "die_once")
    assert run_jobs(jobs, LOCAL | {"requeue": 0})[jobs[2].composed.hash] == "interrupted"
    assert run_jobs(jobs, LOCAL)[jobs[2].composed.hash] == "done"


def test_a_run_that_was_killed_before_its_last_line_is_found_done(made: Callable[..., list[Job]], tmp_path: Path) -> None:
    (job,) = made("done")
    run_jobs([job], LOCAL)
    path = ledger.path_of(tmp_path / "out")
    path.write_bytes(path.read_bytes()[:-30])  # its last line is cut off, as by a crash
    assert ledger.read(tmp_path / "out")[job.composed.hash].state == "started"
    assert run_jobs([job], LOCAL) == {job.composed.hash: "done"}
    assert events(tmp_path / "out", job) == ["planned", "started", "done"]
    assert not any(each.get("event") == "started" for each in ledger.read(tmp_path / "out")[job.composed.hash].events[2:])


def test_a_run_whose_folder_was_taken_away_is_run_again(made: Callable[..., list[Job]], tmp_path: Path) -> None:
    (job,) = made("done")
    run_jobs([job], LOCAL)
    (job.composed.folder / "report.html").unlink()
    run_jobs([job], LOCAL)
    assert events(tmp_path / "out", job) == ["planned", "started", "done"] * 2


def test_threads_and_gpus_are_shared_out(made: Callable[..., list[Job]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    jobs = made("done", "done", seconds=0.3)
    run_jobs(jobs, LOCAL | {"jobs": 2, "gpus": ["4", "7"]})
    logs = sorted(path.read_text() for path in (tmp_path / "out" / "logs").iterdir())
    assert logs == ["threads 4 gpus 4\n", "threads 4 gpus 7\n"]


def test_jobs_wait_while_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 10e9
    monkeypatch.setattr(local, "available", lambda: free)
    monkeypatch.setattr(local, "resident", lambda pid: {1: 3e9, 2: 1e9}[pid])
    launcher = local.Local(**{key: value for key, value in LOCAL.items() if key != "_target_"} | {"jobs": 4})
    assert launcher.room()
    launcher.running = {0: type("P", (), {"pid": 1})(), 1: type("P", (), {"pid": 2})()}
    assert launcher.room()  # 3 GB are the largest: 2 of them are promised to the second, and 3 more fit into the other 8
    free = 4.9e9
    assert not launcher.room()
    launcher.running = {}
    free = 1.0
    assert launcher.room()  # alone it may try
    monkeypatch.setattr(local, "available", lambda: None)
    launcher.running = {0: type("P", (), {"pid": 1})()}
    assert launcher.room()  # where nobody can be asked


def test_one_sweep_has_one_launcher(made: Callable[..., list[Job]], tmp_path: Path) -> None:
    jobs = jobs_of([["seed=0", "launcher.jobs=1"], ["seed=0", "launcher.jobs=2"]])
    with pytest.raises(ConfigError, match="one launcher"):
        sweeping.run_sweep(jobs, retry=False)


# --- processes


SWEEP = "import json,sys; from alignbench.sweep import jobs_of, run_jobs; sys.executable = sys.argv[1]; real = json.loads(sys.argv[3]);"
SWEEP += "print(run_jobs(jobs_of(json.loads(sys.argv[2])), real))"


def started(python: Path, jobs: list[Job], at_once: int = 1) -> subprocess.Popen:
    words = json.dumps([job.words for job in jobs])
    settings = json.dumps(LOCAL | {"jobs": at_once})
    return subprocess.Popen([REAL, "-c", SWEEP, str(python), words, settings], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


REAL = sys.executable


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def sleeping(made: Callable[..., list[Job]], python: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen, list[Job]]]:
    """A sweep whose first job waits for a signal."""
    jobs = made("sleep", "done")
    process = started(python, jobs)
    wait_for(lambda: ledger.taken(tmp_path / "out", jobs[0].composed.hash))
    wait_for(lambda: "started" in events(tmp_path / "out", jobs[0]))
    yield process, jobs
    process.kill()
    process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_the_job_and_ends_the_sweep(signum: signal.Signals, sleeping: Any, tmp_path: Path) -> None:
    process, jobs = sleeping
    process.send_signal(signum)
    _, error = process.communicate(timeout=60)
    assert "Stopped" in error and f"stopped by signal {signum.value}" in error
    root = tmp_path / "out"
    assert ledger.read(root)[jobs[0].composed.hash].state == "preempted"
    assert ledger.read(root)[jobs[0].composed.hash].reason == f"signal {signum.value}"
    assert events(root, jobs[1]) == ["planned"]


def test_the_front_door_says_which_signal_ended_a_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise Stopped(signal.SIGTERM)

    from alignbench import __main__ as door

    monkeypatch.setattr(sweeping, "run_jobs", stopped)
    assert door.main(["-m", "seed=0,1", f"output={tmp_path}"]) == 143


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_killed_sweep_leaves_no_job_behind_and_frees_its_lock(sleeping: Any, tmp_path: Path) -> None:
    process, jobs = sleeping
    process.kill()
    process.wait()
    wait_for(lambda: not ledger.taken(tmp_path / "out", jobs[0].composed.hash))
    assert [row["state"] for row in status.rows_of(tmp_path / "out")] == ["interrupted", "planned"]


@pytest.mark.slow
@pytest.mark.parametrize("race", range(10))
def test_two_sweeps_at_once_share_their_work(made: Callable[..., list[Job]], python: Path, tmp_path: Path, race: int) -> None:
    """R9: nothing is lost, and no job runs twice."""
    jobs = made(*["done"] * 6, seconds=0.1)
    sweeps = [started(python, order, at_once=2) for order in (jobs, jobs[::-1] if race % 2 else jobs)]
    for each in sweeps:
        output, error = each.communicate(timeout=120)
        assert output.count("'done'") == 6, error
    counted = Counter(event for job in jobs for event in events(tmp_path / "out", job))
    assert counted["started"] == 6
    assert all(job.finished for job in jobs)


# --- status


def test_status_says_what_runs_and_how_long_it_will_take(made: Callable[..., list[Job]], tmp_path: Path, capsys: Any) -> None:
    jobs = made("done", "fail", "done", "done")
    root = tmp_path / "out"
    run_jobs(jobs[:2], LOCAL)
    running, planned = jobs[2:]
    ledger.append(root, "planned", planned.composed.entry)
    folder = running.composed.folder
    with ledger.claimed(root, running.composed.entry, lambda: False, print, epoch=1):
        folder.mkdir()
        (folder / "config.yaml").write_text("epochs: 10\n")
        (folder / "metrics.jsonl").write_text("".join(json.dumps({"epoch": n, "split": "train"}) + "\n" for n in (1, 2, 3)))
        began = ledger.read(root)[running.composed.hash].events[-1]["time"]
        by_name = {row["name"]: row for row in status.rows_of(root, now=began + 20)}
        row = by_name[folder.name]
        assert (row["state"], row["epoch"], row["epochs"]) == ("running", 3, 10)
        assert row["left"] == pytest.approx(70)  # two epochs in 20 s, seven to go
        assert by_name[jobs[1].composed.folder.name]["reason"] == "ValueError: as it was told"
        assert by_name[planned.composed.folder.name]["state"] == "planned"
        assert status.status([str(root)]) == 0
    shown = capsys.readouterr().out
    assert "1 done, 1 running, 1 planned, 1 failed" in shown and "3/10" in shown and "as it was told" in shown


@pytest.mark.parametrize("words", [["nowhere"], ["a", "b"]])
def test_status_wants_a_folder_with_a_ledger(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"status: .*alignbench status"):
        status.status(words)
