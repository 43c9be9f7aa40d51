"""The other end of reward=worker: asks an adapter script for scores inside its own environment. Standard library and numpy only.

Started as `python worker_loop.py SCRIPT`. A message is a kind (J: JSON, Z: npz), its length in 8 bytes, and so many bytes. The first that
comes in says the settings and how long to wait for the next; its answer says who the judge is. Nothing is pickled, here or there. The
functions up to `first_line` are the other side's too; an environment may have an older Python (3.9) or numpy than ours.
"""

from __future__ import annotations

import ctypes
import importlib.util
import io
import json
import os
import queue
import signal
import sys
import threading
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

HEAD = 9  # bytes before a message's own: its kind and its length
SAID = 2000  # characters of an error that are passed on


def to_npz(**arrays: Any) -> bytes:
    """Named arrays as an uncompressed npz file's bytes: compressing an image takes 30 times as long and more."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return out.getvalue()


def from_npz(data: bytes, most: int) -> dict[str, Any]:
    """The arrays of an npz file's bytes, by name. Raises ValueError where it is none, holds objects, or unpacks to over `most` bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(each.file_size for each in archive.infolist())
            if size > most:
                raise ValueError(f"unpacks to {size} bytes, over the {most} that are allowed")
            return {each.removesuffix(".npy"): _array(archive, each) for each in archive.namelist()}
    except Exception as error:  # damaged bytes can make the readers raise anything
        raise ValueError(f"no npz file of plain arrays ({first_line(error) or type(error).__name__})") from error


def _array(archive: zipfile.ZipFile, name: str) -> Any:
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def to_words(prompts: list[str]) -> Any:
    """Prompts as the array of an npz file: the bytes of a JSON list."""
    return np.frombuffer(json.dumps(prompts).encode(), np.uint8)


def from_words(array: Any) -> Any:
    return json.loads(array.tobytes())


def head(kind: bytes, data: bytes) -> bytes:
    return kind + len(data).to_bytes(8, "big")


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:SAID]


def _end_with_parent() -> None:
    """On Linux, even from inside a library's loop that never looks at anything: the kernel ends this process with its parent's thread."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _read(stream: BinaryIO, inbox: queue.Queue[tuple[bytes, bytes]]) -> None:
    """In a thread, so that the end of the input is seen while the judge is busy: the parent closed it, or is no more."""
    while len(start := stream.read(HEAD)) == HEAD:
        size = int.from_bytes(start[1:], "big")
        data = stream.read(size)
        if len(data) < size:
            break
        inbox.put((start[:1], data))
    os._exit(0)


def _loaded(path: str, settings: dict[str, Any]) -> tuple[dict[str, str], Callable[..., Any]]:
    """The adapter's facts, checked, and its function."""
    spec = importlib.util.spec_from_file_location("adapter", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["adapter"] = module
    spec.loader.exec_module(module)
    facts, score = module.load(settings)
    return {key: "; ".join(value) if isinstance(value, (list, tuple)) else str(value) for key, value in facts.items()}, score


def _scores(score: Callable[..., Any], data: bytes) -> Any:
    message = from_npz(data, 2 * len(data) + 4096)
    found = score(message["images"], from_words(message["prompts"]))
    found = np.asarray(found.detach().cpu() if hasattr(found, "detach") else found)  # a torch tensor may still hold its graph
    if found.dtype == object:
        raise TypeError("its scores are Python objects, not numbers")
    return found


def main() -> None:
    out, into = os.dup(1), os.dup(0)  # the wire; what libraries print or ask for goes elsewhere
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _end_with_parent()
    inbox: queue.Queue[tuple[bytes, bytes]] = queue.Queue()
    threading.Thread(target=_read, args=(os.fdopen(into, "rb"), inbox), daemon=True).start()
    answers = os.fdopen(out, "wb")

    def answer(kind: bytes, data: bytes) -> None:
        answers.write(head(kind, data))
        answers.write(data)
        answers.flush()

    start = json.loads(inbox.get()[1])
    try:
        facts, score = _loaded(sys.argv[1], start["settings"])
    except Exception as error:
        said = {"error": f"{first_line(error)} ({type(error).__name__})", "missing": isinstance(error, OSError)}
        answer(b"J", json.dumps(said).encode())
        return
    answer(b"J", json.dumps(facts).encode())
    while True:
        try:
            _, data = inbox.get(timeout=start["idle_timeout"])
        except queue.Empty:
            return
        try:
            answer(b"Z", to_npz(scores=_scores(score, data)))
        except Exception as error:
            answer(b"J", json.dumps({"error": f"{first_line(error)} ({type(error).__name__})"}).encode())


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # at once: a judge's threads have nothing to finish
