"""Judges in environments of their own: real processes that raise, sleep, lie and die, and what is left of them (R6, R7)."""

import copy
import gc
import hashlib
import io
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignbench.__main__ import main
from alignbench.compose import _digest, compose
from alignbench.config import MissingAsset, conf_folder
from alignbench.report.record import read_metrics
from alignbench.rewards.base import Changed, Unreachable
from alignbench.rewards.environment import environment, requirement_file
from alignbench.rewards.wire import Garbled, asked_for, request, scores
from alignbench.rewards.worker import Worker
from alignbench.rewards.worker_loop import from_npz, to_npz
from alignbench.rng import generator

PAGE = Path(__file__).parents[1] / "docs" / "rewards" / "elsewhere.md"
PROMPTS = ["a red circle", "ein blaues Quadrat, groß", ""]
NUMBERS = {"batch": 2, "build_timeout": 300, "start_timeout": 30, "call_timeout": 30, "idle_timeout": 600, "tries": 2, "pause": 0.05}

# does `case` in its `at`-th call ever, counted in a file; before and after it gives each image its mean and its prompt's length
SCRIPT = """
import os, sys, time
import numpy as np

print("chatter of an import")

def load(settings):
    log, case, at = settings["log"], settings.get("case"), settings.get("at", 1)

    def note(word):
        with open(log, "a") as file:
            file.write(f"{word} {os.getpid()}\\n")
        return sum(line.startswith(word) for line in open(log))

    starts = note("start")
    print("chatter of loading")
    if case == "missing":
        raise FileNotFoundError("weights.pt (2 GB) is not here\\nmore")
    if case == "load":
        raise KeyError("no such model")
    if case == "slow start" or (case == "slow restart" and starts > 1):
        time.sleep(60)
    if case == "ill":
        os._exit(9)
    if case == "gone" and starts > 1:
        raise OSError("weights.pt was removed")

    def score(images, prompts):
        turn = note("call")
        os.write(1, b"chatter past Python's buffers")
        print("chatter of scoring", flush=True)
        right = images.astype(float).mean(axis=(1, 2, 3)) + np.array([len(each) for each in prompts])
        if turn < at or (settings.get("once") and turn > at):
            return right
        if case == "raises":
            raise KeyError("broken on purpose\\nsecond line")
        if case == "sleeps":
            time.sleep(60)
        if case == "nan":
            return np.where(np.arange(len(right)) == len(right) - 1, np.nan, right)
        if case == "inf":
            return right * 1e300  # finite here, and not in fp32
        if case == "count":
            return right[:-1]
        if case == "shape":
            return right[:, None]
        if case == "words":
            return [str(each) for each in right]
        if case == "objects":
            return [object() for each in right]
        if case == "nothing":
            return None
        if case in ("dies", "changed", "gone", "slow restart"):
            print("last words", file=sys.stderr, flush=True)
            os._exit(3)
        if case == "killed":
            os.kill(os.getpid(), 9)
        if case == "wire":
            os.write(3, bytes.fromhex(settings["bytes"]))
            time.sleep(60)
        if case == "closed":
            os.close(3)
            time.sleep(60)
        return right

    return {"name": "scripted", "version": str(starts if case == "changed" else 1), "weights": ""}, score
"""


def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=generator(0, "images"))


