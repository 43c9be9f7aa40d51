"""Sweeps through Ray and SLURM: the same ledger, the same ends; what a cluster has is found again (R9)."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignbench import ledger, status
from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.config import ConfigError, MissingAsset
from alignbench.sweep import Job, jobs_of, launcher_of, run_jobs

FAKE = Path(__file__).with_name("fake_job.py")
SLURM = Path(__file__).with_name("fake_slurm.py")
HERE = ["ray_here", "submitit_here"]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Job]]:
    """Jobs that do as they are told, each through what stands for the interpreter; libraries keep the real one."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("FAKE_JOBS", str(tmp_path / "jobs.json"))
    for each in ("ray", "slurm"):
        monkeypatch.setattr(f"alignbench.launchers.{each}.command", lambda words: [str(python), "-m", "alignbench", *words])

    def make(*does: str, seconds: float = 0.0) -> list[Job]:
        jobs = jobs_of([[f"seed={n}", f"output={tmp_path / 'out'}"] for n in range(len(does))])
        said = {
            " ".join(job.words): {**job.composed.entry, "folder": str(job.composed.folder), "do": do, "seconds": seconds}
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


@pytest.mark.parametrize("choice, library, extra", [("ray", "ray", "ray"), ("slurm", "submitit", "slurm")])
def test_a_library_that_is_missing_is_named_with_its_remedy(choice: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = settings(choice)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingAsset, match=rf"pip install 'alignbench\[{extra}\]'"):
        launcher_of(node)


# --- SLURM


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SLURM of this machine: its commands on PATH, its folder."""
    folder = tmp_path / "slurm"
    for name in ("states", "submitted", "bin"):
        (folder / name).mkdir(parents=True)
    for name in ("sbatch", "squeue", "srun", "scontrol", "scancel"):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{SLURM}" {name} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder


SHOWN = ["partition=gpu", "account=lab", "qos=long", "constraint=a100", "comment=ours", "minutes=90", "memory_gb=15.5", "gpus_per_node=2"]


def test_the_script_is_shown_and_nothing_is_submitted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [f"launcher.{each}" for each in [*SHOWN, "setup=[module load cuda]", "more={reservation: mine}", "signal_delay=60"]]
    asked = ["-m", "seed=0,1,2", "epochs=1", f"output={tmp_path / 'out'}", "launcher=slurm", "launcher.show=true", *words]
    assert main([*asked, "launcher.array_parallelism=2"]) == 0
    script, said = capsys.readouterr()
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in script.splitlines() if line.startswith("#SBATCH"))
    own = {"partition": "gpu", "account": "lab", "qos": "long", "constraint": "a100", "comment": "ours", "time": "90", "mem": "15500M"}
    own |= {"gpus-per-node": "2", "cpus-per-task": "4", "nodes": "1", "ntasks-per-node": "1", "array": "0-2%2", "signal": "USR2@60"}
    own |= {"requeue": "", "reservation": "mine", "open-mode": "append", "job-name": "alignbench"}
    folder = tmp_path / "out" / "logs" / "submitit"
    assert options == own | {"output": f"{folder}/%A_%a_0_log.out", "error": f"{folder}/%A_%a_0_log.err"}
    assert "\nmodule load cuda\n" in script and "srun --unbuffered" in script and " --cpus-per-task=4 " in script.splitlines()[-2]
    assert "3 jobs" in said and not (tmp_path / "out").exists()
    assert main([*asked[:1], "seed=0", *asked[2:]]) == 0
    assert "--array" not in capsys.readouterr().out


def test_without_slurm_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["-m", "seed=0,1", "epochs=1", f"output={tmp_path / 'out'}", "launcher=slurm"]) == 3
    assert "no sbatch here" in capsys.readouterr().err


@pytest.mark.parametrize("words, key", [(["trainer.num_nodes=2"], "num_nodes"), (["trainer=gpu", "trainer.devices=2"], "devices")])
def test_a_job_gets_the_devices_that_it_uses(words: list[str], key: str, cluster: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["+" * (key == "num_nodes") + word for word in words]
    assert main(["-m", "seed=0,1", "epochs=1", "launcher=slurm", *words]) == 2
    assert f"trainer.{key}: " in capsys.readouterr().err
    assert not list((cluster / "submitted").iterdir())


def test_what_sbatch_refuses_is_said(made: Callable[..., list[Job]], cluster: Path) -> None:
    (cluster / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpuu' >&2\nexit 1\n")
    with pytest.raises(ConfigError, match=r"sbatch refused the jobs .*gpuu"):
        run_jobs(made("done", "done"), settings("slurm"))


@pytest.mark.parametrize(
    "state, code",
    [("PENDING", None), ("COMPLETING", None), ("CANCELLED", -15), ("TIMEOUT", -15), ("NODE_FAIL", -9), ("FAILED", 1), ("", -9)],
)
def test_the_queue_says_what_became_of_a_job(state: str, code: int | None, cluster: Path, tmp_path: Path) -> None:
    """Of one that left no exit code; "": of one that SLURM has forgotten."""
    launcher = launcher_of(settings("slurm", "launcher.every=1e-6"))
    (cluster / "states" / "7").write_text("RUNNING")
    job = launcher.find("7", tmp_path / "logs" / "x.log")
    assert job.poll() is None
    (cluster / "states" / "7").write_text(state) if state else (cluster / "states" / "7").unlink()
    assert job.poll() is None  # the file may still come
    assert job.poll() == code
    found = launcher.find("7", tmp_path / "logs" / "x.log")
    assert (found is None) == (code is not None)


def test_a_queue_that_does_not_answer_takes_no_job_for_gone(cluster: Path, tmp_path: Path) -> None:
    launcher = launcher_of(settings("slurm", "launcher.every=1e-6"))
    (cluster / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    job = launcher.find("7", tmp_path / "logs" / "x.log")
    assert [job.poll() for _ in range(5)] == [None] * 5


def test_a_result_from_before_a_job_was_queued_again_is_none(cluster: Path, tmp_path: Path) -> None:
    launcher = launcher_of(settings("slurm", "launcher.every=1e-6"))
    stale = tmp_path / "logs" / "submitit" / "7_0_result.pkl"
    stale.parent.mkdir(parents=True)
    for state, there in (("RUNNING", True), ("PENDING", False)):
        (cluster / "states" / "7").write_text(state)
        stale.touch()
        found = launcher.find("7", tmp_path / "logs" / "x.log")
        assert (stale.exists(), found is None) == (there, there)


def test_queued_is_a_state_unless_the_job_was_faster_than_the_line(tmp_path: Path) -> None:
    job = {"hash": "h", "name": "n", "command": "c"}
    for event, more in (("planned", {}), ("queued", {"id": "7"})):
        ledger.append(tmp_path, event, job, **more)
    assert (ledger.read(tmp_path)["h"].state, ledger.read(tmp_path)["h"].id) == ("queued", "7")
    assert [row["state"] for row in status.rows_of(tmp_path)] == ["queued"]
    now = time.time()
    ledger.append(tmp_path, "started", job)
    ledger.append(tmp_path, "queued", job, id="8", time=now)
    assert (ledger.read(tmp_path)["h"].state, ledger.read(tmp_path)["h"].id) == ("started", "8")


def parent_of(pid: int) -> int:
    return next(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("PPid:"))


@pytest.mark.slow
def test_a_preempted_job_saves_and_is_queued_again(made: Callable[..., list[Job]], cluster: Path, tmp_path: Path) -> None:
    """Two that are one array; SIGUSR2 as SLURM sends it."""
    jobs, root = made("sleep_once", "done"), tmp_path / "out"
    process = sweep("slurm", jobs, tmp_path, "launcher.every=0.2")
    wait_for(lambda: (jobs[0].composed.folder / "begun").exists())
    (started,) = (each for each in ledger.read(root)[jobs[0].composed.hash].events if each["event"] == "started")
    os.kill(parent_of(started["pid"]), signal.SIGUSR2)
    output, error = process.communicate(timeout=60)
    assert output.count("'done'") == 2, error
    assert events(root, jobs[0]) == ["planned", "started", "preempted", "started", "done"]
    assert [each["reason"] for each in ledger.read(root)[jobs[0].composed.hash].events if each["event"] == "preempted"] == ["signal 10"]
    (script,) = (cluster / "submitted").iterdir()
    launcher = launcher_of(settings("slurm", "launcher.show=true"))
    assert script.read_text() == launcher.script(root / "logs" / "x.log", 2)  # what is shown is what was sent


@pytest.mark.slow
def test_what_is_queued_is_not_submitted_again(made: Callable[..., list[Job]], cluster: Path, tmp_path: Path) -> None:
    jobs, root = made("done", "done"), tmp_path / "out"
    (cluster / "hold").touch()
    first = sweep("slurm", jobs, tmp_path)
    wait_for(lambda: [row["state"] for row in status.rows_of(root)] == ["queued", "queued"])
    first.send_signal(signal.SIGTERM)
    assert "2 jobs stay with the cluster" in first.communicate(timeout=30)[1]
    assert {path.read_text() for path in (cluster / "states").iterdir()} == {"PENDING"}
    second = sweep("slurm", jobs, tmp_path, "launcher.every=0.2")
    assert [second.stderr.readline().split()[-1] for _ in jobs] == ["100_0", "100_1"]  # with the cluster already
    (cluster / "hold").unlink()
    output, error = second.communicate(timeout=60)
    assert output.count("'done'") == 2, error
    assert [events(root, job) for job in jobs] == [["planned", "started", "done"]] * 2
    assert len(list((cluster / "submitted").iterdir())) == 1


@pytest.mark.slow
def test_a_sweep_that_was_killed_leaves_its_jobs_to_the_next(made: Callable[..., list[Job]], tmp_path: Path) -> None:
    """On this machine, where the process that watches a job is what the id names."""
    (job,) = made("done", seconds=8)
    first = sweep("submitit_here", [job], tmp_path)
    wait_for(lambda: (job.composed.folder / "begun").exists())
    first.kill()
    first.wait()  # whose output the watching process holds on to
    output, error = sweep("submitit_here", [job], tmp_path).communicate(timeout=60)
    assert "'done'" in output and "is with the cluster already" in error
    assert events(tmp_path / "out", job) == ["planned", "started", "done"]


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


def sweep(choice: str, jobs: list[Job], tmp_path: Path, *words: str) -> subprocess.Popen:
    code = SWEEP.format(module="ray" if "ray" in choice else "slurm")
    node = settings(choice, "launcher.jobs=2", *words)
    given = [str(tmp_path / "python"), json.dumps([job.words for job in jobs]), json.dumps(node)]
    return subprocess.Popen([sys.executable, "-c", code, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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
