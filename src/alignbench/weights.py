"""Published files of weights: found, read without running anything in them, and put into a network key by key or not at all."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from alignbench.config import located

N = TypeVar("N", bound=nn.Module)


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def found_at(path: str, revision: str | None) -> Path:
    """The file that `path` names, out of the Hub's cache where it is `owner/name:file`. Raises OSError where it cannot be had."""
    from transformers.utils import cached_file

    repository, _, name = path.rpartition(":")
    local = Path(located(path))
    return local if local.exists() or not repository else Path(cached_file(repository, name, revision=revision))


def read(file: Path) -> Any:
    """A safetensors file, or a torch file of weights alone, on the CPU. Raises OSError where there is none, ValueError where it is damaged
    or holds code.
    """
    kind = "safetensors" if file.suffix == ".safetensors" else "torch"
    try:
        return load_file(file) if kind == "safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # a damaged file can make the reader raise anything, an OSError too
        raise ValueError(f"{file.name} is truncated, or no {kind} file of weights alone ({type(error).__name__})") from error


def filled(make: Callable[[], N], found: Any, name: str, called: Callable[[str], str], unused: Collection[str]) -> N:
    """The network that `make` makes with the tensors of a file, in fp32. Raises ValueError where they are not this network's.

    found: what the file holds; name: the file's; called: what the file calls a parameter of ours; unused: what else it may hold.
    """
    with torch.device("meta"):  # no time and no random numbers for weights that are about to be replaced
        network = make()
    wanted = {called(key): (key, each.shape) for key, each in network.state_dict().items()}
    found = found if isinstance(found, dict) else {}
    faults = {
        "missing": [key for key in wanted if key not in found],
        "unexpected": [str(key) for key in found if key not in wanted and key not in unused],
        "of another shape": [key for key, (_, shape) in wanted.items() if key in found and getattr(found[key], "shape", None) != shape],
    }
    if any(faults.values()):
        said = "; ".join(f"{len(keys)} {fault}, first {keys[0]}" for fault, keys in faults.items() if keys)
        raise ValueError(f"{name} has another network's weights: {said}")
    weights: dict[str, Tensor] = {key: found[theirs] for theirs, (key, _) in wanted.items()}
    network.load_state_dict(weights, assign=True)
    return network.float()
