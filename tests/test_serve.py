"""`alignbench serve`: what it offers is the judge itself, to whom it should, and to nobody's harm."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignbench import __version__
from alignbench.__main__ import main
from alignbench.rewards.base import Changed, Reward, Unreachable
from alignbench.rewards.colour import Colour
from alignbench.rewards.jpeg import JpegCompressibility
from alignbench.rewards.remote import Remote
from alignbench.rewards.sandbox_preference import SandboxPreference
from alignbench.rewards.scene_judge import SceneJudge
from alignbench.rewards.wire import LARGEST, NPZ, request, said_kin
from alignbench.rng import generator
from alignbench.serve import Server
from alignbench.worlds.scenes import all_scenes, draw

SCENES = all_scenes("train")[::500]
PROMPTS = [scene.caption for scene in SCENES]
NUMBERS = {"batch": 5, "connect_timeout": 5, "call_timeout": 20, "tries": 2, "pause": 0.05}


def pictures() -> Tensor:
    return draw(SCENES, generator(0, "pictures"))


class Fragile(SceneJudge):
    """Raises what it is given."""

    error: Exception | None = None

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        if self.error is not None:
            raise self.error
        return super().forward(images, prompts)


@pytest.fixture
def server() -> Iterator[Server]:
    with started(Fragile()) as made:
        yield made
        made.shutdown()


def started(reward: Reward, port: int = 0) -> Server:
    server = Server(reward.eval(), "cpu", "127.0.0.1", port)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


def asking(server: Server, **numbers: Any) -> Remote:
    return Remote(url=f"http://127.0.0.1:{server.server_port}", **{**NUMBERS, **numbers})


def posted(server: Server, body: bytes, path: str = "/score", **headers: str) -> tuple[int, str]:
    """The status and the error of a request by hand."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("POST", path, body, {"Content-Type": NPZ, **{key.replace("_", "-"): each for key, each in headers.items()}})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, json.loads(body)["error"] if answer.status != 200 else ""


JUDGES = [SceneJudge(), SandboxPreference(path="package://rewards/preference/model.safetensors"), Colour(width=0.35), JpegCompressibility()]


@pytest.mark.parametrize("reward", JUDGES, ids=lambda reward: reward.name)
def test_what_is_served_is_the_judge_bit_for_bit(reward: Reward) -> None:
    with started(reward) as server:
        remote = asking(server, batch=len(PROMPTS))
        assert torch.equal(remote(pictures(), PROMPTS), reward(pictures(), PROMPTS))
        assert (remote.backbones, remote.datasets, remote.members) == (reward.backbones, reward.datasets, reward.members)
        assert remote.identity() == reward.identity() | said_kin(reward) | {"version": __version__}
        assert remote.name == reward.name
        server.shutdown()


def test_one_question_at_a_time(server: Server) -> None:
    inside: list[int] = []
    most: list[int] = []

    class Busy(SceneJudge):
        def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
            inside.append(1)
            most.append(len(inside))
            scores = super().forward(images, prompts)
            inside.pop()
            return scores

    server.reward = Busy()
    remote = asking(server)
    callers = [threading.Thread(target=remote, args=(pictures(), PROMPTS)) for _ in range(8)]
    for each in callers:
        each.start()
    for each in callers:
        each.join(30)
    assert len(most) >= 8
    assert max(most) == 1


def test_what_the_judge_raises_is_told_and_serving_goes_on(server: Server) -> None:
    remote, right = asking(server), SceneJudge()(pictures(), PROMPTS)
    server.reward.error = KeyError("broken on\npurpose")
    with pytest.raises(ValueError, match=r"^reward scene_judge answered with status 422: .*broken on.*purpose.* \(KeyError\)$"):
        remote(pictures(), PROMPTS)
    server.reward.error = Unreachable("reward inner: its process died")
    with pytest.raises(Unreachable, match=r"status 503: reward inner: its process died; tried 2 times"):
        remote(pictures(), PROMPTS)
    server.reward.error = None
    assert torch.allclose(remote(pictures(), PROMPTS), right)


class Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("sentinel"),)


def npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


