"""Many jobs, each in a process of its own, behind one ledger: finished ones are skipped, killed ones continued, failed ones on request."""

import hashlib
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.utils import instantiate

from alignbench import ledger
from alignbench.compose import Composed, compose
from alignbench.config import ConfigError, Stopped
from alignbench.launchers.base import Launcher, Running
from alignbench.report.record import Record
from alignbench.signals import CAUGHT

LOOK = 0.1  # seconds between two looks at what runs


@dataclass(frozen=True)
class Job:
    words: list[str]  # of the front door; what says how a sweep is launched is taken out
    composed: Composed

    @property
    def root(self) -> Path:
        return Path(self.composed.config["output"])

    @property
    def finished(self) -> bool:
        return Record(self.composed.folder).finished


def jobs_of(words: Sequence[Sequence[str]]) -> list[Job]:
    """Compose and check all before any is started. Raises ConfigError."""
    return [Job([each for each in own if each.partition("=")[0].partition(".")[0] != "launcher"], compose(own)) for own in words]


def run_jobs(jobs: Sequence[Job], launcher: dict[str, Any], *, retry: bool = False) -> dict[str, str]:
    """Run what is not finished; of jobs with one hash one. Gives each hash's end: done, failed, or interrupted (killed, to be continued).

    launcher: a node of conf/launcher. retry: run what failed before, too. Raises Stopped where a signal ended the sweep: its jobs have
    saved what they had.
    """
    return _Sweep(list({job.composed.hash: job for job in jobs}.values()), instantiate(launcher), retry).run()


