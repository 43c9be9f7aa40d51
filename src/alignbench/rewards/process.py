"""A process that is asked over its pipes and is never waited for without an end."""

import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from contextlib import suppress
from functools import cache

from alignbench.beside import Beside
from alignbench.rewards.wire import TOKEN, Faltered, Garbled
from alignbench.rewards.worker_loop import HEAD, head

DROPPED = (TOKEN, "VIRTUAL_ENV")  # of our environment: not for a judge's code to see


@cache
def _starter(owner: int) -> "Beside[subprocess.Popen[bytes]]":
    """The thread of this process that starts all children: on Linux they end with the thread that started them, and it ends with us."""
    return Beside()


class Process:
    """`command`, in a process group of its own: a terminal's Ctrl-C does not reach it, and it ends with all that it started."""

    def __init__(self, command: list[str]):
        environment = {key: value for key, value in os.environ.items() if key not in DROPPED}
        pipe = subprocess.PIPE

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, env=environment, process_group=0)

        self._child = _starter(os.getpid()).ask(start).result()
        assert self._child.stdin and self._child.stdout
        self._into, self._out = self._child.stdin.fileno(), self._child.stdout.fileno()
        os.set_blocking(self._into, False)
        os.set_blocking(self._out, False)
        self._owner, self._ended, self._said = os.getpid(), False, deque[str](maxlen=20)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def ask(self, kind: bytes, data: bytes, seconds: float, most: int, key: str) -> tuple[bytes, bytes]:
        """The answer to a message, each as a kind and its bytes. Raises Faltered where the process dies or `seconds` pass (named by
        `key`), Garbled for an answer of more than `most` bytes. After either only `end` is of use.
        """
        until = time.monotonic() + seconds
        try:
            for part in (memoryview(head(kind, data)), memoryview(data)):
                while part:
                    self._wait(self._into, selectors.EVENT_WRITE, until)
                    part = part[os.write(self._into, part) :]
            start = self._read(HEAD, until)
            size = int.from_bytes(start[1:], "big")
            if start[:1] not in (b"J", b"Z") or size > most:
                raise Garbled("bytes that are no message of its loop, or one over the size allowed")
            return start[:1], self._read(size, until)
        except (BrokenPipeError, EOFError):
            raise Faltered(f"its process died ({self._last()})") from None
        except TimeoutError:
            raise Faltered(f"no answer within {seconds:g} s ({key})") from None

    def _read(self, size: int, until: float) -> bytes:
        got = bytearray()
        while len(got) < size:
            self._wait(self._out, selectors.EVENT_READ, until)
            piece = os.read(self._out, min(size - len(got), 1 << 20))
            if not piece:
                raise EOFError
            got += piece
        return bytes(got)

    def _wait(self, pipe: int, event: int, until: float) -> None:
        with selectors.DefaultSelector() as waiting:
            waiting.register(pipe, event)
            if not waiting.select(max(0.0, until - time.monotonic())):
                raise TimeoutError

    def _listen(self) -> None:
        """Keeps the last of what the process says on stderr, so that its pipe never fills."""
        assert self._child.stderr
        with self._child.stderr as stream:
            while piece := stream.read(4096):
                self._said += [line.strip() for line in piece.decode(errors="replace").splitlines() if line.strip()]

    def _last(self) -> str:
        """How the process ended, and its last line."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(1.0)  # its pipes close a moment before it is gone
        self.end()
        self._listener.join(1.0)
        code = self._child.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{how}: {self._said[-1][:200]}" if self._said else how

    def end(self) -> None:
        """Kill the process and what it started; again, or in a fork of this process, it does nothing."""
        if self._ended or self._owner != os.getpid():
            return
        self._ended = True
        with suppress(ProcessLookupError, PermissionError):  # it has ended, and left nothing behind
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe:
                pipe.close()
