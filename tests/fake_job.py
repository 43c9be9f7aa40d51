"""Stands for `python -m alignbench WORDS` in tests of sweeps: claims, writes what makes a run finished, and does what FAKE_JOBS says.

FAKE_JOBS: a JSON file, words -> {folder, hash, name, command, do}; do: done, fail, fail_once, sleep, sleep_once, or die_once (SIGKILL at
its first start).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from alignbench.config import Stopped
from alignbench.ledger import claimed

job = json.loads(Path(os.environ["FAKE_JOBS"]).read_text())[" ".join(sys.argv[3:])]
folder = Path(job["folder"])


def stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, stop)
    entry = {key: job[key] for key in ("hash", "name", "command")}
    with claimed(folder.parent, entry, (folder / "report.html").is_file, print) as todo:
        if not todo:
            return 0
        folder.mkdir(parents=True, exist_ok=True)
        first = not (folder / "begun").exists()
        (folder / "begun").touch()
        print("threads", os.environ.get("OMP_NUM_THREADS"), "gpus", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
        while job["do"] == "sleep" or (job["do"] == "sleep_once" and first):
            time.sleep(0.05)
        if job["do"] == "fail" or (job["do"] == "fail_once" and first):
            raise ValueError("as it was told")
        if job["do"] == "die_once" and first:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(job.get("seconds", 0))
        (folder / "result.json").write_text("{}")
        (folder / "report.html").write_text("")
    return 0


try:
    sys.exit(main())
except Stopped as stopped:
    sys.exit(128 + stopped.signum)
except ValueError:
    sys.exit(1)