class _Sweep:
    def __init__(self, jobs: list[Job], launcher: Launcher, retry: bool):
        self.jobs, self.launcher, self.retry = jobs, launcher, retry
        self.ends: dict[str, str] = {}
        self.pending: list[Job] = []
        self.running: list[tuple[Job, Running, float]] = []
        self.tries: dict[str, int] = {}
        self.took: list[float] = []  # seconds of each job that ended
        self.received: list[int] = []
        self.waiting = False

    def run(self) -> dict[str, str]:
        self.plan()
        before = {number: signal.signal(number, self.forward) for number in CAUGHT}
        try:
            while self.running or (self.pending and not self.received):
                self.settle()
                self.start()
                time.sleep(LOOK)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.launcher.close()
        if self.received:
            raise Stopped(self.received[-1])
        return self.ends

    def forward(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        for _, running, _ in self.running:
            running.stop(number)

    def plan(self) -> None:
        """Each job's entry in the ledger, and which of them there is anything left to do for."""
        known = {root: ledger.read(root) for root in {job.root for job in self.jobs}}
        before = 0
        for job in self.jobs:
            entry = known[job.root].get(job.composed.hash)
            if job.finished:
                if entry is None or entry.state != "done":  # it was killed between its last file and its line, or run elsewhere
                    ledger.append(job.root, "done", job.composed.entry, found=True)
                self.ends[job.composed.hash] = "done"
                before += 1
            elif entry and entry.state == "failed" and not self.retry:
                self.ends[job.composed.hash] = "failed"
                self.say(job, f"failed before ({entry.reason}); --retry runs it again")
            else:
                if entry is None or entry.state in ("done", "failed"):  # its folder was taken away, or it is asked for again
                    ledger.append(job.root, "planned", job.composed.entry)
                self.pending.append(job)
        if before:
            print(f"{before} of {len(self.jobs)} jobs are done already", file=sys.stderr, flush=True)

    def start(self) -> None:
        while self.pending and not self.received and len(self.running) < self.launcher.jobs and self.launcher.room():
            job = next((each for each in self.pending if not ledger.taken(each.root, each.composed.hash)), None)
            if job is None:
                if not self.running and not self.waiting:
                    print(f"waiting for {len(self.pending)} jobs that another process runs", file=sys.stderr, flush=True)
                    self.waiting = True
                return
            self.pending.remove(job)
            if job.finished:  # by another sweep
                self.end(job, "done", "done by another process")
                continue
            log = job.root / "logs" / f"{job.composed.folder.name}.log"
            if not self.launcher.shows:
                self.say(job, f"starts; {log}")
            self.running.append((job, self.launcher.start(job.words, log), time.monotonic()))

    def settle(self) -> None:
        """What became of the jobs that ended."""
        for each in list(self.running):
            job, running, began = each
            code = running.poll()
            if code is None:
                continue
            self.running.remove(each)
            entry = ledger.read(job.root).get(job.composed.hash)
            seconds = time.monotonic() - began
            stopped = code < 0 or code in {128 + number for number in (*CAUGHT, signal.SIGKILL)}
            if code == 0 and job.finished:
                self.took.append(seconds)
                self.end(job, "done", f"done in {seconds:.0f} s")
            elif stopped:
                number = -code if code < 0 else code - 128
                if entry is None or entry.state not in ledger.ENDS:  # it had no time to say so
                    ledger.append(job.root, "preempted", job.composed.entry, reason=f"signal {number}")
                self.tries[job.composed.hash] = self.tries.get(job.composed.hash, 0) + 1
                if not self.received and self.tries[job.composed.hash] <= self.launcher.requeue:
                    self.pending.append(job)
                    self.say(job, f"stopped by signal {number}; it will be continued")
                else:
                    self.end(job, "interrupted", f"stopped by signal {number}; the same command continues")
            else:
                if entry is None or entry.state not in ledger.ENDS:
                    ledger.append(job.root, "failed", job.composed.entry, reason=f"exit code {code}")
                self.end(job, "failed", f"failed, exit code {code}")

    def end(self, job: Job, state: str, said: str) -> None:
        self.ends[job.composed.hash] = state
        self.say(job, said + self.left())

    def left(self) -> str:
        """How long the rest will take, once one job has told."""
        if not self.took or not (todo := len(self.pending) + len(self.running)):
            return ""
        seconds = sum(self.took) / len(self.took) * -(-todo // max(1, min(self.launcher.jobs, todo)))
        return f"; about {duration(seconds)} left"

    def say(self, job: Job, text: str) -> None:
        words = shlex.join(word for word in job.words if not word.startswith("output="))
        print(f"[{len(self.ends)}/{len(self.jobs)}] {words}: {text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def run_sweep(jobs: Sequence[Job], *, retry: bool) -> int:
    """All jobs of `-m`, and the table of what they made in <output>/sweeps/<digest of the jobs>; the exit code."""
    launchers = {str(job.composed.config["launcher"]) for job in jobs}
    if len(launchers) > 1:
        raise ConfigError("launcher: one sweep has one launcher; take the other values out")
    ends = run_jobs(jobs, jobs[0].composed.config["launcher"], retry=retry)
    count = {state: list(ends.values()).count(state) for state in ("done", "failed", "interrupted")}
    print(", ".join(f"{number} {state}" for state, number in count.items() if number), file=sys.stderr, flush=True)
    if count["done"]:
        summarise([job for job in jobs if job.composed.folder.is_dir()])
    return int(count["done"] < len(ends))


def summarise(jobs: Sequence[Job]) -> None:
    """The page and the table of a sweep's runs, beside them; runs that cannot be compared have none, and it says why."""
    from alignbench.reporting import write
    from alignbench.table import DEFAULTS, comparison

    digest = hashlib.sha256("\n".join(sorted({job.composed.hash for job in jobs})).encode()).hexdigest()[:10]
    to = jobs[0].root / "sweeps" / digest
    try:
        found, made = comparison("table", list(dict.fromkeys(job.composed.folder for job in jobs)), dict(DEFAULTS))
        write(found, made, to)
    except ValueError as error:
        print(f"no page of this sweep: {error}", file=sys.stderr)
    else:
        print(f"side by side: {to / 'report.html'}", file=sys.stderr)