def right() -> Tensor:
    return (images().double().mean((1, 2, 3)) + torch.tensor([len(each) for each in PROMPTS])).float()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path) -> None:
    """The session's cache of environments, and a script in the current folder; uv keeps its own cache of downloads."""
    monkeypatch.setenv("UV_CACHE_DIR", os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(SCRIPT, encoding="utf-8")
    Path("log").touch()


def made(case: str | None = None, settings: dict[str, Any] | None = None, **numbers: Any) -> Worker:
    given = {"log": "log", "case": case, **(settings or {})}
    return Worker(script="script.py", requirements="numpy.txt", python=None, settings=given, **{**NUMBERS, **numbers})


def noted(word: str) -> list[int]:
    """The process of each call or start."""
    return [int(line.split()[1]) for line in Path("log").read_text().splitlines() if line.startswith(word)]


def lives(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    try:
        os.kill(process, 0)
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def left(seconds: float = 5.0) -> list[int]:
    """Which of the judge's processes are there after a while."""
    until = time.monotonic() + seconds
    while (there := [each for each in noted("start") if lives(each)]) and time.monotonic() < until:
        time.sleep(0.02)
    return there


@pytest.fixture
def bounded() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 20  # a sleep of the script's takes 60


# --- what it is for


def test_it_scores_as_its_script_does_and_says_who_it_is() -> None:
    reward = made()
    assert torch.equal(reward(images(), PROMPTS), right())
    found = reward.identity()
    assert reward.name == found["name"] == "scripted"
    assert found["script"] == hashlib.sha256(SCRIPT.encode()).hexdigest()
    assert found["requirements"] == hashlib.sha256(requirement_file("numpy.txt").read_bytes()).hexdigest()
    assert "log=log" in found["settings"]
    assert reward.to("cpu").eval().requires_grad_(False) is reward
    assert len(set(noted("call"))) == 1


def test_batches_give_the_scores_of_one_call() -> None:
    reward, many = made(batch=64), torch.rand(13, 3, 8, 8, generator=generator(0, "many"))
    prompts = ["a" * each for each in range(13)]
    one = reward(many, prompts)
    for size in (1, 5, 13):
        before = len(noted("call"))
        assert torch.equal(made(batch=size)(many, prompts), one)
        assert len(noted("call")) - before == -(-13 // size)
    assert torch.equal(reward(many.double(), prompts), one)


def test_what_it_stands_on_is_what_its_script_says() -> None:
    silent = made()
    assert (silent.backbones, silent.datasets) == (("unknown",), ("unknown",))
    says = ', "backbones": ["CLIP ViT-H/14", "BERT"], "datasets": []'
    Path("script.py").write_text(SCRIPT.replace('"weights": ""', f'"weights": ""{says}'), encoding="utf-8")
    telling = made()
    assert (telling.backbones, telling.datasets) == (("CLIP ViT-H/14", "BERT"), ())
    assert telling.identity()["backbones"] == "CLIP ViT-H/14; BERT"
    Path("script.py").write_text(SCRIPT.replace('"weights": ""', '"weights": "", "backbones": ["two\\nlines"]'), encoding="utf-8")
    with pytest.raises(ValueError, match=r"its facts say backbones=.*where they are known, backbones and datasets"):
        made()


def test_the_pages_example_runs(tmp_path: Path) -> None:
    """In an environment with a package from the registry, which this one need not have."""
    text = PAGE.read_text(encoding="utf-8")
    for name in ("judge.py", "judge.txt"):
        (block,) = re.findall(rf"^`{name}`:\n\n```(?:python)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        (tmp_path / name).write_text(block, encoding="utf-8")
    reward = Worker(script="judge.py", requirements="./judge.txt", python=None, settings={"scale": 2.0}, **NUMBERS)
    torch.testing.assert_close(reward(images(), PROMPTS), 2 * images().flatten(1).std(1, correction=0))
    assert (reward.name, reward.identity()["version"]) == ("contrast", "1.17.0")


def test_it_sees_neither_our_packages_nor_our_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNBENCH_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "src"))
    Path("script.py").write_text(
        "import importlib.util, os, sys\n"
        "def load(settings):\n"
        "    seen = [each for each in ('alignbench', 'torch', 'colour', 'wire') if importlib.util.find_spec(each)]\n"
        "    settled = sys.stdin.read() == '' and os.path.isabs(settings['path']) and settings['kept'] == 'nowhere/at all'\n"
        "    return {'name': 'x', 'version': f'{seen} {os.environ.get(\"ALIGNBENCH_TOKEN\")} {settled}', 'weights': 'ab' * 32}, None\n"
    )
    assert made(settings={"path": "script.py", "kept": "nowhere/at all"}).identity()["version"] == "[] None True"


def test_it_is_not_copied() -> None:
    reward = made()
    for twin in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied"):
            twin(reward)


# --- the eight cases, and more


PICKLE = io.BytesIO()


class Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("sentinel"),)


np.savez(PICKLE, scores=np.array([Harmful(), Harmful()], dtype=object), allow_pickle=True)


def message(data: bytes, size: int | None = None) -> str:
    return (b"Z" + (len(data) if size is None else size).to_bytes(8, "big") + data).hex()


ORDINARY = {  # no fault of the connection: not tried again
    "raises": ("raises", {}, r"raised: 'broken on purpose\\nsecond line' \(KeyError\)"),
    "nan": ("nan", {}, r"not finite \(nan for image 1\)"),
    "inf": ("inf", {}, r"not finite \(\S+e\+\d+ for image 0\)"),
    "count": ("count", {}, r"shape \[1\] where \[2\] was expected"),
    "shape": ("shape", {}, r"shape \[2, 1\] where \[2\] was expected"),
    "words": ("words", {}, r"type <U\d+ where numbers"),
    "objects": ("objects", {}, r"Python objects, not numbers \(TypeError\)"),
    "nothing": ("nothing", {}, r"Python objects, not numbers \(TypeError\)"),
    "garbage": ("wire", {"bytes": b"a library's banner\n".hex()}, r"no message of its loop"),
    "no npz": ("wire", {"bytes": message(b"PK not at all")}, r"no npz file"),
    "pickle": ("wire", {"bytes": message(PICKLE.getvalue())}, r"no npz file of plain arrays \(Object arrays cannot be loaded"),
    "huge": ("wire", {"bytes": message(b"", 1 << 60)}, r"over the size allowed"),
    "other names": ("wire", {"bytes": message(to_npz(score=np.zeros(2)))}, r"arrays named score where"),
    "no json": ("wire", {"bytes": (b"J" + (1).to_bytes(8, "big") + b"[").hex()}, r"answered with"),
}
GONE = {  # tried again
    "sleeps": ("sleeps", {}, r"no answer within 0\.5 s \(reward\.call_timeout\)"),
    "dies": ("dies", {}, r"its process died \(exit code 3: last words\)"),
    "killed": ("killed", {}, r"its process died \(SIGKILL"),
    "half": ("wire", {"bytes": message(b"PK", 100)}, r"no answer within 0\.5 s"),
    "closed": ("closed", {}, r"its process died"),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_a_wrong_answer_is_an_error_that_says_which(kind: str, bounded: None) -> None:
    case, settings, why = ORDINARY[kind]
    reward = made(case, {**settings, "at": 2, "once": True})
    assert torch.equal(reward(images()[:2], PROMPTS[:2]), right()[:2])
    with pytest.raises(ValueError, match=rf"^reward scripted .*{why}") as caught:
        reward(images()[:2], PROMPTS[:2])
    assert "\n" not in str(caught.value)
    assert len(noted("call")) == 2
    assert torch.equal(reward(images(), PROMPTS), right())  # the next question is not answered with what is left of the last
    reward.close()
    assert not left()
    assert not Path("sentinel").exists()


@pytest.mark.parametrize("kind", GONE)
def test_a_judge_that_is_gone_is_unreachable(kind: str, bounded: None) -> None:
    case, settings, why = GONE[kind]
    reward = made(case, settings, call_timeout=0.5)
    with pytest.raises(Unreachable, match=rf"^reward scripted: {why}.*; tried 2 times$"):
        reward(images(), PROMPTS)
    assert len(noted("call")) == len(set(noted("start"))) == 2
    assert not left()


def test_another_judge_after_a_restart_is_an_error(bounded: None) -> None:
    reward = made("changed")
    with pytest.raises(Changed, match=r"reward scripted: identity changed mid-run \(version 1 -> 2\)"):
        reward(images(), PROMPTS)
    assert len(noted("call")) == 1
    assert not left()


def test_another_script_after_a_restart_is_an_error() -> None:
    reward = made()
    Path("script.py").write_text(SCRIPT + "\n")
    assert torch.equal(reward(images(), PROMPTS), right())
    reward.close()
    with pytest.raises(Changed, match=r"identity changed mid-run \(script \w+ -> \w+\)"):
        reward(images(), PROMPTS)


@pytest.mark.parametrize("kind", ["dies", "sleeps", "killed"])
def test_a_judge_that_is_back_gives_the_scores_of_an_undisturbed_one(kind: str) -> None:
    undisturbed = [made()(images() * share, PROMPTS) for share in (0.2, 0.6, 1.0)]
    Path("log").write_text("")
    reward = made(kind, {"at": 4, "once": True}, call_timeout=1.0)
    assert all(torch.equal(reward(images() * share, PROMPTS), one) for share, one in zip((0.2, 0.6, 1.0), undisturbed, strict=True))
    assert len(set(noted("start"))) == 2


@pytest.mark.parametrize(
    ("case", "error", "why"),
    [
        ("missing", MissingAsset, r"does not load: weights\.pt \(2 GB\) is not here \(FileNotFoundError\)$"),
        ("load", ValueError, r"does not load: 'no such model' \(KeyError\)$"),
        ("slow start", MissingAsset, r"no answer within 0\.5 s \(reward\.start_timeout\); tried 2 times$"),
        ("ill", MissingAsset, r"its process died \(exit code 9.*\); tried 2 times$"),
    ],
)
def test_a_judge_that_does_not_load_is_one_line(case: str, error: type[Exception], why: str, bounded: None) -> None:
    with pytest.raises(error, match=why) as caught:
        made(case, start_timeout=0.5)
    assert "reward.script=" in str(caught.value)
    assert not left()


def test_a_judge_that_does_not_load_again(bounded: None) -> None:
    with pytest.raises(MissingAsset, match=r"weights\.pt was removed"):
        made("gone")(images(), PROMPTS)
    Path("log").write_text("")
    reward = made("slow restart")
    reward._start_timeout = 0.5
    with pytest.raises(Unreachable, match=r"reward\.start_timeout"):
        reward(images(), PROMPTS)
    assert not left()


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ("{'name': 'a/b', 'version': '1', 'weights': ''}", "name='a/b'"),
        ("{'name': 'a', 'version': '1', 'weights': 'x'}", "weights='x'"),
        ("{'name': 'a', 'version': '1'}", "weights=None"),
        ("{'name': 'a', 'version': '1', 'weights': '', 'more': 1}", "more='1'"),
        ("[]", "no attribute 'items'"),
    ],
)
def test_facts_are_checked(facts: str, why: str) -> None:
    Path("script.py").write_text(f"def load(settings):\n    return {facts}, None\n")
    with pytest.raises(ValueError, match=re.escape(why)):
        made()