IMAGES, WORDS = np.zeros((2, 3, 32, 32), np.float32), np.frombuffer(b'["a", "b"]', np.uint8)
BAD = {
    "garbage": (b"not an npz file", "no npz file"),
    "empty": (b"", "no npz file"),
    "pickle": (npz(images=np.array([Harmful()]), prompts=WORDS), "Object arrays cannot be loaded"),
    "names": (npz(image=IMAGES, prompts=WORDS), "arrays named image, prompts"),
    "type": (npz(images=IMAGES.astype(np.uint8), prompts=WORDS), "type uint8"),
    "shape": (npz(images=IMAGES[:, :1], prompts=WORDS), r"[2, 1, 32, 32]"),
    "none": (npz(images=IMAGES[:0], prompts=np.frombuffer(b"[]", np.uint8)), "[0, 3, 32, 32]"),
    "count": (npz(images=IMAGES[:1], prompts=WORDS), "list of 1 strings"),
    "numbers": (npz(images=IMAGES, prompts=np.frombuffer(b"[1, 2]", np.uint8)), "list of 2 strings"),
    "no json": (npz(images=IMAGES, prompts=np.frombuffer(b"[", np.uint8)), "Expecting value"),
    "deep": (npz(images=IMAGES, prompts=np.frombuffer(b"[" * 50_000, np.uint8)), "recursion"),
    "no text": (npz(images=IMAGES, prompts=np.frombuffer(b"\xff\xfe\xff", np.uint8)), "decode"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_is_refused_with_its_reason(kind: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    body, why = BAD[kind]
    status, error = posted(server, body)
    assert status == 400
    assert why in error
    assert not Path("sentinel").exists()
    assert posted(server, request(torch.from_numpy(IMAGES), PROMPTS[:2]))[0] == 200


def test_only_two_addresses_and_one_type(server: Server) -> None:
    body = request(torch.from_numpy(IMAGES), PROMPTS[:2])
    assert posted(server, body, "/")[0] == posted(server, body, "/../etc/passwd")[0] == posted(server, body, "/identity")[0] == 404
    assert posted(server, body, Content_Type="text/plain")[0] == 415  # what a page in a browser can send without being asked
    with socket.create_connection(("127.0.0.1", server.server_port), 20) as line:
        line.sendall(f"POST /score HTTP/1.0\r\nContent-Type: {NPZ}\r\nContent-Length: {LARGEST + 1}\r\n\r\n".encode())
        assert b" 413 " in line.makefile("rb").readline()
    with socket.create_connection(("127.0.0.1", server.server_port), 20) as line:
        line.sendall(f"POST /score HTTP/1.0\r\nContent-Type: {NPZ}\r\nContent-Length: -1\r\n\r\n".encode())
        assert b" 413 " in line.makefile("rb").readline()


def test_a_token_is_asked_for_where_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    body = torch.zeros(20, 3, 256, 256), [""] * 20
    monkeypatch.setenv("ALIGNBENCH_TOKEN", "s3cret")
    with started(SceneJudge()) as server:
        notice = server.notice()
        assert "s3cret" not in notice
        assert "ALIGNBENCH_TOKEN" in notice
        asking(server)(pictures(), PROMPTS)
        remote = asking(server, batch=20)
        remote._headers = {"Authorization": "Bearer another"}
        with pytest.raises(Unreachable, match=r"status 401.*set ALIGNBENCH_TOKEN"):  # told although its body is long and unread
            remote(*body)
        monkeypatch.delenv("ALIGNBENCH_TOKEN")
        for headers in ({}, {"Authorization": "Bearer é"}, {"Authorization": "s3cret"}):
            assert posted(server, request(*body), **headers)[0] == 401
        server.shutdown()


def test_a_server_with_another_judge_is_an_error() -> None:
    with started(SceneJudge()) as first:
        remote, port = asking(first), first.server_port
        first.shutdown()
    with started(JpegCompressibility(), port) as second:
        with pytest.raises(Changed, match="identity changed mid-run"):
            remote(pictures(), PROMPTS)
        second.shutdown()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "which judge?"),
        (["host=127.0.0.1"], "which judge?"),
        (["reward=scene_judge", "host="], "host=: an address is wanted"),
        (["reward=scene_judge", "method=ddpo"], "method=ddpo: neither host="),
        (["reward=scene_jugde"], "did you mean scene_judge"),
        (["reward=scene_judge", "port=high"], "port=high"),
        (["reward=scene_judge", "port=70000"], "port=70000"),
        (["reward=scene_judge", "host=203.0.113.1"], "host=203.0.113.1"),
    ],
)
def test_wrong_words_end_in_one_line(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words]) == 2
    error = capsys.readouterr().err
    assert why in error
    assert error.count("\n") == 1


def test_a_taken_port_and_a_judge_of_groups_are_refused(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "reward=scene_judge", f"port={server.server_port}"]) == 2
    assert "choose others, or port=0" in capsys.readouterr().err

    class Together(SceneJudge):
        grouped = True

    with pytest.raises(ValueError, match="scores a prompt's images together"):
        Server(Together(), "cpu", "127.0.0.1", 0)


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped() -> None:
    """A process of its own, its line for others, and a run that takes its scores from there."""
    words = [sys.executable, "-m", "alignbench", "serve", "reward=scene_judge", "port=0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        try:
            assert process.stderr is not None
            first, second = process.stderr.readline(), process.stderr.readline()
            assert "serving scene_judge on " in first
            assert "to this machine alone" in first
            (url,) = [word.removeprefix("reward.url=") for word in second.split() if word.startswith("reward.url=")]
            assert url.startswith("http://127.0.0.1:")
            torch.testing.assert_close(Remote(url=url, **NUMBERS)(pictures(), PROMPTS), SceneJudge()(pictures(), PROMPTS))
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()
