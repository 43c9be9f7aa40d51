"""Sweeps through Ray and SLURM: the same ledger, the same ends; what a cluster has is found again (R9)."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignbench import ledger
from alignbench.compose import compose
from alignbench.config import MissingAsset
from alignbench.sweep import Job, jobs_of, launcher_of, run_jobs

FAKE = Path(__file__).with_name("fake_job.py")
HERE = ["ray_here"]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Job]]:
    """Jobs that do as they are told, each through what stands for the interpreter; libraries keep the real one."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("FAKE_JOBS", str(tmp_path / "jobs.json"))
    for each in ("ray",):
        monkeypatch.setattr(f"alignbench.launchers.{each}.command", lambda words: [str(python), "-m", "alignbench", *words])

    def make(*does: str) -> list[Job]:
        jobs = jobs_of([[f"seed={n}", f"output={tmp_path / 'out'}"] for n in range(len(does))])
        said = {
            " ".join(job.words): {**job.composed.entry, "folder": str(job.composed.folder), "do": do}
            for job, do in zip(jobs, does, strict=True)
        }
        (tmp_path / "jobs.json").write_text(json.dumps(said))
        return jobs

    return make


def settings(choice: str, *words: str) -> dict[str, Any]:
    return compose([f"launcher={choice}", *words]).config["launcher"]


def events(root: Path, job: Job, but: str = "queued") -> list[str]:
    return [each["event"] for each in ledger.read(root)[job.composed.hash].events if each["event"] != but]


# --- what is not there


@pytest.mark.parametrize("choice, library, extra", [("ray", "ray", "ray"), ("ray_here", "ray", "ray")])
def test_a_library_that_is_missing_is_named_with_its_remedy(choice: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = settings(choice)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingAsset, match=rf"pip install 'alignbench\[{extra}\]'"):
        launcher_of(node)


# --- sweeps


@pytest.mark.slow
@pytest.mark.parametrize("choice", HERE)
def test_all_are_done_once_and_a_killed_one_is_started_again(
    choice: str, made: Callable[..., list[Job]], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    jobs = made("done", "die_once", "fail", "done")
    ends = run_jobs(jobs, settings(choice, "launcher.jobs=2", "launcher.threads=3"))
    assert list(map(ends.get, (job.composed.hash for job in jobs))) == ["done", "done", "failed", "done"]
    seen = [events(tmp_path / "out", job) for job in jobs]
    once = ["planned", "started", "done"]
    assert seen == [once, ["planned", "started", "preempted", "started", "done"], ["planned", "started", "failed"], once]
    assert (tmp_path / "out" / "logs" / f"{jobs[0].composed.folder.name}.log").read_text().startswith("threads 3 gpus ")
    printed = capfd.readouterr()
    assert printed.out == "" and all(line.startswith("[") for line in printed.err.splitlines())


SWEEP = """
import json, sys
from alignbench.launchers import {module}
from alignbench.sweep import jobs_of, run_jobs
{module}.command = lambda words: [sys.argv[1], "-m", "alignbench", *words]
print(run_jobs(jobs_of(json.loads(sys.argv[2])), json.loads(sys.argv[3])))
"""


def sweep(choice: str, jobs: list[Job], tmp_path: Path) -> subprocess.Popen:
    code = SWEEP.format(module="ray" if "ray" in choice else "slurm")
    node = settings(choice, "launcher.jobs=2")
    words = [str(tmp_path / "python"), json.dumps([job.words for job in jobs]), json.dumps(node)]
    return subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("choice", HERE)
def test_a_signal_reaches_the_jobs(choice: str, made: Callable[..., list[Job]], tmp_path: Path) -> None:
    jobs, root = made("sleep", "sleep", "done"), tmp_path / "out"
    process = sweep(choice, jobs, tmp_path)
    wait_for(lambda: all((job.composed.folder / "begun").exists() for job in jobs[:2]))
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert "Stopped" in error and "stopped by signal 15" in error
    for job in jobs[:2]:
        assert events(root, job) == ["planned", "started", "preempted"]
        assert ledger.read(root)[job.composed.hash].reason == "signal 15"
        assert not ledger.taken(root, job.composed.hash)
    assert events(root, jobs[2]) == ["planned"]