# --- processes


def test_an_idle_judge_ends_and_comes_back() -> None:
    reward = made(idle_timeout=0.3)
    assert torch.equal(reward(images(), PROMPTS), right())
    assert not left()
    assert torch.equal(reward(images(), PROMPTS), right())
    assert len(set(noted("start"))) == 2


def test_it_ends_with_its_object() -> None:
    reward = made()
    (process,) = noted("start")
    assert lives(process)
    del reward
    assert not left()


@pytest.mark.parametrize("end", ["sys.exit()", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)", "1 / 0"])
@pytest.mark.slow
def test_it_ends_with_its_parent(end: str) -> None:
    """However that ends, and also in the middle of a call that takes long."""
    code = f"""
import os, sys, threading, time, torch
from alignbench.rewards.worker import Worker
reward = Worker(script="script.py", requirements="numpy.txt", python=None, settings={{"log": "log", "case": "sleeps"}}, **{NUMBERS})
threading.Thread(target=reward, args=(torch.zeros(1, 3, 8, 8), [""]), daemon=True).start()
while "call" not in open("log").read():
    time.sleep(0.02)
{end}
"""
    subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL, timeout=120)
    assert noted("call")
    assert not left()


def test_it_ends_when_nobody_can_ask_any_more() -> None:
    """Where the kernel does not end it with its parent, the end of its input does, also while it is busy."""
    reward, errors = made("sleeps", tries=1), []

    def call() -> None:
        try:
            reward(images(), PROMPTS)
        except Unreachable as error:
            errors.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    while not noted("call"):
        time.sleep(0.02)
    reward._held[0]._child.stdin.close()
    assert not left()
    caller.join(10)
    assert len(errors) == 1


