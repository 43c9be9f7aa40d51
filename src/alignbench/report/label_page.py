"""The local page on which a person labels images, and the server behind it."""

import base64
import hashlib
import json
import os
import re
import sys
import threading
import webbrowser
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from alignbench.labels import Journal, Stale, read_items

BODY = re.compile("[0-9]{1,3}")  # a Content-Length; a choice has about 60 bytes


def serve(folder: Path, port: int = 0, open_browser: bool = True) -> int:
    """Show the page to this machine until Ctrl-C, or until all is labelled and its "Finish" is pressed. ValueError: one line."""
    with Server(folder, port) as server:
        with suppress(KeyboardInterrupt):
            print(f"Label {server.items.run} at {server.address}\nCtrl-C stops; nothing is lost, the same command continues.", flush=True)
            if open_browser and (sys.platform == "darwin" or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"}):
                threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
            server.serve_forever()
        print(f"\n{len(server.journal.in_force)} of {len(server.items.groups)} labelled, in {server.journal.path}", flush=True)
    return 0


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1 alone, and answers only pages that came from there."""

    def __init__(self, folder: Path | str, port: int = 0) -> None:
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port}: a number from 1 to 65535 is wanted, or 0 for any free one")
        self.folder, self.items = Path(folder), read_items(folder)
        self.page = Path(__file__).with_name("label.html").read_bytes()
        script = hashlib.sha256(re.findall(rb"<script>(.*?)</script>", self.page, re.DOTALL)[0]).digest()
        self.policy = (
            f"default-src 'none'; script-src 'sha256-{base64.b64encode(script).decode()}'; style-src 'unsafe-inline'; "
            "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self.names = frozenset(name for group in self.items.groups for name in group.images)
        self.journal = Journal(folder, self.items)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            self.journal.close()
            raise ValueError(f"port {port}: {error.strerror}; choose another, or 0 for any free one") from None
        self.hosts = frozenset(f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost"))
        self.address = f"http://127.0.0.1:{self.server_port}/"

    def server_close(self) -> None:
        super().server_close()
        self.journal.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):  # a tab that was closed is no news
            super().handle_error(request, client_address)

    def state(self) -> dict[str, Any]:
        items, in_force = self.items, self.journal.in_force
        left = [n for n in range(len(items.groups)) if n not in in_force]
        state: dict[str, Any] = {"run": items.run, "set": items.mark, "groups": len(items.groups), "labelled": len(in_force)}
        state |= {"group": None, "prompt": "", "images": [], "next": [], "last": None, "next_step": items.next_step}
        if left:
            state |= {"group": left[0], "prompt": items.groups[left[0]].prompt, "images": self._urls(left[0])}
            state["next"] = self._urls(left[1]) if len(left) > 1 else []
        if in_force:
            group, best = next(reversed(in_force.items()))
            state["last"] = {"group": group, "best": best, "prompt": items.groups[group].prompt}
        return state

    def _urls(self, group: int) -> list[str]:
        return [f"/images/{quote(name, safe='')}" for name in self.items.groups[group].images]


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "alignbench", ""
    timeout = 30  # seconds for a request to arrive

    def do_GET(self) -> None:
        if not self._from_here():
            return
        path = self.path.partition("?")[0]
        if path == "/":
            return self._reply(200, self.server.page, "text/html; charset=utf-8")
        if path == "/state":
            return self._state()
        name = unquote(path.removeprefix("/images/"))
        if not path.startswith("/images/") or name not in self.server.names:
            return self._refuse(404, "there is no such page")
        try:
            self._reply(200, (self.server.folder / "images" / name).read_bytes(), "image/png")
        except OSError as error:
            self._refuse(404, f"images/{name}: {error.strerror}")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not BODY.fullmatch(length):
            return self._refuse(400, "a body under 1000 bytes is wanted, and its Content-Length")
        body = self.rfile.read(int(length))
        if not self._from_here():
            return
        try:
            self._act(body)
        except Stale as error:
            self._refuse(409, str(error))
        except ValueError as error:
            self._refuse(400, str(error))
        except OSError as error:
            self._refuse(500, f"preferences.jsonl was not written: {error.strerror or error}")

    def _act(self, body: bytes) -> None:
        journal = self.server.journal
        try:
            words = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            raise ValueError("the body is not JSON") from None
        if not isinstance(words, dict):
            raise ValueError("the body is not a JSON object")
        if words.get("set", self.server.items.mark) != self.server.items.mark:
            raise Stale("the page shows another set of images")
        match self.path:
            case "/choose" if words.keys() >= {"group", "best"}:
                journal.choose(words["group"], words["best"])
            case "/choose":
                raise ValueError('a choice is {"group": 3, "best": 1}, or null for a tie')
            case "/undo":
                journal.undo(words.get("group"))
            case "/finish":
                if left := len(self.server.items.groups) - len(journal.in_force):
                    raise Stale(f"{left} are not labelled yet")
            case _:
                return self._refuse(404, "there is no such page")
        self._state()
        if self.path == "/finish":  # after its answer: the process ends with it
            threading.Thread(target=self.server.shutdown, daemon=True).start()

    def _from_here(self) -> bool:
        """False, and refused, for what a page from elsewhere sent, under its own name (Origin) or one made to point here (Host)."""
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in self.server.hosts:
            self._refuse(403, f"only {self.server.address} is answered: through a tunnel, keep the port's number")
        elif origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            self._refuse(403, "a page from elsewhere may not label")
        else:
            return True
        return False

    def _state(self) -> None:
        self._reply(200, json.dumps(self.server.state()).encode(), "application/json")

    def _refuse(self, status: int, line: str) -> None:
        self._reply(status, f"{line}\n".encode(errors="replace"), "text/plain; charset=utf-8")

    def _reply(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass
