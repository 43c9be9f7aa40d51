"""How long alignbench takes to say something, to import what it trains with, to its first training step, and to run a sweep."""

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from remote import say
from verdicts import WANTED

FIRST = """
import sys, time
import torch
from alignbench.__main__ import main
import alignbench.run, lightning.pytorch, diffusers, transformers, peft
import alignbench.models.stable_diffusion, alignbench.methods.ddpo
from diffusers import StableDiffusionPipeline
torch.set_num_threads(1)
from alignbench.methods.base import Method
began, usual = time.perf_counter(), Method.training_step
def first(self, batch, index):
    print("FIRST", time.perf_counter() - began, file=sys.stderr, flush=True)
    raise SystemExit(0)
Method.training_step = first
main(sys.argv[1:])
"""
TRAINING = (
    "import alignbench.run, alignbench.models.stable_diffusion, alignbench.methods.ddpo; from diffusers import StableDiffusionPipeline"
)


def alignbench(*words: str) -> float:
    """Seconds of the wall of a command; raises CalledProcessError where it fails."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "alignbench", *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - began


def imports() -> tuple[float, list[tuple[str, float]]]:
    """Seconds until all that a training needs is imported, and the packages that take most of it."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", TRAINING], capture_output=True, text=True, check=True)
    own: dict[str, float] = {}
    for line in done.stderr.splitlines():
        if found := re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", line):
            package = found[2].partition(".")[0]
            own[package] = own.get(package, 0.0) + int(found[1]) / 1e6
    return sum(own.values()), sorted(own.items(), key=lambda each: -each[1])[:8]


def startup(folder: Path, extent: str) -> dict[str, Any]:
    seconds = {word.strip("-"): min(alignbench(word) for _ in range(5)) for word in ("--help", "ls")}
    whole, most = imports()
    firsts = []
    for _ in range({"full": 3, "quick": 1}[extent]):
        done = subprocess.run(
            [sys.executable, "-c", FIRST, f"output={folder}/first", "model=sandbox"],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        reached = re.search(r"FIRST ([\d.]+)", done.stderr)
        if not reached:
            raise SystemExit(f"the sandbox took no training step:\n{done.stderr[-2000:]}")
        firsts.append(float(reached[1]))
    seconds |= {"imports": whole, "first_step": statistics.median(firsts)}
    say("\nstart-up, seconds of the wall")
    for name, what in {
        "help": "--help",
        "ls": "ls",
        "imports": "imports of a training",
        "first_step": "from there to its first step",
    }.items():
        say(f"  {what:<38}{seconds[name]:>6.2f}")
    say(f"  most of the imports: {', '.join(f'{name} {each:.2f}' for name, each in most)}")
    return {"seconds": seconds, "imports": most}


def sweep(folder: Path, extent: str) -> dict[str, Any]:
    """A sandbox sweep, one at a time and two at a time."""
    seeds = ",".join(str(seed) for seed in range(WANTED["jobs"]))
    words = ["-m", "method=ddpo", "model=sandbox", f"seed={seeds}", "epochs=1", "eval=quick", "trainer.threads=1"]
    seconds = {jobs: alignbench(*words, f"launcher.jobs={jobs}", f"output={folder}/sweep-{jobs}") for jobs in (2, 1)}
    row = {"name": f"a sweep of {WANTED['jobs']} jobs, two at a time", "seconds": seconds}
    row |= {"ratio": seconds[2] / seconds[1], "speedup": seconds[1] / seconds[2]}
    say(f"\n{row['name']}: {seconds[2]:.0f} s, {seconds[1]:.0f} s one at a time: {row['speedup']:.2f} times as fast")
    return row
