"""What a sweep asks of whoever starts its jobs: a process each, somewhere."""

import ctypes
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from alignbench.signals import CAUGHT

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # found here: between fork and exec little is safe


class Running(Protocol):
    """A job that was started."""

    @property
    def id(self) -> str | None:
        """What a cluster calls it, by which another sweep finds it again; None: it ends with this one."""

    def poll(self) -> int | None:
        """Its exit code (-n: killed by signal n); None while it goes on."""

    def stop(self, signum: int) -> None:
        """Ask it to save what it has and end."""


class Launcher(ABC):
    jobs: int  # at a time
    requeue: int  # times that a job which was killed or preempted is started again by the same sweep
    shows: bool = False  # whether jobs write to this terminal
    lasts: bool = False  # whether jobs outlive a sweep that is killed, and are found again
    detach: bool = False  # whether jobs go on when the sweep is stopped by a signal

    @abstractmethod
    def start(self, words: list[str], log: Path) -> Running:
        """A job of these words; log: where its output goes, if not to the terminal."""

    def fits(self, trainer: dict[str, Any]) -> None:  # noqa: B027
        """Raise ConfigError where the trainer of a job asks for more than a job is given."""

    def room(self) -> bool:
        """Whether another job beside those that run would fit."""
        return True

    def send(self) -> None:  # noqa: B027 - most have sent each at its start
        """After starts: hand over together those that were not yet."""

    def find(self, job: str, log: Path) -> Running | None:
        """The job of this id, if it waits or runs; log: as `start` had it."""
        return None

    def script(self, log: Path, number: int) -> str:
        """What a cluster would be given for so many jobs, where it is a script."""
        return ""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """When the sweep is over."""


def command(words: list[str]) -> list[str]:
    """What a process has to run for a job of these words."""
    return [sys.executable, "-m", "alignbench", *words]


def begun(words: list[str], environment: dict[str, str], log: Path | None, folder: Path | None = None) -> "subprocess.Popen[bytes]":
    """A process that hears the signals a run is stopped by and (Linux) dies with the thread that began it.

    log: what its output is added to, None: this terminal. folder: where it runs, None: here.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT)  # a signal must not fall between its start and its name
    out = None
    try:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            out = log.open("ab")
        # its own process group: a terminal's Ctrl-C reaches it once, through the sweep
        return subprocess.Popen(
            words, env=environment, cwd=folder, stdout=out, stderr=out, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_as_job
        )
    finally:
        if out is not None:
            out.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_job() -> None:
    """In the child, before it becomes the job: hear signals, and die with the sweep rather than race with its successor."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM may send every process what is for the one that watches this one
    if LIBC is not None:
        with suppress(OSError):
            LIBC.prctl(1, signal.SIGKILL)
