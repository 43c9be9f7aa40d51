"""Two processes of alignbench against one, and against the plain loop's two threads."""

import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from remote import remote, say, usual
from sides import Case, Ours
from table import total
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
    images, steps = WANTED["two_processes"]["images"], WANTED["two_processes"]["steps"][extent]
    case = Case(folder, "ddpo", "lora", images, steps, WANTED["micro_batch"], WANTED["rows"])
    with remote(lambda: Ours(case)) as (first,):
        first.ask("given")
    say("\ntwo processes, seconds of the wall an image")
    store = Path(tempfile.mkdtemp(dir=folder)) / "store"
    halves = [lambda rank=rank: Half(replace(case, processes=2), rank, store) for rank in range(2)]
    found = []
    with remote(*halves) as both:

        def shared() -> float:
            for each in both:
                each.begin("epoch")
            return max(total(each.pipe.recv(), "wall") for each in both)

        against = {"one process": (lambda: Ours(case), 1)} if extent == "full" else {}
        for micro_batch in WANTED["plain_micro_batch"][case.method] if extent == "full" else (1,):
            one = replace(case, micro_batch=micro_batch)
            against[f"two processes, micro-batch {micro_batch}"] = (lambda one=one: usual(one), 2)
        for name, (make, threads) in against.items():
            with remote(make, threads=threads) as (other,):
                turns = []
                for turn in range(WANTED["repeats"][extent] + 1):
                    if turn % 2:
                        ours, theirs = shared(), total(other.ask("epoch"), "wall")
                    else:
                        theirs, ours = total(other.ask("epoch"), "wall"), shared()
                    turns.append((ours / case.images, theirs / case.images))
            ours, theirs = (list(each) for each in zip(*turns[1:], strict=True))
            name = "two processes against one" if name == "one process" else name
            row = {"name": name, **ratio(ours, theirs), "wall_seconds_an_image": {"ours": ours, "other": theirs}}
            found.append(row)
            say(f"{paired(row)}  {statistics.median(ours):.3f} : {statistics.median(theirs):.3f}")
    return found
