"""What the machine has for a run: libraries, devices, memory, a folder that can be written."""

import importlib.metadata
import importlib.util
import os
import platform
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

MAIN = ("torch", "lightning", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class Row:
    name: str
    state: Literal["ok", "warning", "missing"]
    what: str
    remedy: str = ""  # what to type


def amount(size: float) -> str:
    """Bytes, in decimal units as download sizes are."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def one_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- libraries


def versions() -> Row:
    """Everything that alignbench requires; the line names the large ones, and whatever is wrong."""
    there = f"python {platform.python_version()}, " + ", ".join(f"{name} {installed(name) or 'none'}" for name in MAIN)
    try:
        metadata = importlib.metadata.metadata("alignbench")
    except importlib.metadata.PackageNotFoundError:
        return Row("versions", "warning", f"{there}; alignbench itself is not installed, so what it requires is not known", "make setup")
    if not SpecifierSet(metadata["Requires-Python"] or "").contains(platform.python_version(), prereleases=True):
        what = f"python {platform.python_version()}, but alignbench requires {metadata['Requires-Python']}"
        return Row("versions", "missing", what, "make a new environment with that Python, then `make setup`")
    wrong = [need for need in map(Requirement, importlib.metadata.requires("alignbench") or []) if not fits(need)]
    if wrong:
        what = ", ".join(f"{need.name} {installed(need.name) or 'is not installed'} (required: {need.specifier})" for need in wrong)
        return Row("versions", "missing", what, "pip install " + " ".join(f"'{need.name}{need.specifier}'" for need in wrong))
    return Row("versions", "ok", there)


def fits(need: Requirement) -> bool:
    if need.name == "torchvision" or (need.marker and not need.marker.evaluate({"extra": ""})):
        return True  # torchvision has its own row
    version = installed(need.name)
    return version is not None and need.specifier.contains(version, prereleases=True)


def torchvision() -> Row:
    """Its binary must be of the same build as torch's; where it is not, libraries that only look for it fail too."""
    if importlib.util.find_spec("torchvision") is None:
        return Row("torchvision", "ok", "not installed; rewards on open_clip would need it")
    own, torch = installed("torchvision") or "", installed("torch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("torchvision")
    except Exception as error:  # RuntimeError: operator torchvision::nms does not exist; ImportError; OSError
        what = f"{own} is not of the same build as torch {torch} ({one_line(error)}); lightning and peft cannot be imported either".strip()
        return Row("torchvision", "missing", what, f"pip uninstall torchvision, or install the one that was built for torch {torch}")
    return Row("torchvision", "ok", f"{own} imports beside torch {torch}".strip())


# --- device


def gpus() -> int:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver that is too old; the row says that there is no GPU
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def kind(config: dict[str, Any]) -> str:
    """What Lightning would take: cuda, mps, cpu or tpu."""
    import torch

    wanted = config["trainer"]["accelerator"]
    if wanted in ("auto", "gpu"):
        wanted = "cuda" if gpus() else "mps" if torch.backends.mps.is_available() else "cpu" if wanted == "auto" else "cuda"
    return wanted


def device(config: dict[str, Any]) -> Row:
    wanted, count = config["trainer"]["accelerator"], config["trainer"]["devices"]
    try:
        import torch

        taken, there = kind(config), gpus()
    except Exception as error:  # a torch whose libraries are not there
        return Row("device", "missing", f"torch cannot be imported ({one_line(error)})", "make setup")
    asked = f"trainer.accelerator={wanted}"
    if taken == "cuda":
        if not there:
            why = f"torch {torch.__version__} is a CPU build" if torch.version.cuda is None else "torch sees none (`nvidia-smi` lists them)"
            return Row("device", "missing", f"{asked}, but there is no GPU: {why}", "trainer.accelerator=auto, or a machine with a GPU")
        names = ", ".join(
            f"{torch.cuda.get_device_name(index)} ({amount(free_memory(index) or 0)} free)" for index in range(min(there, count))
        )
        if count > there:
            return Row("device", "missing", f"trainer.devices={count}, but there is {there} GPU: {names}", f"trainer.devices={there}")
        return Row("device", "ok", f"{names}; {asked}")
    if taken == "mps" and not torch.backends.mps.is_available():
        return Row("device", "missing", f"{asked}, but this is no machine with Metal", "trainer.accelerator=auto")
    if taken in ("mps", "tpu"):
        return Row("device", "warning", f"{asked}: {taken}, which has not been tried")
    free = free_memory(None)
    cores = f"{count} processes on " * (count > 1) + f"{os.cpu_count()} cores"
    return Row("device", "ok", f"cpu ({cores}{f', {amount(free)} of memory free' if free else ''}); {asked}")


def free_memory(gpu: int | None) -> float | None:
    """Bytes that are free on a GPU, or (None) in this machine; None where that cannot be asked."""
    try:
        if gpu is not None:
            import torch

            return float(torch.cuda.mem_get_info(gpu)[0])
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    except Exception:  # no /proc; a GPU in exclusive use
        return None


def free(config: dict[str, Any]) -> float | None:
    """Bytes that are free for each of the run's processes, on the fullest device that it would take."""
    count = config["trainer"]["devices"]
    try:
        if kind(config) == "cuda":
            found = [free_memory(index) for index in range(min(gpus(), count))]
            return min((each for each in found if each is not None), default=None)
    except Exception:  # torch is broken, as the device row says
        return None
    there = free_memory(None)
    return there and there / count


# --- disk


def nearest(path: Path) -> Path:
    """The path, or its first parent that is there."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if os.path.isdir(each))  # a Path raises where a name is too long


def output(root: Path) -> Row:
    """The write and the rename that every checkpoint is made of; what is made for it is removed."""
    made: list[Path] = []
    probe, renamed = (root / f".alignbench-doctor-{os.getpid()}{suffix}" for suffix in (".tmp", ""))
    try:
        for folder in reversed([root, *root.parents]):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        with probe.open("wb") as stream:
            stream.write(b"alignbench")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(probe, renamed)
    except OSError as error:
        return Row(
            "output", "missing", f"output={root}: cannot be written ({error.strerror or error})", "output=<a folder that can be written>"
        )
    finally:
        for file in (probe, renamed):
            with suppress(OSError):
                file.unlink()
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
    return Row("output", "ok", f"{root} can be written" + (", and will be made" if root in made else ""))
