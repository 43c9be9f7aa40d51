"""A judge in an environment of its own, asked over pipes: for packages that do not fit beside ours (docs/rewards/elsewhere.md)."""

import hashlib
import json
import os
import re
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from alignbench.config import PACKAGED, MissingAsset, located
from alignbench.ranges import Count, Positive, Text
from alignbench.rewards import worker_loop
from alignbench.rewards.base import Changed, Reward, Unreachable
from alignbench.rewards.environment import environment, requirement_file
from alignbench.rewards.process import Process
from alignbench.rewards.wire import KIN, NAME, Garbled, most, patiently, request, scores, take_kin

FACTS = {"name": NAME, "version": r"[^\n]{1,200}", "weights": r"([0-9a-f]{64})?"}  # what `load` says of its judge


class Worker(Reward):
    """Scores by an adapter script's `load(settings) -> (facts, score)`, which runs in the environment that `requirements` describes.

    Its process starts with the object and ends with it, with this process, by `close`, or after `idle_timeout`; the next call starts it
    again, and the judge must then be the same.
    """

    name = "worker"
    differentiable = False
    spatial = False
    range = (-float("inf"), float("inf"))
    unit = "the judge's own"
    licence = "the judge's own"
    frame = "the judge's own"

    def __init__(
        self,
        *,
        script: Text,
        requirements: Text,
        python: str | None,
        settings: dict[str, str | float | int | bool | None],
        batch: Count,
        build_timeout: Positive,
        start_timeout: Positive,
        call_timeout: Positive,
        idle_timeout: Positive,
        tries: Count,
        pause: Positive,
    ):
        """script: a path or package://...; requirements: a file, or the name of one in conf/reward/env; python: null for the running
        interpreter, or a path or a version; settings: what `load` is given; batch: images a message; timeouts in seconds; pause: before the
        second try, doubled before each further one. Raises MissingAsset where the judge cannot be had, ValueError where it is none.
        """
        super().__init__()
        self._script, self._requirements = Path(located(script)).absolute(), requirement_file(requirements)
        if not self._script.is_file():
            raise MissingAsset(f"reward.script={script}: there is no such file; name an adapter script (docs/rewards/elsewhere.md)")
        self._settings, self._given = {key: _here(value) for key, value in settings.items()}, settings
        self._batch, self._tries, self._pause = batch, tries, pause
        self._start_timeout, self._call_timeout, self._idle_timeout = start_timeout, call_timeout, idle_timeout
        self._python = environment(self._requirements, python, build_timeout)
        self._identity: dict[str, str] = {}
        self._lock, self._held = threading.RLock(), list[Process]()
        self._finalizer = weakref.finalize(self, _end, self._held)
        try:
            patiently(self.name, tries, pause, self._running)
        except Unreachable as error:
            raise MissingAsset(f"reward.script={script}: its judge does not start: {error}") from error
        if type(self).name == Worker.name:  # a subclass has facts of its own
            self.name = self._identity["name"]  # type: ignore[misc]
            take_kin(self, self._identity)

    @property
    def costly(self) -> bool:
        return True

    def identity(self) -> dict[str, str]:
        return dict(self._identity)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        with self._lock:
            parts = [self._scored(part, prompts[at : at + len(part)]) for at, part in _parts(images, self._batch)]
        return torch.cat(parts).to(images.device)

    def close(self) -> None:
        """End the judge's process; the next call starts it again."""
        _end(self._held)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"reward {self.name} is a process, which cannot be copied or pickled; build another from its config")

    def _scored(self, images: Tensor, prompts: list[str]) -> Tensor:
        return patiently(self.name, self._tries, self._pause, partial(self._asked, request(images, prompts), len(images)))

    def _asked(self, data: bytes, count: int) -> Tensor:
        process = self._running()
        try:
            kind, answer = process.ask(b"Z", data, self._call_timeout, most(count), "reward.call_timeout")
            if kind == b"J":
                raise ValueError(f"reward {self.name} raised: {_said(answer).get('error')}")
            return scores(self.name, answer, count)
        except ValueError:  # the judge's own, and the next question may go better
            raise
        except BaseException:  # a signal too: a late answer must not be taken for the next question's
            self.close()
            raise

    def _running(self) -> Process:
        """The process, started where there is none (any more), and the same judge as before."""
        if self._held and self._held[0].alive:
            return self._held[0]
        self.close()
        process = Process([str(self._python), "-I", worker_loop.__file__, str(self._script)])
        self._held.append(process)
        try:
            start = json.dumps({"settings": self._settings, "idle_timeout": self._idle_timeout}).encode()
            _, answer = process.ask(b"J", start, self._start_timeout, most(0), "reward.start_timeout")
            found = self._known(_said(answer))
        except BaseException:
            self.close()
            raise
        if self._identity and found != self._identity:
            self.close()
            changed = ", ".join(f"{key} {self._identity[key]} -> {found[key]}" for key in found if found[key] != self._identity[key])
            raise Changed(f"reward {self.name}: identity changed mid-run ({changed}); start a new run with the judge as it is now")
        self._identity = found
        return process

    def _known(self, facts: dict[str, Any]) -> dict[str, str]:
        if "error" in facts:
            kind = MissingAsset if facts.get("missing") else ValueError
            raise kind(f"reward.script={self._script}: its judge does not load: {facts['error']}")
        allowed = FACTS | {key: r"[^\n]{0,500}" for key in KIN if key in facts}
        wrong = [key for key in {**allowed, **facts} if key not in allowed or not re.fullmatch(allowed[key], str(facts.get(key)))]
        if wrong:
            raise ValueError(
                f"reward.script={self._script}: its facts say {wrong[0]}={facts.get(wrong[0])!r}; load returns name (a word), version, "
                "weights (a sha256 or nothing), and, where they are known, backbones and datasets"
            )
        files = {"script": self._script, "requirements": self._requirements}
        hashes = {key: hashlib.sha256(file.read_bytes()).hexdigest() for key, file in files.items()}
        settings = ", ".join(f"{key}={value}" for key, value in sorted(self._given.items()))
        return {**facts, "settings": settings, **hashes}


def _here(value: Any) -> Any:
    """A setting as another folder's process reads it: a local path is absolute."""
    if not isinstance(value, str):
        return value
    return str(Path(located(value)).absolute()) if value.startswith(PACKAGED) or os.path.exists(value) else value


def _said(answer: bytes) -> dict[str, Any]:
    try:
        found = json.loads(answer)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Garbled("bytes that are no message of its loop")
    return found


def _parts(images: Tensor, size: int) -> list[tuple[int, Tensor]]:
    return [(at, images[at : at + size]) for at in range(0, len(images), size)]


def _end(held: list[Process]) -> None:
    while held:
        held.pop().end()
