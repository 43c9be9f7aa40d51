"""A judge asked over HTTP: `alignbench serve` elsewhere, or any server of the two addresses in docs/rewards/elsewhere.md."""

import http.client
import json
import os
import re
import socket
import ssl
import threading
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import SplitResult, urlsplit

import torch
from torch import Tensor

from alignbench.config import MissingAsset
from alignbench.ranges import Count, Positive, Text
from alignbench.rewards.base import Changed, Reward, Unreachable
from alignbench.rewards.wire import (
    IDENTITY,
    LARGEST,
    NAME,
    NPZ,
    TOKEN,
    Faltered,
    Garbled,
    most,
    patiently,
    request,
    scores,
    take_kin,
)
from alignbench.rewards.worker_loop import first_line

REFUSED = {401: f"set {TOKEN} to its token", 403: f"set {TOKEN} to its token", 404: "is reward.url the address of a judge?"}


class Remote(Reward):
    """Scores from the server at `url`, which says who its judge is, and with every answer that it still is."""

    name = "remote"
    differentiable = False
    spatial = False
    range = (-float("inf"), float("inf"))
    unit = "the judge's own"
    licence = "the judge's own"
    frame = "the judge's own"

    def __init__(self, *, url: Text, batch: Count, connect_timeout: Positive, call_timeout: Positive, tries: Count, pause: Positive):
        """url: http(s)://host:port; batch: images a request; timeouts in seconds; pause: before the second try, doubled before each
        further one. Raises MissingAsset where no judge answers there.
        """
        super().__init__()
        self._at, self._batch, self._tries, self._pause = _address(url), batch, tries, pause
        self._connect_timeout, self._call_timeout = connect_timeout, call_timeout
        self._headers = _token()
        try:
            body, self._hash = patiently(self.name, tries, pause, partial(self._sent, "GET", "/identity", b"", most(0)))
        except Unreachable as error:
            raise MissingAsset(f"reward.url={url}: {error}; start it there with `alignbench serve reward=...`") from error
        self._identity = _identity(url, body, self._hash)
        self.name = self._identity["name"]  # type: ignore[misc]
        take_kin(self, self._identity)

    @property
    def costly(self) -> bool:
        return True

    def identity(self) -> dict[str, str]:
        return dict(self._identity)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        starts = range(0, len(images), self._batch)
        parts = [self._scored(images[at : at + self._batch], prompts[at : at + self._batch]) for at in starts]
        return torch.cat(parts).to(images.device)

    def _scored(self, images: Tensor, prompts: list[str]) -> Tensor:
        data = request(images, prompts)
        if len(data) > LARGEST:
            raise ValueError(f"reward {self.name}: a request of {len(data)} bytes, over the {LARGEST} of a server; lower reward.batch")
        return patiently(self.name, self._tries, self._pause, partial(self._asked, data, len(images)))

    def _asked(self, data: bytes, count: int) -> Tensor:
        answer, identity = self._sent("POST", "/score", data, most(count))
        if identity != self._hash:
            raise Changed(
                f"reward {self.name}: identity changed mid-run ({self._hash[:12]} -> {identity[:12]}); start a new run for this one"
            )
        return scores(self.name, answer, count)

    def _sent(self, method: str, path: str, body: bytes, allowed: int) -> tuple[bytes, str]:
        """The body of an answer, and the hash of who gave it. Raises Faltered for what another try may heal."""
        https = {"context": ssl.create_default_context()} if self._at.scheme == "https" else {}
        kind: Any = http.client.HTTPSConnection if https else http.client.HTTPConnection
        connection = kind(self._at.hostname, self._at.port, timeout=self._connect_timeout, **https)
        late = threading.Event()
        try:
            connection.connect()
            line = connection.sock
            line.settimeout(self._call_timeout)
            alarm = threading.Timer(self._call_timeout, _cut, (line, late))  # a socket's own time begins anew with every byte
            alarm.daemon = True
            alarm.start()
            try:
                connection.request(method, self._at.path.rstrip("/") + path, body, {"Content-Type": NPZ, **self._headers})
                answer = connection.getresponse()
                data = answer.read(allowed + 1)
            finally:
                alarm.cancel()
        except (OSError, http.client.HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise Faltered(f"no answer from {self._at.netloc} in time (reward.connect_timeout, reward.call_timeout)") from error
            raise Faltered(f"no answer from {self._at.netloc} ({first_line(error) or type(error).__name__})") from error
        finally:
            connection.close()
        return self._read(answer, data, allowed, late.is_set())

    def _read(self, answer: http.client.HTTPResponse, data: bytes, allowed: int, late: bool) -> tuple[bytes, str]:
        if late or (answer.length and len(data) <= allowed):
            raise Faltered(f"half an answer from {self._at.netloc}{' in the time of reward.call_timeout' * late}")
        if answer.status == 200:
            if len(data) > allowed:
                raise Garbled(f"more than the {allowed} bytes that its scores can take")
            return data, answer.headers.get(IDENTITY, "")
        said = f"status {answer.status}: {_error(data)}"
        if answer.status >= 500:
            raise Faltered(f"{self._at.netloc} answered with {said}")
        if answer.status in REFUSED:
            raise Unreachable(f"reward {self.name}: {self._at.netloc} answered with {said}; {REFUSED[answer.status]}")
        raise ValueError(f"reward {self.name} answered with {said}")


def _cut(line: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):  # it has just ended by itself
        socket.socket.shutdown(line, socket.SHUT_RDWR)  # TLS's own would pull the object from under the reader


def _address(url: str) -> SplitResult:
    with suppress(ValueError):
        at = urlsplit(url)
        if at.scheme in ("http", "https") and at.hostname and not (at.username or at.query) and at.port != 0:
            return at
    raise ValueError(f"reward.url={url.rpartition('@')[2]}: write http(s)://host:port; a token belongs into {TOKEN}")


def _token() -> dict[str, str]:
    token = os.environ.get(TOKEN)
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"{TOKEN}: a token is printable ASCII without spaces; set another")  # not repeated: errors are kept in files
    return {"Authorization": f"Bearer {token}"} if token else {}


def _error(data: bytes) -> str:
    """What an error's body says, or the start of it."""
    try:
        said = json.loads(data)["error"]
    except (ValueError, KeyError, TypeError):
        said = data.decode(errors="replace")
    return " ".join(str(said).split())[:500]


def _identity(url: str, body: bytes, mark: str) -> dict[str, str]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    known = isinstance(found, dict) and {"name", "version"} <= found.keys() and all(isinstance(each, str) for each in found.values())
    if not mark or not known or not re.fullmatch(NAME, found["name"]):
        raise MissingAsset(f"reward.url={url}: {url}/identity does not say who its judge is (docs/rewards/elsewhere.md); is it a judge?")
    return found
