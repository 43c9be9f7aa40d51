"""`alignbench serve reward=...`: offers a judge over HTTP, for reward=remote elsewhere. JSON and npz only; nothing is ever unpickled."""

import hashlib
import hmac
import ipaddress
import json
import os
import re
import socket
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

import torch

from alignbench import __version__
from alignbench.compose import compose
from alignbench.config import ConfigError, MissingAsset
from alignbench.experiment import made
from alignbench.rewards.base import Reward, Unreachable
from alignbench.rewards.wire import IDENTITY, LARGEST, NPZ, TOKEN, asked_for, said_kin
from alignbench.rewards.worker_loop import to_npz

USAGE = "alignbench serve reward=<choice> [reward.key=value ...] [host=127.0.0.1] [port=8765]"


def serve(words: list[str]) -> int:
    """The exit code. Serves until Ctrl-C."""
    given = {"host": "127.0.0.1", "port": "8765"}
    given |= {key: value for key, _, value in (word.partition("=") for word in words) if key in given}
    rest = [word for word in words if word.partition("=")[0] not in given]
    if wrong := [word for word in rest if not re.match(r"reward[.=]", word)]:
        raise ConfigError(f"serve: {wrong[0]}: neither host=, port= nor a word of the reward group; {USAGE}")
    if not any(word.startswith("reward=") for word in rest):
        raise ConfigError(f"serve: which judge? {USAGE}")
    if not given["host"]:
        raise ConfigError("serve: host=: an address is wanted; 127.0.0.1 for this machine alone, 0.0.0.0 for the network")
    if not re.fullmatch("[0-9]{1,5}", given["port"]):
        raise ConfigError(f"serve: port={given['port']}: a number from 1 to 65535 is wanted, or 0 for any free one")
    try:
        reward: Reward = made(compose(rest).config["reward"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        server = Server(reward.to(device).eval().requires_grad_(False), device, given["host"], int(given["port"]))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with server, suppress(KeyboardInterrupt):
        print(server.notice(), file=sys.stderr, flush=True)
        server.serve_forever()
    return 0


class Server(ThreadingHTTPServer):
    """Answers GET /identity and POST /score; one request is scored at a time."""

    daemon_threads = True

    def __init__(self, reward: Reward, device: str, host: str, port: int) -> None:
        if reward.grouped:
            raise ValueError(f"reward={reward.name} scores a prompt's images together, and a request may hold only some; serve another")
        self.reward, self.device, self.turn = reward, device, threading.Lock()
        self.identity = json.dumps({"version": __version__, **said_kin(reward), **reward.identity()}, sort_keys=True).encode()
        self.mark = hashlib.sha256(self.identity).hexdigest()
        self.token = os.environ.get(TOKEN, "")
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"serve: host={host} port={port}: {error}; choose others, or port=0 for any free one") from None

    def server_bind(self) -> None:
        """Without HTTPServer's look-up of a name for the address, which can wait for a network that is not there."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def notice(self) -> str:
        """What is served, to whom, and how it is used elsewhere."""
        host = str(self.socket.getsockname()[0])
        address = ipaddress.ip_address(host)
        url = f"http://{socket.gethostname() if address.is_unspecified else host}:{self.server_port}"
        who = "this machine alone; host=0.0.0.0 opens it to the network" if address.is_loopback else f"whoever reaches {host}"
        key = f"who has the token in {TOKEN}" if self.token else f"no token: set {TOKEN} here and there to ask for one"
        return (
            f"alignbench: serving {self.reward.name} on {self.device} to {who}; {key}\n"
            f"use it with: reward=remote reward.url={url}    (Ctrl-C stops)"
        )

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):  # a caller that went away is no news
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "alignbench", ""
    timeout = 30  # seconds for a request's next bytes to arrive
    left = 0  # bytes of the body that are not read yet

    def do_GET(self) -> None:
        if not self._allowed():
            return
        if self.path != "/identity":
            return self._refuse(404, "there is GET /identity and POST /score")
        self._reply(200, self.server.identity, "application/json")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        fits = re.fullmatch("[0-9]{1,12}", length) is not None and int(length) <= LARGEST
        self.left = int(length) if fits else 0
        if not self._allowed():
            return
        if self.path != "/score":
            return self._refuse(404, "there is GET /identity and POST /score")
        if self.headers.get("Content-Type") != NPZ:
            return self._refuse(415, f"a body of the type {NPZ} is wanted: an npz file with images and prompts")
        if not fits:
            return self._refuse(413, f"a body of at most {LARGEST} bytes is wanted, and its Content-Length; lower reward.batch")
        body, self.left = self.rfile.read(self.left), 0
        self._score(body)

    def _score(self, body: bytes) -> None:
        try:
            images, prompts = asked_for(body, LARGEST)
        except (ValueError, RecursionError) as error:
            return self._refuse(400, str(error))
        try:
            with self.server.turn, torch.no_grad():
                scores = self.server.reward(images.to(self.server.device), prompts).detach().float().cpu().numpy()
        except (Unreachable, MissingAsset) as error:  # itself a judge elsewhere: it may come back
            return self._refuse(503, str(error))
        except Exception as error:  # whatever the judge raises is its caller's to hear, and no reason to stop serving
            return self._refuse(422, f"{error} ({type(error).__name__})")
        self._reply(200, to_npz(scores=scores), NPZ)

    def _allowed(self) -> bool:
        given, wanted = self.headers.get("Authorization", ""), f"Bearer {self.server.token}"
        if self.server.token and not hmac.compare_digest(given.encode(), wanted.encode()):
            self._refuse(401, "the token is missing or is another")
            return False
        return True

    def _refuse(self, status: int, error: str) -> None:
        while self.left and (piece := self.rfile.read(min(self.left, 1 << 16))):  # an answer before its end would be lost to the sender
            self.left -= len(piece)
        self._reply(status, json.dumps({"error": " ".join(error.split())}).encode(), "application/json")

    def _reply(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(IDENTITY, self.server.mark)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """No line for each request: scoring makes thousands."""
