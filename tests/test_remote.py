"""A judge over HTTP whose server refuses, stalls, lies, changes or goes away (R6, R7): a socket on 127.0.0.1 that answers by a script."""

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignbench.config import MissingAsset
from alignbench.rewards.remote import Remote
from alignbench.rewards.wire import IDENTITY, Changed, Unreachable, asked_for
from alignbench.rng import generator

PROMPTS = ["a red circle", "ein blaues Quadrat, groß", ""]
WHO = {"name": "scripted", "version": "1", "weights": ""}
NUMBERS = {"batch": 2, "connect_timeout": 5, "call_timeout": 20, "tries": 2, "pause": 0.05}


def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=generator(0, "images"))


def right(seen: Tensor, prompts: list[str]) -> Tensor:
    return (seen.double().mean((1, 2, 3)) + torch.tensor([len(each) for each in prompts])).float()


def npz(**arrays: Any) -> bytes:
    """By numpy's own writer."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


class Answers(BaseHTTPRequestHandler):
    """`server.script(handler, right scores)` says how the n-th question is answered; else rightly."""

    def do_GET(self) -> None:
        self.server.asked.append(self)
        self.reply(200, json.dumps(self.server.who).encode())

    def do_POST(self) -> None:
        self.server.asked.append(self)
        seen, prompts = asked_for(self.rfile.read(int(self.headers["Content-Length"])), 1 << 24)
        scores = right(seen, prompts).numpy()
        self.server.turn += 1
        if self.server.turn not in self.server.turns or self.server.script is None:
            self.reply(200, npz(scores=scores))
        else:
            self.server.script(self, scores)

    def reply(self, status: int, body: bytes, size: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.send_header(IDENTITY, self.server.mark)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


class Scripted(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), Answers)
        self.script: Callable[[Any, np.ndarray], None] | None = None
        self.turn, self.turns, self.mark, self.who = 0, range(1000), "one", dict(WHO)
        self.asked: list[Any] = []
        self.stopped = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None: ...

    def stop(self) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()


@pytest.fixture
def server() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.stop()


def asking(server: Scripted, **numbers: Any) -> Remote:
    return Remote(url=f"http://127.0.0.1:{server.server_port}", **{**NUMBERS, **numbers})


@pytest.fixture
def bounded() -> Iterator[None]:
    start, threads = time.monotonic(), threading.active_count()
    yield
    assert time.monotonic() - start < 10
    assert threading.active_count() <= threads + 4  # its alarms are over; some of the server's may still write


def test_it_scores_as_its_server_does_and_says_who_it_is(server: Scripted) -> None:
    reward = asking(server)
    assert torch.equal(reward(images(), PROMPTS), right(images(), PROMPTS))
    assert reward.name == "scripted"
    assert reward.identity() == WHO
    assert server.turn == 2
    for size in (1, 3, 64):
        assert torch.equal(asking(server, batch=size)(images(), PROMPTS), right(images(), PROMPTS))
    assert reward.to("cpu").eval()(images().double(), PROMPTS).dtype == torch.float32


# --- the eight cases, and more


class Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("sentinel"),)


def drip(handler: Any, scores: np.ndarray) -> None:
    """Bytes that keep coming, each soon enough for a socket's own time."""
    handler.reply(200, b"", 1000)
    while not handler.server.stopped.wait(0.1):
        handler.wfile.write(b"P")


def flood(handler: Any, scores: np.ndarray) -> None:
    handler.reply(200, b"", 1 << 40)
    while not handler.server.stopped.is_set():
        handler.wfile.write(bytes(1 << 16))


def other(handler: Any, scores: np.ndarray) -> None:
    handler.server.mark = "two"
    handler.reply(200, npz(scores=scores))


def answer(status: int, body: bytes) -> Callable[[Any, np.ndarray], None]:
    return lambda handler, scores: handler.reply(status, body)


def scored(change: Callable[[np.ndarray], Any]) -> Callable[[Any, np.ndarray], None]:
    return lambda handler, scores: handler.reply(200, npz(scores=change(scores)))


