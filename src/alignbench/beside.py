"""Calls that are made one after the other in a thread of their own, while this one goes on or gives up waiting."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Beside(Generic[T]):
    """A thread that does not keep the process alive: neither a hung call nor a signal has to wait for it."""

    def __init__(self) -> None:
        self._todo: queue.SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = queue.SimpleQueue()
        self._futures: list[Future[T]] = []
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._futures = [*(each for each in self._futures if not each.done()), future]  # what is done is its asker's alone
        self._todo.put((future, call))
        return future

    def _run(self) -> None:
        while (item := self._todo.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # whoever asked is told
                    future.set_exception(error)

    def end(self) -> None:
        """What has not begun is never made; the thread ends after what has."""
        for future in self._futures:
            future.cancel()
        self._todo.put(None)
