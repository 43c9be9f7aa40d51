"""Jobs through SLURM, by submitit (github.com/facebookincubator/submitit); its local executor tries the same path on one machine.

One task a job, on one node: Lightning starts the processes for its devices there itself.
"""

import getpass
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from alignbench.config import ConfigError, MissingAsset
from alignbench.launchers.base import Launcher, command
from alignbench.launchers.task import Task
from alignbench.ranges import Count, Index, Positive, Text

ENDED = {  # SLURM's states of a job that is over, and what stands for its exit code where it left none
    **dict.fromkeys(("COMPLETED", "FAILED"), 1),
    **dict.fromkeys(("CANCELLED", "DEADLINE", "PREEMPTED", "REVOKED", "TIMEOUT"), -signal.SIGTERM),
    **dict.fromkeys(("BOOT_FAIL", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"), -signal.SIGKILL),
}
LINGERS = 2  # looks at the queue for which a job that is over may still owe the file with its exit code, on a slow file system


class Slurm(Launcher):
    """cluster: slurm, or submitit's `local`, which takes jobs, threads, minutes, timeouts, signal_delay and gpus_per_node alone.

    Most are sbatch's options, None: not given. minutes: the time limit; signal_delay: seconds before it at which a job is told to save;
    timeouts: times that a job is queued again after its time limit; jobs: submitted at a time, as an array of which array_parallelism run;
    threads: OMP_NUM_THREADS of each, None: cpus_per_task; setup: lines of the script before the job; more: other options of sbatch; every:
    seconds between two looks at the queue; show: print the script and submit nothing; detach and requeue: see Launcher.

    Raises MissingAsset where submitit or SLURM is not there.
    """

    lasts = True

    def __init__(
        self,
        *,
        cluster: Literal["slurm", "local"],
        jobs: Count,
        array_parallelism: Count,
        partition: Text | None,
        account: Text | None,
        qos: Text | None,
        constraint: Text | None,
        comment: Text | None,
        minutes: Count,
        gpus_per_node: Index | None,
        cpus_per_task: Count | None,
        memory_gb: Positive | None,
        setup: list[Text],
        more: dict[Text, Text | int | bool],
        threads: Count | None,
        signal_delay: Count,
        timeouts: Index,
        requeue: Index,
        detach: bool,
        every: Positive,
        show: bool,
    ):
        try:
            import submitit
        except ImportError:
            raise MissingAsset("launcher=slurm: submitit is not installed; pip install 'alignbench[slurm]'") from None
        if cluster == "slurm" and not show and (missing := [each for each in ("sbatch", "srun", "squeue") if not shutil.which(each)]):
            raise MissingAsset(
                f"launcher=slurm: no {missing[0]} here; start the sweep on a login node of the cluster "
                "(launcher.show=true prints the script, launcher=submitit_here runs the same jobs on this machine)"
            )
        self.submitit, self.cluster, self.timeouts = submitit, cluster, timeouts
        self.jobs, self.requeue, self.detach, self.every, self.gpus = jobs, requeue, detach, every, gpus_per_node
        self.threads = threads or cpus_per_task
        given: dict[str, Any] = {"partition": partition, "account": account, "qos": qos, "constraint": constraint, "comment": comment}
        given |= {"gpus_per_node": gpus_per_node, "cpus_per_task": cpus_per_task, "mem": memory_gb and f"{memory_gb * 1000:.0f}M"}
        given |= {"time": minutes, "signal_delay_s": signal_delay, "array_parallelism": array_parallelism, "setup": setup or None}
        if cpus_per_task:
            given["srun_args"] = [f"--cpus-per-task={cpus_per_task}"]  # which srun does not take from sbatch any more (SLURM 22.05)
        fixed: dict[str, Any] = {"job_name": "alignbench", "wckey": None, "nodes": 1, "ntasks_per_node": 1}
        fixed["additional_parameters"] = {"requeue": True} | more
        self.parameters = {key: value for key, value in given.items() if value is not None} | fixed
        if cluster == "local":
            self.parameters = {"timeout_min": minutes, "signal_delay_s": signal_delay, "gpus_per_node": gpus_per_node or 0}
        self.waiting: list[SlurmJob] = []
        self.states: dict[str, str] | None = {}  # of this user's jobs; None: the queue did not answer
        self.looks, self.looked = 0, float("-inf")

    def fits(self, trainer: dict[str, Any]) -> None:
        if trainer.get("num_nodes", 1) > 1:
            raise ConfigError("trainer.num_nodes: a job of this launcher is on one node; set it to 1, and trainer.devices to that node's")
        if trainer["accelerator"] in ("gpu", "cuda") and trainer["devices"] > (self.gpus or 0):
            devices = trainer["devices"]
            raise ConfigError(f"trainer.devices: {devices} for a job that is given {self.gpus} GPUs; set launcher.gpus_per_node={devices}")

    def start(self, words: list[str], log: Path) -> "SlurmJob":
        job = SlurmJob(self, folder_of(log), log, Task(command(words), log.absolute(), self.threads))
        self.waiting.append(job)
        return job

    def send(self) -> None:
        waiting, self.waiting = self.waiting, []
        before = signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGINT}
        )  # a terminal's Ctrl-C is for the sweep, not for who serves it here
        try:
            for folder in dict.fromkeys(job.folder for job in waiting):
                jobs = [job for job in waiting if job.folder == folder]
                for job, handle in zip(jobs, self.executor(folder).submit_array([job.task for job in jobs]), strict=True):
                    job.handle, job.seen = handle, self.looks
        except (self.submitit.core.utils.UncompletedJobError, self.submitit.core.utils.FailedSubmissionError) as error:
            raise ConfigError(f"launcher: sbatch refused the jobs ({' '.join(str(error).split())}); mend what it names") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def executor(self, folder: Path) -> Any:
        kind = self.submitit.SlurmExecutor if self.cluster == "slurm" else self.submitit.LocalExecutor
        executor = kind(folder=folder, max_num_timeout=self.timeouts)
        executor.update_parameters(**self.parameters)
        return executor

    def script(self, log: Path, number: int) -> str:
        """By what makes it in a submission as well."""
        if self.cluster != "slurm":
            raise ConfigError("launcher.show: this launcher submits no script; take launcher=slurm")
        from submitit.slurm.slurm import _make_sbatch_string

        folder = folder_of(log)
        run = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
        return _make_sbatch_string(command=run, folder=folder, map_count=number if number > 1 else None, **self.parameters)

    def find(self, job: str, log: Path) -> "SlurmJob | None":
        kind = self.submitit.SlurmJob if self.cluster == "slurm" else self.submitit.LocalJob
        found = SlurmJob(self, folder_of(log), log, None)
        found.handle, found.seen = kind(folder=found.folder, job_id=job), self.looks
        state = self.state(job, found.folder)
        if state == "PENDING":  # again: what it left when it ran before is no result
            found.handle.paths.result_pickle.unlink(missing_ok=True)
        return found if state is not None and state not in ENDED and not found.handle.paths.result_pickle.exists() else None

    def state(self, job: str, folder: Path) -> str | None:
        """SLURM's word for what a job does; None: it is not known any more."""
        if self.cluster == "local":
            return "RUNNING" if controls(job, folder) else None
        if time.monotonic() - self.looked >= self.every:
            words = ["squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}", "--format=%i %T"]
            asked = subprocess.run(words, capture_output=True, text=True, check=False)
            self.states = dict(line.split()[:2] for line in asked.stdout.splitlines() if line.strip()) if asked.returncode == 0 else None
            self.looked, self.looks = time.monotonic(), self.looks + (asked.returncode == 0)
        return "UNKNOWN" if self.states is None else self.states.get(job)


