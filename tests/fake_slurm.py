"""Stands for SLURM's commands in tests: the first word says which (sbatch, squeue, srun, scontrol, scancel).

FAKE_SLURM: a folder with `states/<job>`, `submitted/<number>.sh` (scripts), and `hold`, while which is there no job starts.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(os.environ["FAKE_SLURM"])
STATES = ROOT / "states"


def is_now(job: str, state: str) -> None:
    (STATES / f".{job}").write_text(state)
    (STATES / f".{job}").rename(STATES / job)


def sbatch(script: str) -> None:
    number = 100 + len(list((ROOT / "submitted").iterdir()))
    text = Path(script).read_text()
    (ROOT / "submitted" / f"{number}.sh").write_text(text)
    array = re.search("--array=0-([0-9]+)", text)
    for job in [f"{number}_{each}" for each in range(int(array[1]) + 1)] if array else [str(number)]:
        is_now(job, "PENDING")
        words, nowhere = [sys.executable, __file__, "node", job], subprocess.DEVNULL
        subprocess.Popen(words, start_new_session=True, stdout=nowhere, stderr=nowhere)
    print(f"Submitted batch job {number}")


def node(job: str) -> None:
    number, _, task = job.partition("_")
    array = {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task} if task else {}
    own = {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    while (STATES / job).read_text() == "PENDING":
        while (ROOT / "hold").exists():
            time.sleep(0.05)
        is_now(job, "RUNNING")
        code = subprocess.run(["bash", str(ROOT / "submitted" / f"{number}.sh")], env=os.environ | own | array, check=False).returncode
        if (STATES / job).read_text() == "RUNNING":
            is_now(job, "FAILED" if code else "COMPLETED")


def main(called: str, words: list[str]) -> None:
    match called, words:
        case "sbatch", [script]:
            sbatch(script)
        case "squeue", _:
            print("\n".join(f"{path.name} {path.read_text()}" for path in STATES.glob("[0-9]*")))
        case "scontrol", ["requeue", job]:
            is_now(job, "PENDING")
        case "scancel", [job]:
            is_now(job, "CANCELLED")
        case "srun", _:
            start = words.index("-u") - 1  # the interpreter, after srun's own options
            os.execv(words[start], words[start:])
        case "node", [job]:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            node(job)


main(sys.argv[1], sys.argv[2:])
