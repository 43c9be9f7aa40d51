"""Training with a worker or a remote judge that fails after a good epoch: it stops or goes on as the policy says, without a NaN (R6)."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_judge import IMAGES, brightness, fit, made, weights
from test_remote import Scripted, npz

from alignbench.config import MissingAsset
from alignbench.methods.ddpo import DDPO
from alignbench.rewards.base import Reward
from alignbench.rewards.judge import Guard, Judge
from alignbench.rewards.remote import Remote
from alignbench.rewards.worker import Worker

pytestmark = pytest.mark.slow

SCRIPT = """
import os, time
import numpy as np

def load(settings):
    case, log = settings["case"], settings["log"]
    with open(log, "a") as file:
        file.write("start\\n")
    starts = open(log).read().count("start")

    def score(images, prompts):
        with open(log, "a") as file:
            file.write("call\\n")
        right = images.astype(float).mean(axis=(1, 2, 3))
        if open(log).read().count("call") == 1:
            return right
        if case == "raises":
            raise RuntimeError("broken on purpose")
        if case == "sleeps":
            time.sleep(60)
        if case == "nan":
            return np.where(right > 0.7, np.nan, right)
        if case == "count":
            return right[1:] if len(right) > 1 else right
        if case == "shape":
            return right[:, None]
        if case == "garbage":
            os.write(3, b"no message of the loop, and long enough to be read as a head")
            time.sleep(60)
        if case in ("dies", "changed"):
            os._exit(3)
        return right

    return {"name": "scripted", "version": str(starts if case == "changed" else 1), "weights": ""}, score
