"""<output>/ledger.jsonl: what became of every job, a line an event, appended and synced; and the lock under which one process runs it.

Events: planned, queued (a cluster has it, under an id), started, preempted (stopped by a signal, killed or requeued), failed, done. The
lock goes with its process.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignbench.config import Stopped

ENDS = ("preempted", "failed", "done")
PATIENCE = 0.25  # seconds between two looks at a lock that another process holds


@dataclass
class Entry:
    """What the ledger says of one job."""

    hash: str
    name: str
    command: str
    state: str = "planned"  # the last event
    reason: str = ""
    id: str | None = None  # under which a cluster had it last
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def starts(self) -> int:
        return sum(each["event"] == "started" for each in self.events)

    @property
    def seconds(self) -> float | None:
        """From the last start to what ended it; None while that is not known."""
        began = [each["time"] for each in self.events if each["event"] == "started"]
        ended = [each["time"] for each in self.events if each["event"] in ENDS]
        return ended[-1] - began[-1] if began and ended and ended[-1] >= began[-1] else None


def path_of(root: Path) -> Path:
    return root / "ledger.jsonl"


def append(root: Path, event: str, job: dict[str, str], **more: Any) -> None:
    """Add a line and wait until the disk has it. job: hash, name and command. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": time.time(), "event": event, **job, "host": socket.gethostname(), "pid": os.getpid(), **more})
    file = os.open(path_of(root), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # a line that a full disk or a crash cut off
        os.write(file, b"\n" * torn + line.encode() + b"\n")
        os.fsync(file)
    finally:
        os.close(file)


def read(root: Path) -> dict[str, Entry]:
    """Every job of the ledger by its hash, in the order in which they were first named. A line that was cut off is passed over."""
    found: dict[str, Entry] = {}
    with suppress(FileNotFoundError), path_of(root).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(json.JSONDecodeError):
                event = json.loads(line)
                entry = found.setdefault(event["hash"], Entry(event["hash"], event["name"], event["command"]))
                entry.id = event.get("id", entry.id)
                if event["event"] != "queued" or not entry.events or entry.events[-1]["time"] <= event["time"]:
                    entry.state, entry.reason = event["event"], event.get("reason", "")  # else it had started before that was written
                entry.events.append(event)
    return found


def _lock(root: Path, run: str) -> int | None:
    """The lock of a job, open and taken; None where another process has it."""
    (root / ".locks").mkdir(parents=True, exist_ok=True)
    file = os.open(root / ".locks" / run, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def taken(root: Path, run: str) -> bool:
    """Whether a process runs the job of this hash now."""
    if not (root / ".locks" / run).is_file():
        return False
    file = _lock(root, run)
    if file is not None:
        os.close(file)
    return file is None


@contextmanager
def claimed(root: Path, job: dict[str, str], finished: Callable[[], bool], say: Callable[[str], None], epoch: int = 0) -> Iterator[bool]:
    """Within it this process alone runs the job, and the ledger says so. Gives False where there is nothing left to run.

    epoch: the one that it continues from. Waits for another process that runs it. What leaves the block ends the job: nothing (done),
    Stopped (preempted), or an error (failed).
    """
    file, told = _lock(root, job["hash"]), False
    while file is None:
        if not told:
            say("another process is at this run; waiting for it (`alignbench status` shows it)")
            told = True
        time.sleep(PATIENCE)
        file = _lock(root, job["hash"])
    try:
        if finished():
            yield False
            return
        append(root, "started", job, epoch=epoch)
        try:
            yield True
        except Stopped as stopped:
            with suppress(OSError):
                append(root, "preempted", job, reason=f"signal {stopped.signum}")
            raise
        except BaseException as error:
            with suppress(OSError):  # a full disk is what it may have died of
                append(root, "failed", job, reason=" ".join(f"{type(error).__name__}: {error}".split())[:300])
            raise
        with suppress(OSError):  # the results are there, and say by themselves that it is done
            append(root, "done", job)
    finally:
        os.close(file)
