"""Sides in processes of their own, forked from one that has imported everything and computed nothing: they start at once, and alike."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import lightning.pytorch  # noqa: F401  # all that either side imports is imported before any of them begins, so that neither pays for it
import numpy as np
import peft  # noqa: F401
import torch
import watch
from sides import Case, Usual, given, taken

FORK = multiprocessing.get_context("fork")


def serve(pipe: Connection, make: Any, threads: int) -> None:
    """In a process of its own: make a side and answer what the parent asks for."""
    torch.set_num_threads(threads)
    before = watch.memory("RssAnon")
    side = make()
    while (asked := pipe.recv()) != "end":
        match asked:
            case "epoch":
                pipe.send(side.epoch())
            case "two epochs":
                pipe.send(side.epoch(2))
            case "exact":
                pipe.send(side.exact())
            case "taken":
                loss, gradients = taken(side)
                np.savez(side.case.folder / f"{type(side).__name__}.npz", loss=loss, **gradients)
                pipe.send(None)
            case "inside":
                pipe.send(watch.inside(side))
            case "operations":
                pipe.send(watch.operations(side))
            case "given":
                torch.save(given(side), side.case.folder / "given.pt")
                pipe.send(None)
            case "memory":
                # of the process alone: pages of files (libraries, mapped weights) come as they are touched, and can go
                pipe.send(watch.memory("VmHWM") - watch.memory("RssFile") - before)


class Remote:
    """A side in a process of its own."""

    def __init__(self, make: Any, threads: int):
        self.pipe, other = FORK.Pipe()
        self.process = FORK.Process(target=serve, args=(other, make, threads), daemon=True)
        self.process.start()
        other.close()

    def begin(self, what: str) -> None:
        self.pipe.send(what)

    def ask(self, what: str) -> Any:
        self.begin(what)
        return self.pipe.recv()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid or 0, number)

    def end(self) -> None:
        self.signal(signal.SIGCONT)  # where another side's failure has left this one stopped
        self.pipe.send("end")
        self.process.join()


@contextmanager
def remote(*makes: Any, threads: int = 1) -> Iterator[list[Remote]]:
    found = [Remote(make, threads) for make in makes]
    try:
        yield found
    finally:
        for each in found:
            each.end()


def each_of(sides: list[Remote], what: str) -> list[Any]:
    """What each answers, all begun at once."""
    for each in sides:
        each.begin(what)
    return [each.pipe.recv() for each in sides]


def together(sides: list[Remote]) -> list[dict[str, float]]:
    """An epoch of each, all begun at once on one core. There they take turns of a few milliseconds, so that what slows the machine down
    slows all of them: of epochs one after the other, on a machine with others on it, a ratio is up to 18 % off, of these 0.5 to 3 %.
    """
    if not hasattr(os, "sched_setaffinity"):
        return [each.ask("epoch") for each in sides]
    cores = os.sched_getaffinity(0)
    for each in sides:
        os.sched_setaffinity(each.process.pid or 0, {max(cores)})
    try:
        return each_of(sides, "epoch")
    finally:
        for each in sides:
            os.sched_setaffinity(each.process.pid or 0, cores)


def sliced(groups: list[list[Remote]], seconds: float = 0.05) -> list[float]:
    """Seconds of the wall of an epoch of each group, which has the whole machine to itself: the others are stopped meanwhile. They take
    turns of so many seconds, for the same reason as above.
    """
    spent, running = [0.0] * len(groups), list(range(len(groups)))
    for group in groups:
        for each in group:
            each.begin("epoch")
            each.signal(signal.SIGSTOP)
    while running:
        for index in list(running):
            group, began = groups[index], time.perf_counter()
            for each in group:
                each.signal(signal.SIGCONT)
            over = all(each.pipe.poll(max(0.0, began + seconds - time.perf_counter())) for each in group)
            for each in group:
                each.signal(signal.SIGCONT if over else signal.SIGSTOP)
            spent[index] += time.perf_counter() - began
            if over:
                running.remove(index)
                for each in group:
                    each.pipe.recv()
    return spent


def usual(case: Case) -> Usual:
    return Usual(case, torch.load(case.folder / "given.pt"))


def say(text: str) -> None:
    print(text, flush=True)
