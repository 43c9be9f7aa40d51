"""Weights that a config names, looked for without loading any: local files, package://, the Hub's cache, and one question to the Hub."""

import importlib
import json
import math
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbench.config import located

PATIENCE = 10  # seconds that the Hub has for an answer
OFFLINE = "HF_HUB_OFFLINE is set"
NETWORKS = re.compile(r"unet|transformer|vae|text_encoder")  # components of a pipeline that have weights
NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")
REVISIONS = {"path": "revision", "init": "init_revision", "scorer": "scorer_revision", "head": "", "tokenizer": ""}  # what names weights
OTHERS = ("*.safetensors", "*.bin", "*.pt", "*.pth")  # rewards of other libraries


class Damaged(ValueError):
    """Files that are there but not whole; says which. cut: one is there and damaged, which no second download would mend by itself."""

    def __init__(self, what: str, cut: bool = False):
        super().__init__(what)
        self.cut = cut


@dataclass(frozen=True)
class Asset:
    key: str
    value: str
    revision: str | None = None
    gated: bool = False
    gb: float | None = None  # of the files that are loaded; None: not stated
    licence: str | None = None
    without: tuple[str, ...] = ()  # components of a pipeline that are not loaded

    @property
    def hub(self) -> tuple[str, str | None] | None:
        """The Hub's id, and the file for `id:file`; None for what can only be local."""
        match = None if self.value.endswith(".png") else re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)(?::([^:]+))?", self.value)
        return (match[1], match[2]) if match else None

    @property
    def command(self) -> str:
        repo, file = self.hub or (self.value, None)
        return " ".join(["hf download", repo, *([file] if file else []), *(["--revision", self.revision] if self.revision else [])])


def made_by(node: dict[str, Any]) -> Any:
    """The class that a checked node names, or None where it cannot be imported (a run will say why)."""
    module, _, name = str(node.get("_target_", "")).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception:  # whatever a broken library raises while it is imported
        return None


def named(config: dict[str, Any]) -> list[Asset]:
    """The weights of the model, the reward, and the judges and feature spaces that only evaluate."""
    model = config["model"]
    nodes = {"model": model, "reward": config["reward"]}
    nodes |= {f"eval.judges[{index}]": judge for index, judge in enumerate(config["eval"]["judges"]) if isinstance(judge, dict)}
    nodes |= {f"eval.features[{index}]": space for index, space in enumerate(config["eval"]["features"])}
    nodes |= {"eval.lpips": config["eval"]["lpips"]} if config["eval"]["lpips"] else {}
    found = []
    for prefix, node in nodes.items():
        for key, value, own in _strings(node):
            name = key.rpartition(".")[2]
            if name not in REVISIONS:
                continue
            revision = own.get(REVISIONS[name])
            gated, gb, licence, without = bool(node.get("gated")), None, None, ()
            if prefix != "model" and name == "path":
                gb = getattr(made_by(own), "size_gb", None) or None
            if (prefix, key) == ("model", "path"):
                gb, licence, without = model.get("download_gb"), model.get("licence"), tuple(getattr(made_by(model), "without", ()))
            found.append(Asset(f"{prefix}.{key}", value, revision, gated, gb, licence, without))
    return found