"""
ENDS: dict[str, tuple[type[Exception], str]] = {  # of policy `fail`
    "raises": (ValueError, "broken on purpose"),
    "sleeps": (MissingAsset, "call_timeout"),
    "nan": (ValueError, "not finite"),
    "count": (ValueError, "scores of shape"),
    "shape": (ValueError, "scores of shape"),
    "garbage": (ValueError, "no message|no npz file"),
    "dies": (MissingAsset, "died|refused|reset|closed|remote end"),
    "changed": (MissingAsset, "identity changed mid-run"),
}
SCORED = ("nan", "count")  # some images of a later epoch are, or all of them once they are asked about one by one; else none is


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Reward]]:
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(SCRIPT)
    judges: list[Worker] = []

    def start(case: str) -> Reward:
        times = {"build_timeout": 300, "start_timeout": 30, "call_timeout": 1, "idle_timeout": 600, "pause": 0.05}
        settings = {"case": case, "log": str(tmp_path / "log")}
        judges.append(Worker(script="script.py", requirements="numpy.txt", python=None, settings=settings, batch=64, tries=2, **times))
        return judges[-1]

    yield start
    for judge in judges:
        judge.close()


@pytest.fixture
def remote() -> Iterator[Callable[[str], Reward]]:
    server = Scripted()
    server.turns = range(2, 1000)
    wrong: dict[str, Callable[[Any, np.ndarray], None]] = {
        "raises": lambda handler, scores: handler.reply(422, b'{"error": "broken on purpose"}'),
        "sleeps": lambda handler, scores: handler.reply(200, b"", 8 * server.stopped.wait(60)),
        "nan": lambda handler, scores: handler.reply(200, npz(scores=np.where(scores - 8 > 0.7, np.nan, scores))),
        "count": lambda handler, scores: handler.reply(200, npz(scores=scores[1:] if len(scores) > 1 else scores)),
        "shape": lambda handler, scores: handler.reply(200, npz(scores=scores[:, None])),
        "garbage": lambda handler, scores: handler.reply(200, b"no npz file"),
        "dies": lambda handler, scores: handler.connection.close(),
        "changed": lambda handler, scores: (setattr(server, "mark", "two"), handler.reply(200, npz(scores=scores)))[1],
    }

    def start(case: str) -> Reward:
        server.script = wrong[case]
        url = f"http://127.0.0.1:{server.server_port}"
        return Remote(url=url, batch=64, connect_timeout=5, call_timeout=1, tries=2, pause=0.05)

    yield start
    server.stop()


def judged(reward: Reward, guard: Guard) -> DDPO:
    method = made(brightness, "group")
    method.judge = Judge(reward, method.policy.model.meters, guard)
    return method


@pytest.mark.parametrize("where", ["worker", "remote"])
@pytest.mark.parametrize("case", ENDS)
def test_fail_stops_where_the_good_epoch_left_it(case: str, where: str, request: Any, tmp_path: Path) -> None:
    error, why = ENDS[case]
    begun = time.monotonic()
    method = judged(request.getfixturevalue(where)(case), Guard("fail"))
    with pytest.raises(error, match=why):
        fit(method, 3, tmp_path)
    assert time.monotonic() - begun < 30
    good = made(brightness, "group")
    fit(good, 1, tmp_path / "good")
    for found, expected in zip(weights(method), weights(good), strict=True):  # other judges' rounding
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*have no score")
@pytest.mark.parametrize("where", ["worker", "remote"])
@pytest.mark.parametrize("case", [case for case in ENDS if case != "changed"])
def test_skip_goes_on_with_what_can_be_scored(case: str, where: str, request: Any, tmp_path: Path) -> None:
    begun = time.monotonic()
    method = judged(request.getfixturevalue(where)(case), Guard("skip"))
    rows = fit(method, 3, tmp_path)
    assert time.monotonic() - begun < 60
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(weight.isfinite().all() for weight in weights(method))
    unscored = method.policy.model.meters.images_unscored
    assert 0 < unscored < 2 * IMAGES if case == "nan" else unscored == (0 if case in SCORED else 2 * IMAGES)
    good = judged(made(brightness).judge.reward, Guard("fail"))
    fit(good, 1, tmp_path / "good")
    moved_on = any(not torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(weights(method), weights(good), strict=True))
    assert moved_on is (case in SCORED)  # epochs without any score move nothing


@pytest.mark.parametrize("policy", ["skip", "quarantine"])
@pytest.mark.parametrize("where", ["worker", "remote"])
def test_another_judge_stops_every_policy(where: str, policy: Any, request: Any, tmp_path: Path) -> None:
    method = judged(request.getfixturevalue(where)("changed"), Guard(policy))
    with pytest.raises(MissingAsset, match="identity changed mid-run"):
        fit(method, 3, tmp_path)
    assert all(weight.isfinite().all() for weight in weights(method))


def test_a_run_whose_own_process_dies_in_the_judge_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    """A judge in this process takes the run with it; the same command continues."""
    import subprocess
    import sys

    code = (
        "import os, sys; from pathlib import Path; from alignbench.__main__ import main\n"
        "from alignbench.rewards.scene_judge import SceneJudge\n"
        "usual, log = SceneJudge.forward, Path('log')\n"
        "def forward(self, images, prompts):\n"
        "    log.open('a').write('.')\n"
        "    if sys.argv[1] == 'dies' and len(log.read_text()) == 3: os._exit(139)\n"
        "    return usual(self, images, prompts)\n"
        "SceneJudge.forward = forward\n"
        "sys.exit(main(sys.argv[2:]))"
    )
    words = ["eval=quick", "epochs=3", "eval.every=0", "method.images=16", "method.batch=8", "sampler.steps=3", "eval.prompts=4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(how: str, folder: Path) -> int:
        command = [sys.executable, "-c", code, how, *words, f"output={folder}"]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=False).returncode

    assert run("dies", tmp_path / "one") == 139
    assert run("dies", tmp_path / "one") == 0
    assert run("lives", tmp_path / "other") == 0
    (one,), (other,) = (list((tmp_path / name).glob("ddpo*")) for name in ("one", "other"))
    for name in ("metrics.jsonl", "samples.parquet", "result.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
