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

from hydra.errors import InstantiationException
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
    started = launcher_of(launcher)
    for job in jobs:
        started.fits(job.composed.config["trainer"])
    return _Sweep(list({job.composed.hash: job for job in jobs}.values()), started, retry).run()


def launcher_of(node: dict[str, Any]) -> Launcher:
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:  # Hydra's envelope: what the constructor raised is what the user should read
        raise error.__cause__ or error from None


@dataclass
class _Going:
    job: Job
    running: Running
    began: float
    told: int = 0  # of the signals that the sweep received


class _Sweep:
    def __init__(self, jobs: list[Job], launcher: Launcher, retry: bool):
        self.jobs, self.launcher, self.retry = jobs, launcher, retry
        self.ends: dict[str, str] = {}
        self.pending: list[Job] = []
        self.running: list[_Going] = []
        self.tries: dict[str, int] = {}
        self.took: list[float] = []  # seconds of each job that ended
        self.received: list[int] = []
        self.waiting = False

    def run(self) -> dict[str, str]:
        self.plan()
        before = {number: signal.signal(number, self.hear) for number in CAUGHT}
        try:
            while (self.running and not (self.received and self.launcher.detach)) or (self.pending and not self.received):
                self.settle()
                self.start()
                self.forward()
                time.sleep(LOOK)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.launcher.close()
        if self.received:
            if self.running:
                print(f"{len(self.running)} jobs stay with the cluster; the same command finds them", file=sys.stderr, flush=True)
            raise Stopped(self.received[-1])
        return self.ends

    def hear(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def forward(self) -> None:
        """Each signal once to each job, those that were being started when it came as well."""
        for each in self.running if not self.launcher.detach else ():
            for number in self.received[each.told :]:
                each.told += 1
                each.running.stop(number)

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

    def resume(self) -> None:
        """Take up what an earlier sweep, or another one, gave to the cluster."""
        known = {root: ledger.read(root) for root in {job.root for job in self.pending}}
        for job in list(self.pending):
            entry = known[job.root].get(job.composed.hash)
            if entry is None or entry.id is None or len(self.running) >= self.launcher.jobs:
                continue
            if (running := self.launcher.find(entry.id, self.log(job))) is not None:
                self.pending.remove(job)
                self.running.append(_Going(job, running, time.monotonic()))
                self.say(job, f"is with the cluster already, as {entry.id}")

    def log(self, job: Job) -> Path:
        return job.root / "logs" / f"{job.composed.folder.name}.log"

    def start(self) -> None:
        if self.launcher.lasts and self.pending and not self.received:
            self.resume()
        sent, now = len(self.running), time.time()
        self.fill()
        self.launcher.send()
        for each in self.running[sent:]:
            if each.running.id is not None:
                ledger.append(each.job.root, "queued", each.job.composed.entry, id=each.running.id, time=now)

    def fill(self) -> None:
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
            log = self.log(job)
            if not self.launcher.shows:
                self.say(job, f"starts; {log}")
            self.running.append(_Going(job, self.launcher.start(job.words, log), time.monotonic()))

    def settle(self) -> None:
        """What became of the jobs that ended."""
        for each in list(self.running):
            job = each.job
            code = each.running.poll()
            if code is None:
                continue
            self.running.remove(each)
            entry = ledger.read(job.root).get(job.composed.hash)
            seconds = time.monotonic() - each.began
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
    launcher = jobs[0].composed.config["launcher"]
    if launcher.get("show"):
        return show([job for job in jobs if not job.finished], launcher_of(launcher))
    ends = run_jobs(jobs, launcher, retry=retry)
    count = {state: list(ends.values()).count(state) for state in ("done", "failed", "interrupted")}
    print(", ".join(f"{number} {state}" for state, number in count.items() if number), file=sys.stderr, flush=True)
    if count["done"]:
        summarise([job for job in jobs if job.composed.folder.is_dir()])
    return int(count["done"] < len(ends))


def show(jobs: Sequence[Job], launcher: Launcher) -> int:
    """The script of the first submission, and nothing done."""
    if jobs:
        print(launcher.script(jobs[0].root / "logs" / "first.log", min(len(jobs), launcher.jobs)))
    print(f"{len(jobs)} jobs to run, {min(len(jobs), launcher.jobs)} of them with this script; nothing was submitted", file=sys.stderr)
    return 0


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
