"""Two processes of alignbench against one, and against the plain loop's two threads."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from remote import remote, say, sliced, usual
from sides import Case, Ours, Side
from torch import distributed
from verdicts import WANTED, paired, ratio


class Half:
    """One of two processes that share alignbench's epoch (gloo)."""

    def __init__(self, case: Case, rank: int, store: Path):
        os.environ["LOCAL_RANK"] = str(rank)  # the processes are here already: Lightning starts none
        distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
        self.ours = Ours(case, "ddp")

    def epoch(self) -> dict[str, float]:
        distributed.barrier()
        return self.ours.epoch()


def processes(folder: Path, extent: str) -> list[dict[str, Any]]:
    """DDPO with LoRA on two processes of one thread: against one, and against the plain loop on two threads, by the wall."""
    wanted = WANTED["two_processes"]
    case = Case(folder, "ddpo", "lora", wanted["images"][extent], wanted["steps"], wanted["micro_batch"], wanted["rows"])
    with remote(lambda: Ours(case)) as (first,):
        first.ask("given")
    say("\ntwo processes, seconds of the wall an image")
    plain = {
        f"micro-batch {micro_batch}": (lambda micro_batch=micro_batch: usual(replace(case, micro_batch=micro_batch)), 2)
        for micro_batch in wanted["plain_micro_batch"][extent]
    }
    alone = {"two processes against one": (lambda: Ours(case), 1)} if extent == "full" else {}
    found = by_turns(case, alone | {f"two processes, {name}": each for name, each in plain.items()}, extent)
    if extent == "full":
        name, first_of_them = next(iter(plain.items()))
        found += by_turns(replace(case, words=tuple(wanted["compiled"])), {f"two processes compiled, {name}": first_of_them}, extent)
    return found


def by_turns(case: Case, against: dict[str, tuple[Callable[[], Side], int]], extent: str) -> list[dict[str, Any]]:
    """Two processes at `case` against each of the others, which has so many threads."""
    store, found = Path(tempfile.mkdtemp(dir=case.folder)) / "store", []
    with remote(*[lambda rank=rank: Half(replace(case, processes=2), rank, store) for rank in range(2)]) as both:
        began = time.perf_counter()
        sliced([both])
        first = time.perf_counter() - began
        for name, (make, threads) in against.items():
            with remote(make, threads=threads) as other:
                sliced([both, other])  # warms up
                turns = [[seconds / case.images for seconds in sliced([both, other])] for _ in range(WANTED["repeats"][extent])]
            ours, theirs = (list(each) for each in zip(*turns, strict=True))
            row = {
                "name": name,
                **ratio(ours, theirs),
                "wall_seconds_an_image": {"ours": ours, "other": theirs},
                "first_epoch_seconds": first,
            }
            found.append(row)
            say(f"{paired(row)}  {statistics.median(ours):.3f} : {statistics.median(theirs):.3f}, first epoch {first:.0f} s")
    return found
