"""Networks in transformers' layout, on the Hub or in a folder: loaded whole, from safetensors and without others' code, or not at all."""

from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError

from alignbench.config import MissingAsset, located
from alignbench.weights import first_line


def whole(kind: Any, path: str, revision: str | None, dtype: "torch.dtype | str", spare: str) -> Any:
    """The network of a transformers class `kind`, frozen. Raises ValueError where its files lack a weight, but for the part `spare`."""
    network, found = kind.from_pretrained(
        located(path),
        revision=revision,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are named below
    )
    faults = {
        "of another shape": sorted(str(key) for key, *_ in found["mismatched_keys"]),
        "missing": sorted(key for key in found["missing_keys"] if not key.startswith(f"{spare}.")),
    }
    for fault, keys in faults.items():
        if keys:  # transformers would draw them at random and go on
            raise ValueError(f"another network's weights: {len(keys)} {fault}, first {keys[0]}")
    return network.eval().requires_grad_(False)


def worded(tokenizer: Any) -> Any:
    """The tokenizer. Raises ValueError where it knows no words: transformers makes an empty one of a vocabulary that it cannot find."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError("there is no vocabulary")
    return tokenizer


def obtained(load: Callable[[], Any], key: str, fetch: str) -> Any:
    """What `load` gives. Raises MissingAsset where it cannot: one line with the key, the reason, and `fetch`, which says what to do."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return load()
    except SafetensorError as error:
        raise MissingAsset(f"{key}: a safetensors file is truncated or damaged ({first_line(error)}); {fetch}") from error
    except (OSError, ValueError, RuntimeError, StrictDataclassError) as error:
        raise MissingAsset(f"{key}: {first_line(error).partition('. ')[0].rstrip(': ')}; {fetch}") from error
