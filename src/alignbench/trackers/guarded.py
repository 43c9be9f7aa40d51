"""Between training and a tracker: a thread that calls it, so that it can fail, hang or lag and the run goes on as if it were not there."""

import threading
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from queue import Full, Queue
from types import TracebackType
from typing import Any

from alignbench.config import Stopped
from alignbench.trackers.base import State, Tracker
from alignbench.trackers.none import Nowhere

BEHIND = 1000  # calls that may wait; ours: more than the epochs of a run, so that only a tracker that hangs reaches it


class Guarded:
    """A tracker whose every failure is one line, said once, after which the run goes on without it.

    What it was told is counted in <tracker's folder>/<run>.rows: a resumed run repeats no row, and makes up for those that were lost.
    """

    def __init__(self, tracker: Tracker, say: Callable[[str], None]):
        """say: prints a line for the user."""
        self.tracker, self.say = tracker, say
        self.calls: Queue[Callable[[], None] | None] = Queue(BEHIND)
        self.thread: threading.Thread | None = None  # none: nothing is tracked
        self.told = 0  # rows of the history that have been passed on
        self.lost = False
        self.losing = threading.Lock()

    def begin(self, run: dict[str, Any], config: dict[str, Any]) -> None:
        """Of several processes that share a run one calls this; in the others all that follows does nothing."""
        if isinstance(self.tracker, Nowhere):
            return
        self.count = self.tracker.folder / f"{run['hash'][:10]}.rows"
        self._put(partial(self.tracker.begin, *deepcopy((run, config))))
        self.thread = threading.Thread(target=self._work, name="tracker", daemon=True)  # daemon: a hanging one does not keep the process
        self.thread.start()

    def log(self, rows: list[dict[str, Any]]) -> None:
        """rows: the whole history, as it grows; what a tracker does to its copy is its own."""
        if self.thread is not None:
            self._put(partial(self._log, self.told, deepcopy(rows[self.told :])))
            self.told = len(rows)

    def picture(self, path: Path) -> None:
        if self.thread is not None:
            self._put(partial(self.tracker.picture, path))

    def __enter__(self) -> "Guarded":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.thread is None or self.lost:
            return
        state: State = "done" if kind is None else "stopped" if issubclass(kind, Stopped) else "failed"
        self._put(partial(self.tracker.end, state))
        self._put(None)
        self.thread.join(self.tracker.patience)
        if self.thread.is_alive():
            self._lose(f"has not finished {self.tracker.patience:g} s after the run")

    def _put(self, call: Callable[[], None] | None) -> None:
        if self.lost:
            return
        try:
            self.calls.put_nowait(call)
        except Full:
            self._lose(f"is {BEHIND} calls behind")

    def _lose(self, why: str) -> None:
        with self.losing:
            first, self.lost = not self.lost, True
        if first:
            self.say(f"alignbench: tracker {type(self.tracker).__name__} {why}; the run goes on without it")

    # --- in the thread

    def _work(self) -> None:
        while not self.lost and (call := self.calls.get()) is not None:
            try:
                call()
            except (Exception, SystemExit) as error:  # a library's sys.exit would end this thread without a word
                self._lose(f"failed ({type(error).__name__}: {' '.join(str(error).split())})")

    def _log(self, first: int, rows: list[dict[str, Any]]) -> None:
        there = int(self.count.read_text()) if self.count.exists() else 0
        for number, row in enumerate(rows, first + 1):
            if number > there:
                self.tracker.log(row)
                self.count.parent.mkdir(parents=True, exist_ok=True)
                self.count.write_text(str(number))