def _strings(node: dict[str, Any], above: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each string with its key and the node that it is a value of: a mix has nodes in a list."""
    for name, value in node.items():
        if isinstance(value, str):
            yield f"{above}{name}", value, node
        for mark, each in ({f"[{index}]": item for index, item in enumerate(value)} if isinstance(value, list) else {"": value}).items():
            if isinstance(each, dict):
                yield from _strings(each, f"{above}{name}{mark}.")


# --- here or not


def here(asset: Asset) -> Path | None:
    """The local file or folder, whole; None where there is none. Raises Damaged where it is not whole."""
    path = Path(located(asset.value))
    if not path.exists():
        cached = _cached(asset)
        if cached is None:
            return None
        path = cached
    whole(path, asset)
    return path


def _cached(asset: Asset) -> Path | None:
    if asset.hub is None:
        return None
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, file = asset.hub
    if file:
        found = try_to_load_from_cache(repo, file, revision=asset.revision)
        return Path(found) if isinstance(found, str) else None
    try:
        return Path(snapshot_download(repo, revision=asset.revision, local_files_only=True))
    except LocalEntryNotFoundError as error:  # the cache may hold what is loaded and not the whole repository; `whole` judges that
        folder = getattr(error, "snapshot_path", None)
        return Path(folder) if folder else None
    except ValueError:  # not an id after all
        return None


def whole(path: Path, asset: Asset) -> None:
    """Raises Damaged where a folder lacks a file that loading it needs, or a safetensors file is cut short."""
    if path.is_file():
        if path.suffix == ".safetensors":
            header(path)
    elif (path / "model_index.json").is_file():
        for name, made in _json(path / "model_index.json").items():
            if name.startswith("_") or name in asset.without or not isinstance(made, list) or None in made:
                continue
            if NETWORKS.match(name):
                _network(path / name)
            elif name.startswith("tokenizer") and not any(file for names in VOCABULARIES for file in (path / name).glob(names)):
                raise Damaged(f"no vocabulary in {name}")  # transformers would make an empty one, and say nothing
            elif not any((path / name).glob("*.json")):
                raise Damaged(f"no {name}")
    elif asset.key == "model.path":
        raise Damaged("no model_index.json")
    elif asset.key.endswith(".tokenizer"):
        if not any(file for names in VOCABULARIES for file in path.glob(names)):
            raise Damaged("no vocabulary")
    elif (path / "config.json").is_file() or asset.key == "model.init":
        _network(path, ours=asset.key == "model.init")
    elif not any(file.is_file() for file in path.rglob("*")):
        raise Damaged("no files")


def _network(folder: Path, ours: bool = True) -> None:
    """ours: loaded by diffusers or transformers from safetensors."""
    if not (folder / "config.json").is_file():
        raise Damaged(f"no {folder.name}/config.json")
    files = _weights(folder)
    if not files and (ours or not any(file for pattern in OTHERS for file in folder.glob(pattern) if file.is_file())):
        raise Damaged(f"no weights in {folder.name}")
    for file in files:
        header(file)


def _weights(folder: Path) -> list[Path]:
    """The safetensors files that loading a folder reads, whether they are there or not; none where there is neither file nor index."""
    for name in NAMES:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return [folder / shard for shard in sorted(set(_json(index).get("weight_map", {}).values()))]
    return []


def _json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(f"{file.name} cannot be read") from error
    return read if isinstance(read, dict) else {}


def header(file: Path) -> dict[str, dict[str, Any]]:
    """Tensors' names, types and shapes from the head of a safetensors file; no tensor is read. Raises Damaged where it is cut short."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > 100_000_000:  # the format's own limit; a pointer file of git-lfs reads as more
                raise ValueError
            tensors = json.loads(stream.read(length))
        tensors.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        if file.stat().st_size != 8 + length + end:
            raise ValueError
    except FileNotFoundError as error:
        raise Damaged(f"no {file.parent.name}/{file.name}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{file.parent.name}/{file.name} is damaged or cut short", cut=True) from error
    return tensors


# --- sizes


@dataclass(frozen=True)
class Sizes:
    """Parameters, counted from the headers of a pipeline that is here."""

    denoiser: int
    frozen: int  # the whole pipeline
    trained: int  # of one network that is trained: a full copy, or a LoRA


def sizes(folder: Path, asset: Asset, config: dict[str, Any]) -> Sizes:
    counts: dict[str, int] = {}
    for part in sorted(each for each in folder.iterdir() if each.is_dir() and NETWORKS.match(each.name) and each.name not in asset.without):
        counts[part.name] = sum(math.prod(tensor["shape"]) for file in _weights(part) for tensor in header(file).values())
    denoiser = "unet" if "unet" in counts else "transformer"
    shapes = [(name, tensor["shape"]) for file in _weights(folder / denoiser) for name, tensor in header(file).items()]
    trained = counts.get(denoiser, 0)
    if config["adapter"] == "lora":
        rank, targets = config["lora"]["rank"], tuple(config["lora"]["targets"])
        hit = [shape for name, shape in shapes if f".{name.removesuffix('.weight')}".endswith(tuple(f".{target}" for target in targets))]
        trained = sum(rank * (shape[0] + math.prod(shape[1:])) for shape in hit if len(shape) > 1)
    return Sizes(counts.get(denoiser, 0), sum(counts.values()), trained if config["epochs"] else 0)


# --- the Hub


def asked(asset: Asset) -> tuple[str, str]:
    """One bounded question: `there`, `gated`, `absent` with the reason, or `silent` where there is no answer."""
    from huggingface_hub import HfApi, get_token, is_offline_mode
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if is_offline_mode():
        return "silent", OFFLINE
    repo, file = asset.hub or (asset.value, None)
    answer: list[tuple[str, str]] = []

    def ask() -> None:
        try:
            info = HfApi().model_info(repo, revision=asset.revision, timeout=PATIENCE)
        except GatedRepoError:
            answer.append(("gated", "its terms are not accepted yet"))
        except RevisionNotFoundError:
            answer.append(("absent", f"the Hub has no revision {asset.revision} of it"))
        except RepositoryNotFoundError:
            answer.append(("absent", "the Hub has no such repository, or it is private"))
        except Exception as error:  # of httpx, of the system, of a proxy: no answer, whatever its name
            answer.append(("silent", f"the Hub gives no answer ({type(error).__name__})"))
        else:
            files = {each.rfilename for each in info.siblings or []}
            if file and file not in files:
                answer.append(("absent", f"the Hub's repository has no file {file}"))
            elif (info.gated or asset.gated) and not get_token():
                answer.append(("gated", "its terms must be accepted and no token is here"))
            else:
                answer.append(("there", "gated: its terms must have been accepted" if info.gated else ""))

    thread = threading.Thread(target=ask, daemon=True)  # a name server may take longer than any timeout
    thread.start()
    thread.join(PATIENCE + 1)
    return answer[0] if answer else ("silent", f"the Hub gives no answer in {PATIENCE} s")
