"""What submitit runs on a node: a job as a process, which saves and is queued again when the cluster wants the node back.

Signals: SIGTERM (preemption, scancel) is passed on; SIGUSR2 (preemption, the time limit) makes submitit call `checkpoint` and requeue.
"""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignbench.launchers.base import begun


class Task:
    """What is submitted: the job as a process, told to save when the cluster wants its node back. command: of the process; log: its output;
    threads: OMP_NUM_THREADS, None: as it is there.
    """

    def __init__(self, command: list[str], log: Path, threads: int | None):
        self.command, self.log, self.threads = command, log, threads
        self.process: subprocess.Popen[bytes] | None = None
        self.asked: int | None = None

    def __call__(self) -> int:
        import submitit

        submitit.JobEnvironment().paths.result_pickle.unlink(missing_ok=True)  # from before it was queued again
        signal.signal(signal.SIGTERM, lambda number, frame: self.ask(number))
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_NTASKS")}  # by which Lightning would
        if self.threads:  # take the task for one of its own processes
            environment["OMP_NUM_THREADS"] = str(self.threads)
        self.process = begun(self.command, environment, self.log)
        if self.asked is not None:
            self.process.send_signal(self.asked)
        self.wait()
        return self.process.wait()

    def ask(self, number: int) -> None:
        """Once: a second signal would disturb what the first has it save."""
        if self.asked is None:
            self.asked = number
            if self.process is not None:
                self.process.send_signal(number)

    def wait(self) -> None:
        """Without Popen's lock, which whoever is interrupted by a signal may hold."""
        if self.process is not None:
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def checkpoint(self) -> Any:
        """Of submitit's protocol: called before preemption and the time limit; gives what is to run next."""
        import submitit

        self.ask(signal.SIGUSR1)
        self.wait()
        return submitit.helpers.DelayedSubmission(Task(self.command, self.log, self.threads))
