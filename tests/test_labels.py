"""The labels of a person: the journal on its own, and the server over real sockets."""

import contextlib
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignbench import labels
from alignbench.labels import Journal, Stale, preferences, read_items
from alignbench.report.label_page import Server, serve

HOSTILE = "</script><script>alert(1)</script>"


def fill(folder: Path, sizes: list[int], **more: Any) -> Path:
    """A labels folder with as many groups as sizes, each of so many images."""
    (folder / "images").mkdir(parents=True)
    groups = []
    for group, size in enumerate(sizes):
        names = [f"{group}-{k}.png" for k in range(size)]
        for k, name in enumerate(names):
            Image.new("RGB", (8, 8), (20 * group % 255, 90 * k % 255, 120)).save(folder / "images" / name)
        groups.append({"prompt": HOSTILE if group == 1 else f"prompt {group}", "images": names})
    (folder / "items.json").write_text(json.dumps({"format": 1, "run": "a-run", "groups": groups} | more))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "labels", [2, 3, 2, 2])


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    journal = Journal(folder, read_items(folder))
    yield journal
    journal.close()


class Client:
    """Another process's view of a server: bytes over a socket."""

    def __init__(self, port: int):
        self.port = port

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.headers)
        finally:
            connection.close()

    def state(self) -> dict[str, Any]:
        return json.loads(self.send("GET", "/state")[1])

    def post(self, path: str, body: Any = None, **headers: str) -> int:
        return self.send("POST", path, body, **headers)[0]

    def choose(self, group: Any, best: Any) -> int:
        return self.post("/choose", {"group": group, "best": best})


@pytest.fixture
def client(folder: Path) -> Iterator[Client]:
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Client(server.server_port)
        server.shutdown()
        thread.join()


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "preferences.jsonl").read_text().splitlines()]


# --- the journal


def test_nothing_is_labelled_at_first(folder: Path) -> None:
    assert preferences(folder) == []


def test_choices_ties_and_undo_are_lines_and_replaying_them_gives_the_labels(folder: Path, journal: Journal) -> None:
    journal.choose(0, 1)
    journal.choose(1, 2)
    journal.choose(2, None)
    journal.undo()
    journal.undo()
    journal.choose(1, None)
    written = [{"group": 0, "best": 1}, {"group": 1, "best": 2}, {"group": 2, "best": None}, {"undo": True}, {"undo": True}]
    assert lines(folder) == [*written, {"group": 1, "best": None}]
    assert preferences(folder) == [(0, 1), (1, None)]
    journal.close()
    again = Journal(folder, read_items(folder))
    assert again.in_force == {0: 1, 1: None}
    again.close()