def test_it_outlives_the_thread_that_asked_for_it() -> None:
    """A server has a thread a request, and what is judged beside the rollouts is asked in another: none may take the judge along."""
    reward = made()
    for _ in range(3):
        reward.close()
        thread = threading.Thread(target=reward, args=(images(), PROMPTS))
        thread.start()
        thread.join()
        (process,) = [each for each in noted("start") if lives(each)]
        time.sleep(0.2)
        assert lives(process)
        assert torch.equal(reward(images(), PROMPTS), right())
    assert len(noted("start")) == 4


def test_a_terminals_interrupt_does_not_reach_it() -> None:
    made_here = made()
    (process,) = noted("start")
    assert os.getpgid(process) == process != os.getpgid(0)
    made_here.close()


def test_a_fork_does_not_end_it() -> None:
    reward = made()
    pid = os.fork()
    if not pid:
        reward.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert torch.equal(reward(images(), PROMPTS), right())
    assert len(noted("start")) == 1


def test_an_interrupted_call_leaves_no_answer_for_the_next(bounded: None) -> None:
    reward = made("sleeps", {"once": True})

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            reward(images(), PROMPTS)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not left()
    assert torch.equal(reward(images(), PROMPTS), right())


# --- environments


def test_two_builds_at_once_make_one_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fresh"))
    code = "from alignbench.rewards.environment import *; print(environment(requirement_file('numpy.txt'), None, 300))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True) for _ in range(2)]
    told = [each.communicate(timeout=120) for each in both]
    assert told[0][0] == told[1][0]
    assert sum(err.count("building the environment") for _, err in told) == 1
    (folder,) = [each for each in (tmp_path / "fresh" / "alignbench" / "environments").iterdir() if each.suffix != ".lock"]
    assert Path(told[0][0].strip()).parents[1] == folder


