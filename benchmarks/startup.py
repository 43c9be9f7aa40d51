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
JOBS = 12


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


def startup(folder: Path, quick: bool) -> dict[str, Any]:
    repeats = 2 if quick else 5
    commands = {" ".join(words): [alignbench(*words) for _ in range(repeats)] for words in (("--help",), ("ls",))}
    whole, most = imports()
    words = [f"output={folder}/first", "model=sandbox"]
    firsts = []
    for _ in range(1 if quick else 3):
        done = subprocess.run(
            [sys.executable, "-c", FIRST, *words], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        found = re.search(r"FIRST ([\d.]+)", done.stderr)
        if not found:
            raise SystemExit(f"the sandbox took no training step:\n{done.stderr[-2000:]}")
        firsts.append(float(found[1]))
    say("\nstart-up, seconds of the wall")
    for name, seconds in commands.items():
        say(f"  {name:<36}{min(seconds):.2f}")
    say(f"  {'imports of a training':<36}{whole:.2f}  ({', '.join(f'{name} {seconds:.2f}' for name, seconds in most)})")
    say(f"  {'from there to the first training step':<36}  {statistics.median(firsts):.2f}")
    return {"commands": commands, "imports": {"seconds": whole, "most": most}, "first_step": firsts}


def sweep(folder: Path, quick: bool) -> dict[str, Any]:
    """A sandbox sweep of 12 jobs, one at a time and two at a time."""
    seeds = ",".join(str(seed) for seed in range(JOBS))
    words = ["-m", "method=ddpo", "model=sandbox", f"seed={seeds}", "epochs=2", "eval=quick", "trainer.threads=1"]
    seconds = {jobs: alignbench(*words, f"launcher.jobs={jobs}", f"output={folder}/sweep-{jobs}") for jobs in (2, 1)}
    row = {"seconds": seconds, "speedup": seconds[1] / seconds[2], "ratio": seconds[2] / seconds[1]}
    say(f"\na sweep of {JOBS} jobs: {seconds[1]:.0f} s one at a time, {seconds[2]:.0f} s two at a time: {row['speedup']:.2f} times as fast")
    return row