def test_a_line_is_one_synced_write(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    write, sync = os.write, os.fsync
    monkeypatch.setattr(labels.os, "write", lambda file, data: calls.append(data) or write(file, data))
    monkeypatch.setattr(labels.os, "fsync", lambda file: calls.append("fsync") or sync(file))
    journal.choose(3, 0)
    assert calls == [b'{"group": 3, "best": 0}\n', "fsync"]


def test_labels_come_by_group_whatever_the_order_of_choosing(folder: Path, journal: Journal) -> None:
    for group in (3, 0, 2):
        journal.choose(group, group % 2)
    assert list(journal.in_force) == [3, 0, 2]
    assert preferences(folder) == [(0, 0), (2, 0), (3, 1)]


@pytest.mark.parametrize("group, best", [(4, 0), (-1, 0), (True, 0), ("0", 0), (0.0, 0), (None, 0), (0, 2), (0, -1), (0, False), (0, "1")])
def test_a_wrong_choice_is_refused_and_not_written(folder: Path, journal: Journal, group: Any, best: Any) -> None:
    with pytest.raises(ValueError, match=r"a number from 0 to"):
        journal.choose(group, best)
    assert lines(folder) == []


def test_a_group_is_labelled_once_and_the_last_choice_is_the_one_undone(folder: Path, journal: Journal) -> None:
    with pytest.raises(Stale, match="nothing to undo"):
        journal.undo()
    journal.choose(0, 0)
    journal.choose(1, 0)
    with pytest.raises(Stale, match="already labelled"):
        journal.choose(0, 1)
    with pytest.raises(Stale, match="of group 1, not of 0"):
        journal.undo(0)
    journal.undo(1)
    assert preferences(folder) == [(0, 0)]


@pytest.mark.parametrize("torn", [b"{", b'{"group": 1, "best": 0}', b'{"undo": true}', b"\xff\xfe"])
def test_a_torn_last_line_does_not_count_and_is_repaired_by_the_next_write(folder: Path, torn: bytes) -> None:
    path = folder / "preferences.jsonl"
    path.write_bytes(b'{"group": 0, "best": 1}\n' + torn)
    assert preferences(folder) == [(0, 1)]
    journal = Journal(folder, read_items(folder))
    assert path.read_bytes().endswith(torn)
    journal.choose(1, 2)
    journal.close()
    assert path.read_bytes() == b'{"group": 0, "best": 1}\n{"group": 1, "best": 2}\n'


def test_a_full_disk_leaves_the_labels_as_they_were(folder: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.choose(0, 1)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(labels.os, "write", lambda file, data: write(file, data[:5]))
        with pytest.raises(OSError, match="no room"):
            journal.choose(1, 0)
    assert journal.in_force == {0: 1}
    journal.choose(1, 2)
    assert lines(folder) == [{"group": 0, "best": 1}, {"group": 1, "best": 2}]


def test_one_process_labels_at_a_time(folder: Path, journal: Journal) -> None:
    with pytest.raises(ValueError, match=r"preferences\.jsonl is being labelled by another process"):
        Journal(folder, read_items(folder))
    journal.close()
    Journal(folder, read_items(folder)).close()


def test_many_threads_label_each_group_once(tmp_path: Path) -> None:
    folder = fill(tmp_path / "labels", [2] * 20)
    journal = Journal(folder, read_items(folder))

    def choose(n: int) -> bool:
        try:
            journal.choose(n % 20, n // 20 % 2)
        except Stale:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(choose, range(80)))
    journal.close()
    assert sum(done) == 20
    assert preferences(folder) == [(n, journal.in_force[n]) for n in range(20)]
    assert len(lines(folder)) == 20


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"group": 4, "best": 0}', r"line 1: labels another set .* move preferences.jsonl away"),
        ('{"group": 0, "best": 2}', r"line 1: labels another set"),
        ('{"group": 0, "best": 1}\n{"group": 0, "best": 1}', r"line 2: group 0 is labelled twice"),
        ('{"undo": true}', r"line 1: damaged"),
        ('{"group": 0, "best": 1}\n\n', r"line 2: damaged: take that line out"),
        ('{"group": true, "best": 0}', r"line 1: damaged"),
        ('{"group": 0, "best": 1.0}', r"line 1: damaged"),
        ('{"group": 0}', r"line 1: damaged"),
        ("[" * 5000, r"line 1: damaged"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), r"line 1: damaged"),
    ],
)
def test_a_damaged_or_foreign_journal_is_refused_in_one_line(folder: Path, text: str, said: str) -> None:
    (folder / "preferences.jsonl").write_bytes(text.encode("latin-1") + b"\n")
    with pytest.raises(ValueError, match=r"preferences\.jsonl, " + said) as error:
        preferences(folder)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=said):
        Server(folder)


# --- items.json


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        ("{}", "no 'format'"),
        ('{"format": 2}', "format 2, this version reads 1"),
        ('{"format": 1, "run": "r", "groups": []}', "at least one group"),
        ('{"format": 1, "run": "r", "groups": [{"prompt": "p", "images": ["0-0.png"]}]}', "two or more different images"),
        ('{"format": 1, "run": "r", "groups": [{"prompt": "p", "images": ["0-0.png", "0-0.png"]}]}', "two or more different images"),
        ('{"format": 1, "run": "r", "groups": [{"prompt": 7, "images": ["0-0.png", "0-1.png"]}]}', "not a string"),
        ('{"format": 1, "run": "r", "groups": [{"prompt": "p", "images": ["0-0.png", "../x.png"]}]}', "not the name of an image"),
        ('{"format": 1, "run": "r", "groups": [{"prompt": "p", "images": ["0-0.png", "x.svg"]}]}', "not the name of an image"),
    ],
)
def test_damaged_items_are_refused_in_one_line_with_the_remedy(folder: Path, text: str, said: str) -> None:
    (folder / "items.json").write_text(text)
    with pytest.raises(ValueError, match=rf"items\.json: damaged .*{said}.*move .* away") as error:
        read_items(folder)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "images" / "1-2.png").unlink()
    with pytest.raises(ValueError, match=r"1-2\.png is missing \(1 of 9 are\): bring it back"):
        read_items(folder)
    (folder / "items.json").unlink()
    with pytest.raises(ValueError, match=r"items\.json is missing: .* label outputs/<run>"):
        preferences(folder)


# --- the server