def test_an_environment_is_for_its_list_and_is_built_once(capfd: pytest.CaptureFixture[str]) -> None:
    found = environment(requirement_file("numpy.txt"), None, 300)
    capfd.readouterr()
    assert environment(requirement_file("numpy.txt"), None, 300) == found
    assert environment(requirement_file("numpy.txt"), sys.executable, 300) == found
    assert not capfd.readouterr().err


def test_a_list_that_cannot_be_installed_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fresh"))
    Path("wrong.txt").write_text("# a wrong one\nnothing @ file:///nowhere/nothing-1-py3-none-any.whl\n")
    with pytest.raises(MissingAsset, match=r"wrong\.txt: its environment cannot be built \(.*nowhere.*\); mend") as caught:
        environment(requirement_file("./wrong.txt"), None, 300)
    assert "\n" not in str(caught.value)
    assert "(a wrong one) in " in capfd.readouterr().err
    assert [each.suffix for each in (tmp_path / "fresh" / "alignbench" / "environments").iterdir()] == [".lock"]
    with pytest.raises(MissingAsset, match=r"not built within reward\.build_timeout=0\.001 s"):
        environment(requirement_file("numpy.txt"), None, 0.001)
    assert {each.suffix for each in (tmp_path / "fresh" / "alignbench" / "environments").iterdir()} == {".lock"}


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(MissingAsset, match=r"reward\.requirements=none\.txt: .*conf/reward/env/none\.txt; write \./none\.txt"):
        requirement_file("none.txt")
    with pytest.raises(MissingAsset, match=r"reward\.python=2\.0: no such interpreter"):
        environment(requirement_file("numpy.txt"), "2.0", 300)
    with pytest.raises(MissingAsset, match=r"reward\.script=none\.py: there is no such file"):
        Worker(script="none.py", requirements="numpy.txt", python=None, settings={}, **NUMBERS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fresh"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "uv", None)
    with pytest.raises(MissingAsset, match="pip install uv"):
        environment(requirement_file("numpy.txt"), None, 300)


# --- the wire


def test_requests_arrive_as_they_were_sent() -> None:
    found, prompts = asked_for(request(images(), PROMPTS), 1 << 20)
    assert torch.equal(found, images())
    assert prompts == PROMPTS


def test_an_archive_is_bounded_by_what_it_unpacks_to() -> None:
    bomb = io.BytesIO()
    np.savez_compressed(bomb, scores=np.zeros(10_000_000))
    assert len(bomb.getvalue()) < 100_000
    with pytest.raises(Garbled, match="unpacks to"):
        scores("bomb", bomb.getvalue(), 3)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes_are_a_value_error(seed: int) -> None:
    random, data = np.random.default_rng(seed), bytearray(to_npz(scores=np.arange(3.0)))
    for at in random.integers(0, len(data), 3):
        data[at] ^= int(random.integers(1, 256))
    try:
        found = from_npz(bytes(data[: random.integers(1, len(data))]) if seed % 2 else bytes(data), 1 << 16)
    except ValueError:
        return
    assert all(isinstance(each, np.ndarray) for each in found.values())


# --- a run


def test_times_are_no_part_of_a_run_and_its_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["reward=worker", "reward.script=script.py", "reward.requirements=numpy.txt"]
    one = compose(words)
    assert compose([*words, "reward.call_timeout=1", "reward.tries=9", "reward.batch=1"]).hash == one.hash
    assert compose([*words, "reward.settings.log=other"]).hash != one.hash
    conf = tmp_path / "conf"
    shutil.copytree(conf_folder(), conf)
    (conf / "reward" / "env" / "numpy.txt").write_text("# another list of the same name\n")
    with monkeypatch.context() as patch:
        patch.setattr("alignbench.compose.conf_folder", lambda: conf)
        assert compose(words, conf).hash != one.hash
    Path("script.py").write_text(SCRIPT + "\n")
    assert compose(words).hash == one.hash  # a process reads a file once
    _digest.cache_clear()
    assert compose(words).hash != one.hash


@pytest.mark.slow
def test_a_run_whose_judge_dies_is_that_of_one_whose_judge_does_not(tmp_path: Path) -> None:
    words = [
        "reward=worker",
        f"reward.script={tmp_path}/script.py",
        "reward.requirements=numpy.txt",
        "reward.pause=0.1",
        f"output={tmp_path}/runs",
    ]
    words += ["model=gaussian", "eval=plain", "epochs=2", "sampler.steps=4", "eval.prompts=4", "eval.validation_prompts=2"]
    words += ["method.images=16", "method.images_per_prompt=4", "method.batch=8", "method.advantage=group"]
    rows = []
    for case in ("null", "dies"):
        Path("log").write_text("")
        given = [*words, f"reward.settings={{log: {tmp_path}/log, case: {case}, at: 2, once: true}}"]
        assert main(given) == 0
        rows.append(read_metrics(compose(given).folder))
        gc.collect()  # a run in a process of its own ends with that
    assert rows[0] == rows[1]
    assert len(set(noted("start"))) == 2
    assert not left()
