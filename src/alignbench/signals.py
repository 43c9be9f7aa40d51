"""Stopping by signal: SIGTERM, SIGINT and SIGUSR1 raise Stopped in the main thread. What is lost is at most the epoch under way."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from alignbench.config import Stopped

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def arm() -> None:
    """Take the three signals. Called again once a trainer, which takes some of them for itself, has started."""
    for number in CAUGHT:
        signal.signal(number, _stop)


@contextmanager
def armed() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in CAUGHT}
    arm()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