def test_groups_come_in_order_until_all_are_labelled(tmp_path: Path, folder: Path, client: Client) -> None:
    state = client.state()
    assert (state["run"], state["groups"], state["labelled"], state["group"], state["last"]) == ("a-run", 4, 0, 0, None)
    assert (state["images"], state["next"]) == (["/images/0-0.png", "/images/0-1.png"], [f"/images/1-{k}.png" for k in range(3)])
    status, answer, _ = client.send("POST", "/choose", {"group": 0, "best": 1})
    assert (status, json.loads(answer)) == (200, client.state())
    assert client.state()["last"] == {"group": 0, "best": 1, "prompt": "prompt 0"}
    assert client.choose(1, None) == client.choose(2, 0) == 200
    assert client.post("/finish") == 409
    assert client.post("/undo") == 200
    assert (client.state()["group"], client.state()["labelled"]) == (2, 2)
    assert client.choose(2, 1) == client.choose(3, 0) == 200
    state = client.state()
    assert (state["group"], state["labelled"], state["images"], state["next"]) == (None, 4, [], [])
    assert preferences(folder) == [(0, 1), (1, None), (2, 1), (3, 0)]


def test_pictures_are_those_of_the_folder(folder: Path, client: Client) -> None:
    status, data, headers = client.send("GET", client.state()["images"][1])
    assert (status, headers["Content-Type"], data) == (200, "image/png", (folder / "images" / "0-1.png").read_bytes())


def test_two_tabs_do_not_label_twice(folder: Path, client: Client) -> None:
    with ThreadPoolExecutor(8) as tabs:
        answers = list(tabs.map(lambda n: client.choose(0, n % 2), range(8)))
    assert sorted(answers) == [200] + [409] * 7
    assert client.post("/undo", {"group": 2}) == 409
    assert client.post("/undo", {"group": 0}) == 200
    assert client.post("/undo", {"group": 0}) == 409
    assert [len(line) for line in lines(folder)] == [2, 1]


def test_a_page_of_another_set_does_not_label(folder: Path, client: Client) -> None:
    assert client.post("/choose", {"group": 0, "best": 0, "set": "0123456789abcdef"}) == 409
    assert client.post("/choose", {"group": 0, "best": 0, "set": client.state()["set"]}) == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/images/../items.json", "/images/%2e%2e/items.json", "/images/..%2fitems.json", "/images//etc/passwd", "/images/%00"),
        *("/images/", "/images/other.png", "/../items.json", "/preferences.jsonl", "/State", "/favicon.ico"),
    ],
)
def test_only_the_listed_images_are_served(folder: Path, client: Client, path: str) -> None:
    (folder / "images" / "other.png").write_bytes(b"secret")
    assert client.send("GET", path)[:2] == (404, b"there is no such page\n")


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1", "localhost:1", "127.0.0.1.example.org:{port}", "example.org:{port}", ""])
def test_another_host_is_refused(folder: Path, client: Client, host: str) -> None:
    name = host.format(port=client.port)
    for method, path in (("GET", "/"), ("GET", "/state"), ("GET", "/images/0-0.png"), ("POST", "/choose"), ("POST", "/undo")):
        status, said, _ = client.send(method, path, {"group": 0, "best": 0}, Host=name)
        assert (status, said.count(b"\n")) == (403, 1)
    assert client.send("GET", "/state", Host=f"localhost:{client.port}")[0] == 200
    assert lines(folder) == []


@pytest.mark.parametrize("origin", ["http://example.org", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1", "http://127.0.0.1"])
def test_another_origin_may_not_label(folder: Path, client: Client, origin: str) -> None:
    assert client.post("/choose", {"group": 0, "best": 0}, Origin=origin.format(port=client.port)) == 403
    assert client.post("/undo", Origin=origin.format(port=client.port)) == 403
    assert lines(folder) == []
    assert client.post("/choose", {"group": 0, "best": 0}, Origin=f"http://localhost:{client.port}") == 200


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"7", b"\xff", b"[" * 900, b" " * 1000, b'{"group": 0}', b'{"group": 9, "best": 0}'),
        *(b'{"group": 0, "best": 2}', b'{"group": "0", "best": 0}', b'{"group": 0, "best": true}'),
        *(b'{"group": [], "best": 0}', b'{"group": NaN, "best": 0}'),
    ],
)
def test_a_wrong_choice_is_answered_in_one_line(folder: Path, client: Client, body: bytes) -> None:
    status, said, _ = client.send("POST", "/choose", body)
    assert (status, said.count(b"\n"), said[-1:]) == (400, 1, b"\n")
    assert lines(folder) == []
    assert client.post("/elsewhere", b"{}") == 404