ORDINARY = {  # not tried again
    "raises": (answer(422, b'{"error": "broken on\\npurpose (KeyError)"}'), r"status 422: broken on purpose \(KeyError\)"),
    "nan": (scored(lambda scores: np.where(np.arange(2) == 1, np.nan, scores)), r"not finite \(nan for image 1\)"),
    "inf": (scored(lambda scores: scores - np.inf), r"not finite \(-inf for image 0\)"),
    "count": (scored(lambda scores: scores[:-1]), r"shape \[1\] where \[2\] was expected"),
    "shape": (scored(lambda scores: scores[:, None]), r"shape \[2, 1\] where \[2\] was expected"),
    "words": (scored(lambda scores: scores.astype(str)), r"type <U\d+ where numbers"),
    "complex": (scored(lambda scores: scores + 1j), r"type complex\d+ where numbers"),
    "pickle": (scored(lambda scores: np.array([Harmful(), Harmful()])), r"no npz file of plain arrays \(Object arrays cannot be loaded"),
    "garbage": (answer(200, b"<html>welcome</html>"), r"no npz file of plain arrays"),
    "empty": (answer(200, b""), r"no npz file of plain arrays"),
    "names": (answer(200, npz(score=np.zeros(2))), r"arrays named score where `scores` was expected"),
    "flood": (flood, r"more than the 65568 bytes"),
    "large": (scored(lambda scores: np.zeros(100_000)), r"more than the 65568 bytes"),
    "too much": (answer(413, b'{"error": "lower reward.batch"}'), r"status 413: lower reward\.batch"),
}
GONE = {  # tried again
    "sleeps": (lambda handler, scores: handler.server.stopped.wait(30), r"no answer from 127\.0\.0\.1:\d+ in time"),
    "drips": (drip, r"half an answer from 127\.0\.0\.1:\d+ in the time of reward\.call_timeout"),
    "dies": (lambda handler, scores: handler.connection.shutdown(socket.SHUT_RDWR), r"no answer from 127\.0\.0\.1:\d+ \("),
    "half": (lambda handler, scores: handler.reply(200, npz(scores=scores)[:50], 1000), r"half an answer"),
    "no http": (lambda handler, scores: handler.wfile.write(b"SSH-2.0-server\r\n"), r"no answer from .*SSH-2\.0"),
    "500": (answer(500, b'{"error": "out of memory"}'), r"answered with status 500: out of memory"),
    "503": (answer(503, b"upstream\n gone"), r"answered with status 503: upstream gone"),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_a_wrong_answer_is_an_error_that_says_which(kind: str, server: Scripted, bounded: None, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    server.script, why = ORDINARY[kind]
    server.turns = range(2, 3)
    reward = asking(server)
    assert torch.equal(reward(images()[:2], PROMPTS[:2]), right(images()[:2], PROMPTS[:2]))
    with pytest.raises(ValueError, match=rf"^reward scripted answered with .*{why}") as caught:
        reward(images()[:2], PROMPTS[:2])
    assert "\n" not in str(caught.value)
    assert server.turn == 2
    assert torch.equal(reward(images(), PROMPTS), right(images(), PROMPTS))
    assert not Path("sentinel").exists()


@pytest.mark.parametrize("kind", GONE)
def test_a_judge_that_is_gone_is_unreachable(kind: str, server: Scripted, bounded: None) -> None:
    server.script, why = GONE[kind]
    reward = asking(server, call_timeout=0.5)
    with pytest.raises(Unreachable, match=rf"^reward scripted: .*{why}.*; tried 2 times$") as caught:
        reward(images(), PROMPTS)
    assert "\n" not in str(caught.value)
    assert server.turn == 2


def test_a_server_that_refuses_is_unreachable(bounded: None) -> None:
    server = Scripted()
    reward = asking(server)
    server.stop()
    with pytest.raises(Unreachable, match=r"^reward scripted: no answer from .*refused.*; tried 2 times$"):
        reward(images(), PROMPTS)
    with pytest.raises(MissingAsset, match=r"reward\.url=http://127\.0\.0\.1:\d+: .*refused.*alignbench serve reward="):
        asking(server)


def test_another_judge_is_an_error_at_once(server: Scripted, bounded: None) -> None:
    server.script, server.turns = other, range(2, 3)
    reward = asking(server)
    with pytest.raises(Changed, match=r"^reward scripted: identity changed mid-run \(one -> two\)"):
        reward(images(), PROMPTS)
    assert server.turn == 2


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_a_closed_door_is_not_knocked_at_twice(status: int, server: Scripted) -> None:
    reward = asking(server)
    server.script = answer(status, b'{"error": "no"}')
    with pytest.raises(ValueError if status == 302 else Unreachable, match=f"status {status}: no"):
        reward(images(), PROMPTS)
    assert server.turn == 1


# --- healing


@pytest.mark.parametrize("kind", ["500", "dies", "half", "sleeps", "drips"])
def test_a_judge_that_is_back_gives_the_scores_of_an_undisturbed_one(kind: str, server: Scripted) -> None:
    server.script, _ = GONE[kind]
    server.turns = range(2, 4)
    reward, shares = asking(server, tries=3, call_timeout=0.5), (0.2, 0.6, 1.0)
    for share in shares:
        assert torch.equal(reward(images() * share, PROMPTS), right(images() * share, PROMPTS))
    assert server.turn == 2 * len(shares) + 2


def test_a_server_that_starts_again_is_waited_for() -> None:
    server = Scripted()
    reward, port, again = asking(server, tries=6, pause=0.1), server.server_port, []
    server.stop()
    late = threading.Timer(0.5, lambda: again.append(Scripted(port)))
    late.start()
    try:
        assert torch.equal(reward(images(), PROMPTS), right(images(), PROMPTS))
    finally:
        late.join()
        again[0].stop()


def test_pauses_double_and_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    with pytest.raises(MissingAsset, match="tried 8 times"):
        Remote(url=f"http://127.0.0.1:{port}", **{**NUMBERS, "tries": 8, "pause": 1.0})
    assert slept == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


# --- who is asked, and with what


@pytest.mark.parametrize(
    "url", ["ftp://a", "127.0.0.1:80", "http://", "http://me:secret@host", "http://host?token=secret", "http://host:port"]
)
def test_an_address_is_checked(url: str) -> None:
    with pytest.raises(ValueError, match=r"reward\.url=") as caught:
        Remote(url=url, **NUMBERS)
    assert "me:secret" not in str(caught.value)


@pytest.mark.parametrize("who", [[], {"name": "x"}, {"name": "a/b", "version": "1"}, {"name": "x", "version": 1}])
def test_who_does_not_say_who_it_is_is_no_judge(who: Any, server: Scripted) -> None:
    server.who = who
    with pytest.raises(MissingAsset, match="/identity does not say who its judge is"):
        asking(server)
    server.who, server.mark = WHO, ""
    with pytest.raises(MissingAsset, match="/identity does not say who its judge is"):
        asking(server)


def test_the_token_is_sent_and_nowhere_else(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    asking(server)
    assert server.asked[-1].headers["Authorization"] is None
    monkeypatch.setenv("ALIGNBENCH_TOKEN", "s3cret")
    reward = asking(server)
    reward(images(), PROMPTS)
    assert {each.headers["Authorization"] for each in server.asked[-2:]} == {"Bearer s3cret"}
    assert "s3cret" not in str(reward.identity())
    monkeypatch.setenv("ALIGNBENCH_TOKEN", "s3cret\nHost: elsewhere")
    with pytest.raises(ValueError, match="ALIGNBENCH_TOKEN: a token is printable") as caught:
        asking(server)
    assert "s3cret" not in str(caught.value)


def test_a_request_is_bounded(server: Scripted) -> None:
    with pytest.raises(ValueError, match=r"over the 268435456 of a server; lower reward\.batch"):
        asking(server)(torch.zeros(1, 3, 1, 1).expand(1, 3, 4800, 4800), [""])
