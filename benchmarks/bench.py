"""How fast alignbench is, beside the plain loop of public scripts, on this machine's processor.

    python benchmarks/bench.py                     # all, at most 40 minutes on 2 cores; writes benchmarks/results/<machine>.json
    python benchmarks/bench.py --quick             # LoRA alone, three repeats, at most 5 minutes; writes nothing
    python benchmarks/bench.py --only table        # one part, measured again: table, switches, processes, scaling, startup, sweep

Both sides take the same optimiser steps on a small pipeline of SD's shape (losses and gradients are held to 1e-5 first), by turns, in
processes of their own with one thread. A ratio is ours over the plain loop's; below 1 we are faster. What is measured, and what must be
reached, stands in benchmarks/bench.yaml.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import machine_rate
import torch
from architectures import small
from processes import processes
from remote import remote, say, usual
from scaling import scaling
from sides import Case, Ours, given
from startup import startup, sweep
from switches import switches
from table import table
from verdicts import WANTED, changes, missed

from alignbench.compose import compose

RESULTS = Path(__file__).parent / "results"
PARTS = {"table": table, "switches": switches, "processes": processes, "scaling": scaling, "startup": startup, "sweep": sweep}
FULL_ONLY = ("switches", "scaling", "startup", "sweep")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="LoRA alone, three repeats, nothing has to be reached")
    parser.add_argument("--only", choices=list(PARTS), action="append", default=[])
    parser.add_argument("--to", type=Path, default=RESULTS / f"{machine_rate.name()}.json", help="where the results are written")
    parser.add_argument("--rows", action="append", default=[], help="with --only table: rows whose names begin so, in the place of the old")
    options = parser.parse_args()
    if options.rows and options.only != ["table"]:
        parser.error("--rows is of the table: add --only table, and nothing else")
    warnings.filterwarnings("ignore")
    began, found, extent = time.time(), dict[str, Any](), "quick" if options.quick else "full"
    with tempfile.TemporaryDirectory() as work:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": work}  # compiling is timed as it is the first time
        with remote(lambda: Made(Path(work))) as (maker,):  # in a child: this process never computes, so that its children may
            warm(maker.ask("epoch"), Path(work))
        for name, part in PARTS.items():
            if name in options.only if options.only else not (options.quick and name in FULL_ONLY):
                found[name] = table(Path(work), extent, options.rows) if name == "table" else part(Path(work), extent)
    seconds, own = round(time.time() - began), json.loads(options.to.read_text()) if options.to.exists() else {}
    for change in changes(found, own or another_machines()):
        say(f"changed: {change}")
    if options.rows and own:
        again = {row["name"]: row for row in found["table"]["rows"]}
        own["table"]["rows"] = [again.get(row["name"], row) for row in own["table"]["rows"]]
        found["table"] = own["table"]
    if not options.quick and (own or not options.only):
        whole = own | found if options.only else {**found, "seconds": seconds, "torch": torch.__version__, "cores": os.cpu_count()}
        options.to.parent.mkdir(exist_ok=True)
        options.to.write_text(json.dumps(whole, indent=1) + "\n")
        say(f"\nwritten: {options.to}")
    say(f"{seconds} s")
    wanting = [] if options.quick else missed(found)
    for each in wanting:
        say(f"missed: {each}")
    return 1 if wanting else 0


def another_machines() -> dict[str, Any]:
    """Results to compare with where this machine has none committed: ratios travel better than seconds."""
    path = next(iter(sorted(RESULTS.glob("*.json"))), None)
    if path is None:
        return {}
    say(f"\nno results of this machine are committed: its ratios are compared with those of {path.stem}")
    return json.loads(path.read_text())


class Made:
    """Makes the small pipeline, and tells which modules an epoch imports."""

    def __init__(self, folder: Path):
        self.folder = folder
        torch.manual_seed(0)
        small(folder, 16)

    def epoch(self) -> list[str]:
        for method in ("ddpo", "pso", "di_star"):  # of trajectories, of pairs, of turns
            case = Case(self.folder, method, "lora", images=4, steps=1, micro_batch=4)
            ours = Ours(case)
            torch.save(given(ours), self.folder / "given.pt")
            for side in (ours, usual(case)):
                side.epoch()
        return list(sys.modules)


def warm(modules: list[str], folder: Path) -> None:
    """Import what any side imports, and read every method's config once: a run does so before its imports, so that its memory above what
    they take holds neither.
    """
    for name in modules:
        with suppress(ImportError):  # of some that are made while running, and have no file
            importlib.import_module(name)
    for method in WANTED["images"]:
        compose(Case(folder, method, "lora", images=4, steps=1, micro_batch=4).all_words)


if __name__ == "__main__":
    sys.exit(main())
