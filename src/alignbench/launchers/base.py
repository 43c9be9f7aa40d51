"""What a sweep asks of whoever starts its jobs: a process each, somewhere."""

import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol


class Running(Protocol):
    """A job that was started."""

    def poll(self) -> int | None:
        """Its exit code (-n: killed by signal n); None while it goes on."""

    def stop(self, signum: int) -> None:
        """Ask it to save what it has and end."""


class Launcher(ABC):
    jobs: int  # at a time
    requeue: int  # times that a job which was killed or preempted is started again by the same sweep
    shows: bool = False  # whether jobs write to this terminal

    @abstractmethod
    def start(self, words: list[str], log: Path) -> Running:
        """A job of these words; log: where its output goes, if not to the terminal."""

    def room(self) -> bool:
        """Whether another job beside those that run would fit."""
        return True

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """When the sweep is over."""


def command(words: list[str]) -> list[str]:
    """What a process has to run for a job of these words."""
    return [sys.executable, "-m", "alignbench", *words]
