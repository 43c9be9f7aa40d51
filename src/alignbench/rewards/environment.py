"""Environments of judges that cannot live in this one: built once by uv from a requirement file, and kept in the user's cache."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from alignbench.config import MissingAsset, conf_folder, located
from alignbench.rewards.wire import TOKEN

ANSWER = 60  # seconds for an interpreter to say what it is
ALWAYS = "numpy"  # for worker_loop.py
ASK = "import platform, sysconfig; print(platform.python_implementation(), platform.python_version(), sysconfig.get_platform())"


def requirement_file(named: str) -> Path:
    """A file, or by its bare name one of conf/reward/env. Raises MissingAsset where there is none."""
    file = conf_folder() / "reward" / "env" / named if Path(named).name == named else Path(located(named))
    if not file.is_file():
        raise MissingAsset(f"reward.requirements={named}: there is no file {file}; write ./{named} for a file in this folder")
    return file.absolute()


def interpreter(python: str | None) -> str:
    """The interpreter that an environment is made with: the running one, a command, a path or a version such as 3.11."""
    found = sys.executable if python is None else shutil.which(python) or shutil.which(f"python{python}")
    if found is None:
        raise MissingAsset(f"reward.python={python}: no such interpreter here; name one that is: a path or a version such as 3.11")
    return found


def environment(requirements: Path, python: str | None, seconds: float) -> Path:
    """The interpreter of the environment that has `requirements`, built if it is not there. Raises MissingAsset where it cannot be."""
    base = interpreter(python)
    facts = ""
    with suppress(OSError, subprocess.TimeoutExpired):  # no interpreter after all
        facts = subprocess.run([base, "-I", "-c", ASK], capture_output=True, text=True, timeout=ANSWER, check=False).stdout.strip()
    if not facts:
        raise MissingAsset(f"reward.python={python}: {base} does not run; name another interpreter")
    text = requirements.read_text(encoding="utf-8")
    digest = hashlib.sha256("\0".join([text, facts]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignbench" / "environments" / digest
    ready = folder / "bin" / "python"
    if ready.exists():
        return ready
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.with_suffix(".lock"), time.monotonic() + seconds):
            if not ready.exists():  # while this one waited, another may have built it
                _build(folder, requirements, base, seconds)
    except TimeoutError:
        raise MissingAsset(f"{folder}: not built within reward.build_timeout={seconds:g} s; set a longer one") from None
    except OSError as error:
        raise MissingAsset(f"{folder}: cannot be built there ({error.strerror}); set XDG_CACHE_HOME to a folder with room") from error
    return ready


@contextmanager
def _alone(lock: Path, until: float) -> Iterator[None]:
    with lock.open("w") as file:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > until:
                raise TimeoutError
            time.sleep(0.2)
        yield


def _build(folder: Path, requirements: Path, base: str, seconds: float) -> None:
    """In a folder beside it, renamed when all is there; `--relocatable` lets its scripts go along."""
    uv, start = _uv(), time.monotonic()
    first = requirements.read_text(encoding="utf-8").partition("\n")[0]
    what = f" ({first.lstrip('# ')})" if first.startswith("#") else ""
    print(f"alignbench: building the environment of {requirements}{what} in {folder}, once", file=sys.stderr, flush=True)
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)  # of one that was killed
    variables = {key: each for key, each in os.environ.items() if key not in (TOKEN, "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    variables |= {"UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1"}
    try:
        for words in (
            ["venv", "--no-project", "--relocatable", "--python", base, str(part)],
            ["pip", "install", "--python", str(part / "bin" / "python"), "-r", str(requirements), ALWAYS],
        ):
            left = seconds - (time.monotonic() - start)
            with tempfile.TemporaryFile("w+") as said:
                try:
                    done = subprocess.run([uv, *words], env=variables, stdout=said, stderr=said, timeout=max(left, 0.1), check=False)
                except subprocess.TimeoutExpired:
                    raise TimeoutError from None
                said.seek(0)
                lines = [line.strip(" \n│╰─▶×") for line in said if line.strip()]
            if done.returncode:
                last = lines[-1].removeprefix("cause: ") if lines else f"uv ended with {done.returncode}"
                raise MissingAsset(f"{requirements}: its environment cannot be built ({last}); mend that file or the network")
        shutil.rmtree(folder, ignore_errors=True)  # one whose interpreter was removed
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9
    print(f"alignbench: built it in {time.monotonic() - start:.0f} s, {size:.2g} GB", file=sys.stderr, flush=True)


def _uv() -> str:
    with suppress(ImportError, FileNotFoundError):
        import uv

        return str(uv.find_uv_bin())
    if found := shutil.which("uv"):
        return found
    raise MissingAsset("uv is not here, which builds the environments of judges: `pip install uv`, or put it on the path")
