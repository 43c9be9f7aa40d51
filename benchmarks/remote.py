"""Sides in processes of their own, forked from one that has imported everything and computed nothing: they start at once, and alike."""

import multiprocessing
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

    def __init__(self, make: Any, threads: int = 1):
        self.pipe, other = FORK.Pipe()
        self.process = FORK.Process(target=serve, args=(other, make, threads), daemon=True)
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
def remote(*makes: Any, threads: int = 1) -> Iterator[list[Remote]]:
    found = [Remote(make, threads) for make in makes]
    try:
        yield found
    finally:
        for each in found:
            each.end()


def usual(case: Case) -> Usual:
    return Usual(case, torch.load(case.folder / "given.pt"))


def say(text: str) -> None:
    print(text, flush=True)
