"""Twelve real trainings, two at a time: killed ten times, by Ray, by submitit, they end in the same table byte for byte (R1)."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from alignbench import ledger
from alignbench.report.record import read_result

pytestmark = pytest.mark.slow

WORDS = [
    *("-m", "method=ddpo,kl_rlhf,d3po,pxpo", "seed=0,1,2", "epochs=2", "eval=quick", "eval.every=1", "eval.prompts=4"),
    *("eval.validation_prompts=2", "method.images=8", "method.images_per_prompt=4", "method.batch=4", "sampler.steps=3"),
]
JOBS, KILLS = 12, 10
SLOWEST = 900  # seconds for all jobs, on a busy machine
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(root: Path, *launcher: str) -> list[str]:
    return [sys.executable, "-m", "alignbench", *WORDS, f"output={root}", *(launcher or ("launcher.jobs=2", "launcher.requeue=1000"))]


def swept(root: Path, *launcher: str) -> None:
    done = subprocess.run(command(root, *launcher), env=ENVIRONMENT, capture_output=True, text=True, timeout=SLOWEST)
    assert done.returncode == 0, done.stderr


def tables(root: Path) -> dict[str, bytes]:
    """The sweep's summary: what is compared byte for byte, whatever was killed and whoever ran it."""
    (folder,) = (root / "sweeps").iterdir()
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name.startswith("table.")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("undisturbed")
    swept(root)
    once(root)
    found = tables(root)
    assert {"table.csv", "table.json", "table.md"} <= found.keys()
    return found


def once(root: Path) -> None:
    """Every job of the ledger was finished exactly once, and not touched after that."""
    entries = ledger.read(root)
    assert len(entries) == JOBS
    for entry in entries.values():
        events = [each["event"] for each in entry.events]
        assert events.count("done") == 1 and events[-1] == "done", events


def workers(root: Path) -> list[int]:
    """The processes that run a job of this folder, from the ledger: the last start of each job that has not ended."""
    found = [entry.events[-1]["pid"] for entry in ledger.read(root).values() if entry.state == "started"]
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_killed_ten_times_it_ends_in_the_same_table(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """Workers and the parent, by SIGKILL at random moments; the same command again each time."""
    moments, killed = random.Random(7), Counter[str]()
    for kill in range(KILLS):
        with open(tmp_path / f"log{kill}", "w") as log:
            parent = subprocess.Popen(command(tmp_path / "out"), env=ENVIRONMENT, stdout=log, stderr=log)
            began = time.monotonic()
            while not workers(tmp_path / "out") and parent.poll() is None:
                assert time.monotonic() - began < SLOWEST
                time.sleep(0.05)
            time.sleep(moments.uniform(0, 6))
            if there := workers(tmp_path / "out"):
                os.kill(moments.choice(there), signal.SIGKILL)
                killed["worker"] += 1
                time.sleep(moments.uniform(0, 1.5))
            killed["parent"] += parent.poll() is None
            parent.kill()
            parent.wait()
        while workers(tmp_path / "out"):  # they die with it, a moment later
            time.sleep(0.05)
    assert killed["worker"] >= KILLS - 3 and killed["parent"] >= KILLS - 3, killed
    before = sum(entry.starts for entry in ledger.read(tmp_path / "out").values())
    assert before > JOBS // 2  # there was something to kill
    swept(tmp_path / "out")
    once(tmp_path / "out")
    assert tables(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("launcher", ["ray_here", "submitit_here"])
def test_other_launchers_end_in_the_same_table(launcher: str, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    swept(tmp_path, f"launcher={launcher}", "launcher.jobs=2", "launcher.threads=1")
    once(tmp_path)
    assert tables(tmp_path) == undisturbed


def test_two_processes_from_the_command_line_reach_what_one_does(tmp_path: Path) -> None:
    """The same global batch on one process and on two (gloo): the same final reward, within the interval that its run gives."""
    results = {}
    for devices in (1, 2):
        words = [
            "epochs=4",
            "eval.prompts=16",
            f"output={tmp_path / str(devices)}",
            f"trainer.devices={devices}",
            "trainer.accelerator=cpu",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "alignbench", *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=SLOWEST
        )
        assert done.returncode == 0, done.stderr
        (folder,) = (each for each in (tmp_path / str(devices)).iterdir() if (each / "result.json").is_file())
        results[devices] = {metric["name"]: metric for metric in read_result(folder)["metrics"]}
    for name in ("scene_judge", "exact_judge"):
        one, two = (results[devices][name] for devices in (1, 2))
        low, high = one["interval"]
        assert low <= two["difference"] <= high
        assert two["reference"] == pytest.approx(one["reference"], abs=1e-6)
    assert results[1]["kl"]["policy"] > 0.1 and results[2]["kl"]["policy"] == pytest.approx(results[1]["kl"]["policy"], rel=0.05)