def test_a_choice_that_could_not_be_written_is_not_confirmed(client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(labels.os, "fsync", full)
        assert client.send("POST", "/choose", {"group": 0, "best": 0})[:2] == (
            500,
            b"preferences.jsonl was not written: No space left on device\n",
        )
    assert (client.state()["labelled"], preferences(folder)) == (0, [])
    assert client.choose(0, 1) == 200
    assert preferences(folder) == [(0, 1)]


def test_a_prompt_is_data_and_the_page_runs_only_its_own_script(client: Client) -> None:
    client.choose(0, 0)
    status, state, headers = client.send("GET", "/state")
    assert (headers["Content-Type"], headers["X-Content-Type-Options"]) == ("application/json", "nosniff")
    assert json.loads(state)["prompt"] == HOSTILE
    status, page, headers = client.send("GET", "/")
    text = page.decode()
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "alert" not in text.replace('role="alert"', "")
    assert re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\son\w+=", text) is None
    assert re.search(r"(src|href)=.?(https?:)?//|url\(|@import", text) is None
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.partition("style-src")[0]


def test_only_this_machine_is_listened_to(folder: Path) -> None:
    with Server(folder) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"


def test_a_taken_port_is_said_in_one_line(tmp_path: Path, folder: Path, client: Client) -> None:
    with pytest.raises(ValueError, match=rf"port {client.port}: .*; choose another"):
        Server(fill(tmp_path / "others", [2]), client.port)
    with pytest.raises(ValueError, match="port 65536: a number from 1 to 65535"):
        Server(folder, 65536)


def test_finish_ends_the_command(folder: Path) -> None:
    journal = Journal(folder, read_items(folder))
    for group in range(4):
        journal.choose(group, None)
    journal.close()
    codes: list[int] = []
    command = threading.Thread(target=lambda: codes.append(serve(folder, 0, False)), daemon=True)
    said, until = io.StringIO(), time.monotonic() + 60
    with contextlib.redirect_stdout(said):  # only read here: what empties it between two lines loses one
        command.start()
        while "Ctrl-C stops; nothing is lost, the same command continues." not in said.getvalue():
            assert command.is_alive() and time.monotonic() < until
            time.sleep(0.01)
        client = Client(int(re.findall(r"http://127\.0\.0\.1:(\d+)/", said.getvalue())[0]))
        assert client.post("/finish") == 200
        command.join(timeout=20)
    assert codes == [0]
    assert "4 of 4 labelled" in said.getvalue()


def test_neither_torch_nor_anything_heavy_is_imported() -> None:
    modules = ["torch", "lightning", "hydra", "numpy", "pyarrow", "matplotlib", "PIL"]
    code = f"import sys, json, alignbench.report.label_page; print(json.dumps([m for m in {modules} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


# --- processes


def started(folder: Path) -> tuple[subprocess.Popen[str], Client]:
    code = "import sys; from alignbench.report.label_page import serve; sys.exit(serve(sys.argv[1], 0, False))"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Client(int(re.findall(r":(\d+)/", process.stdout.readline())[0]))


@pytest.mark.slow
def test_a_kill_loses_no_choice_that_was_confirmed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "labels", [2] * 400)
    confirmed: dict[int, int] = {}
    sent: set[int] = set()
    for stop in (40, 55, 90):  # the same folder again each time: the journal goes on where it was
        process, client = started(folder)
        below = iter(range(len(preferences(folder)), 400))
        lock = threading.Lock()

        def label(client: Client = client, below: Iterator[int] = below, lock: threading.Lock = lock) -> None:
            while True:
                with lock:
                    group = next(below)
                    sent.add(group)
                try:
                    answer = client.choose(group, group % 2)
                except (OSError, http.client.HTTPException):
                    return
                if answer == 200:
                    confirmed[group] = group % 2
                else:
                    assert answer == 409  # a choice that was written but not confirmed before the last kill

        before = len(confirmed)
        tabs = [threading.Thread(target=label) for _ in range(4)]
        for tab in tabs:
            tab.start()
        while len(confirmed) < before + stop and any(tab.is_alive() for tab in tabs):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        for tab in tabs:
            tab.join()
        process.communicate()
        found = dict(preferences(folder))
        assert confirmed.items() <= found.items()
        assert found.keys() <= sent
    assert len(confirmed) >= 185


@pytest.mark.slow
def test_ctrl_c_stops_and_the_same_command_continues(folder: Path) -> None:
    for group in range(2):
        process, client = started(folder)
        assert client.state()["group"] == group
        assert client.choose(group, 1) == 200
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert f"{group + 1} of 4 labelled" in said
    assert preferences(folder) == [(0, 1), (1, 1)]
