"""Sides in processes of their own, forked from one that has imported everything and computed nothing: they start at once, and alike."""

import multiprocessing
import os
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


def serve(pipe: Connection, make: Any, threads: int, core: int | None) -> None:
    """In a process of its own: make a side and answer what the parent asks for."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})
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

    def __init__(self, make: Any, threads: int, core: int | None):
        self.pipe, other = FORK.Pipe()
        self.process = FORK.Process(target=serve, args=(other, make, threads, core), daemon=True)
        self.process.start()
        other.close()

    def begin(self, what: str) -> None:
        self.pipe.send(what)

    def ask(self, what: str) -> Any:
        self.begin(what)
        return self.pipe.recv()

    def end(self) -> None:
        self.pipe.send("end")
        self.process.join()


@contextmanager
def remote(*makes: Any, threads: int = 1, core: int | None = None) -> Iterator[list[Remote]]:
    """core: the one that all of them share, counted as Python counts a list; None: wherever they are put."""
    found = [Remote(make, threads, core) for make in makes]
    try:
        yield found
    finally:
        for each in found:
            each.end()


def together(sides: list[Remote]) -> list[dict[str, float]]:
    """An epoch of each, all begun at once. On one core they take turns of a few milliseconds, so that what slows the machine down slows all
    of them: of epochs one after the other the ratio is 18 % off here and there on a machine with others on it, of these 0.5 %.
    """
    for each in sides:
        each.begin("epoch")
    return [each.pipe.recv() for each in sides]


def usual(case: Case) -> Usual:
    return Usual(case, torch.load(case.folder / "given.pt"))


def say(text: str) -> None:
    print(text, flush=True)
