"""Jobs as processes on this machine, as many at a time as are wanted and as memory allows."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from alignbench.launchers.base import Launcher, begun, command
from alignbench.ranges import Count, Index, Positive, Text

GUESS = 1.5e9  # bytes that a job is taken to need until one was seen


class Local(Launcher):
    """jobs: at a time; threads: OMP_NUM_THREADS of each, None: the cores shared out; memory_gb: that a job needs, None: as much as the
    largest so far; gpus: ids given to jobs in turn (CUDA_VISIBLE_DEVICES), none: all see all; requeue: see Launcher.
    """

    def __init__(self, *, jobs: Count, threads: Count | None, memory_gb: Positive | None, gpus: list[Text], requeue: Index):
        self.jobs, self.threads, self.gpus, self.requeue = jobs, threads, gpus, requeue
        self.shows = jobs == 1
        self.fixed = memory_gb and memory_gb * 1e9
        self.largest = 0.0
        self.running: dict[int, subprocess.Popen[bytes]] = {}  # by slot

    def start(self, words: list[str], log: Path) -> "LocalJob":
        slot = next(each for each in range(self.jobs) if each not in self.running)
        environment = dict(os.environ)
        if self.threads or (self.jobs > 1 and "OMP_NUM_THREADS" not in environment):
            environment["OMP_NUM_THREADS"] = str(self.threads or max(1, (os.cpu_count() or 1) // self.jobs))
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        process = begun(command(words), environment, None if self.shows else log)
        self.running[slot] = process
        return LocalJob(self, slot, process)

    def room(self) -> bool:
        """Whether the memory that is free holds another job, and what those that run have not taken yet."""
        free = available()
        if not self.running or free is None:
            return True
        held = [resident(process.pid) for process in self.running.values()]
        self.largest = max([self.largest, *held])
        need = self.fixed or max(self.largest, GUESS)
        return free - sum(max(0.0, need - each) for each in held) >= need


class LocalJob:
    id = None  # it dies with the sweep

    def __init__(self, launcher: Local, slot: int, process: subprocess.Popen[bytes]):
        self.launcher, self.slot, self.process = launcher, slot, process

    def poll(self) -> int | None:
        code = self.process.poll()
        if code is not None:
            self.launcher.running.pop(self.slot, None)
        return code

    def stop(self, signum: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signum)


def available() -> float | None:
    """Bytes of memory that are free; None where that cannot be asked."""
    with suppress(OSError, StopIteration):
        return _kilobytes(Path("/proc/meminfo"), "MemAvailable:")
    return None


def resident(pid: int) -> float:
    """Bytes that a process has held at most; 0 where that cannot be asked."""
    with suppress(OSError, StopIteration):
        return _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM:")
    return 0.0


def _kilobytes(file: Path, key: str) -> float:
    return 1024.0 * int(next(line.split()[1] for line in file.read_text().splitlines() if line.startswith(key)))
