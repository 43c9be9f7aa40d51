"""Jobs through Ray (github.com/ray-project/ray): an actor each, which runs the job as a process where there is room for it."""

import math
import os
import secrets
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from alignbench.config import ConfigError, MissingAsset, Stopped
from alignbench.launchers.base import Launcher, begun, command
from alignbench.ranges import Count, Index, NonNegative, Positive, Text

DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")  # what Ray says which of a node's devices are the job's
STORE = 100 * 2**20  # bytes for objects that tasks share, of which there are none; Ray asks for 75 MB at least


class Ray(Launcher):
    """address: of a cluster, auto: the one that this machine belongs to, None: made here, with room for `jobs`, and gone with the sweep;
    cpus, gpus, memory_gb: what Ray keeps free for a job; threads: OMP_NUM_THREADS of each, None: its cpus; requeue: see Launcher.

    Raises MissingAsset where Ray is not installed or the cluster is not there.
    """

    def __init__(
        self,
        *,
        address: Text | None,
        jobs: Count,
        cpus: Positive,
        gpus: NonNegative,
        memory_gb: Positive | None,
        threads: Count | None,
        requeue: Index,
    ):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported, which reads them
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a job that asks for no GPU sees none
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would let everything else on a machine go first
        if address is None:  # a token of its own, which no file holds: nobody else starts anything here
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        try:
            import ray
        except ImportError:
            raise MissingAsset("launcher=ray: Ray is not installed; pip install 'alignbench[ray]'") from None
        self.ray: Any = ray
        self.address, self.jobs, self.requeue = address, jobs, requeue
        self.needs = {"CPU": cpus, "GPU": gpus, "memory": (memory_gb or 0) * 1e9}
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self.environment["OMP_NUM_THREADS"] = str(threads or max(1, int(cpus)))

    def start(self, words: list[str], log: Path) -> "RayJob":
        if not self.ray.is_initialized():
            self.connect()
        options = {"num_cpus": self.needs["CPU"], "num_gpus": self.needs["GPU"], "memory": int(self.needs["memory"]) or None}
        actor = self.ray.remote(_Worker).options(**options, max_concurrency=3, max_restarts=0).remote()
        return RayJob(self.ray, actor, actor.run.remote(command(words), self.environment, log.absolute(), Path.cwd()))

    def connect(self) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            quiet |= {"num_cpus": math.ceil(self.jobs * self.needs["CPU"]), "include_dashboard": False, "object_store_memory": STORE}
        before = signal.getsignal(signal.SIGTERM)
        try:
            self.ray.init(address=self.address or "local", **quiet)
        except ConnectionError as error:
            raise MissingAsset(
                f"launcher.address={self.address}: no Ray cluster there ({' '.join(str(error).split())[:80]}); "
                "`ray start --head` makes one, launcher=ray_here one for this sweep"
            ) from None
        except SystemExit:  # Ray's own answer to SIGTERM
            raise Stopped(signal.SIGTERM) from None
        finally:
            signal.signal(signal.SIGTERM, before)
        there = self.ray.cluster_resources()
        if short := [key for key, need in self.needs.items() if need > there.get(key, 0)] if self.address is None else []:
            setting = {"CPU": "cpus", "GPU": "gpus", "memory": "memory_gb"}[short[0]]
            raise ConfigError(f"launcher.{setting}: a job would wait for ever, this machine has {there.get(short[0], 0):g}; ask for less")

    def close(self) -> None:
        self.ray.shutdown()


class RayJob:
    id = None  # Ray ends it with the sweep

    def __init__(self, ray: Any, actor: Any, code: Any):
        self.ray, self.actor, self.code = ray, actor, code
        self.ready = actor.ready.remote()
        self.ends_by = signal.SIGKILL

    def poll(self) -> int | None:
        if not self.ray.wait([self.code], timeout=0)[0]:
            return None
        try:
            code: int = self.ray.get(self.code)
        except self.ray.exceptions.RayTaskError as error:  # raised on the worker before there was a process: a folder that is not there
            print(f"alignbench: {' '.join(str(error.cause).split())}", file=sys.stderr)
            code = 1
        except self.ray.exceptions.RayError:  # the worker, its node or its memory is gone, and the process with it
            code = -self.ends_by
        self.ray.kill(self.actor)  # now, so that the next has room
        return code

    def stop(self, signum: int) -> None:
        if self.ray.wait([self.ready], timeout=0)[0]:
            self.actor.stop.remote(signum)
        else:  # it waits for room
            self.ends_by = signal.Signals(signum)
            self.ray.kill(self.actor)


class _Worker:
    """Where Ray puts it: the job's process, and a way to reach it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.there = threading.Event()

    def ready(self) -> None: ...

    def run(self, words: list[str], environment: dict[str, str], log: Path, folder: Path) -> int:
        devices = {key: os.environ[key] for key in DEVICES if key in os.environ}
        self.process = begun(words, environment | devices, log, folder)
        self.there.set()
        return self.process.wait()

    def stop(self, signum: int) -> None:
        self.there.wait()
        if self.process is not None:
            self.process.send_signal(signum)