class SlurmJob:
    def __init__(self, launcher: Slurm, folder: Path, log: Path, task: Task | None):
        self.launcher, self.folder, self.log, self.task = launcher, folder, log, task
        self.handle: Any = None  # submitit's, once it is submitted
        self.seen = 0  # the look at the queue in which it was there last

    @property
    def id(self) -> str:
        return self.handle.job_id

    def poll(self) -> int | None:
        if self.launcher.cluster == "local":
            self.handle.get_info()  # takes leave of a process that ended
        state = self.launcher.state(self.id, self.folder)
        if self.handle.paths.result_pickle.exists():
            return self.result()
        if state is not None and state not in ENDED:
            self.seen = self.launcher.looks
            return None
        if self.launcher.cluster == "slurm" and self.launcher.looks - self.seen < LINGERS:
            return None
        return ENDED.get(state or "", -signal.SIGKILL)

    def result(self) -> int:
        try:
            return self.handle.result()
        except self.launcher.submitit.core.utils.FailedJobError as error:
            if "timed-out too many times" in str(error):
                return -signal.SIGUSR1  # it has saved
            with self.log.open("a", encoding="utf-8") as log:
                log.write(f"{error}\n")
            return 1

    def stop(self, signum: int) -> None:
        if self.launcher.cluster == "slurm":
            subprocess.run(["scancel", self.id], check=False)  # which sends SIGTERM first
        else:
            with suppress(ProcessLookupError):
                os.kill(int(self.id), signal.SIGTERM)


def folder_of(log: Path) -> Path:
    return log.parent.absolute() / "submitit"


def controls(pid: str, folder: Path) -> bool:
    """Whether the process of this number is submitit's local controller for that folder."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"submitit.local._local" in words and str(folder).encode() in words
