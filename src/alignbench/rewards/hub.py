"""Networks in transformers' own layout, on the Hub or in a folder: loaded whole, from safetensors and without anybody's code, or not at all."""

from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError

from alignbench.config import MissingAsset, located
from alignbench.rewards.weights import first_line


def whole(kind: Any, path: str, revision: str | None, dtype: "torch.dtype | str", spare: str) -> Any:
    """The network of a transformers class `kind`, frozen. Raises ValueError where a weight is not in its files but in the part `spare`."""
    network, found = kind.from_pretrained(
        located(path), revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    missing = sorted(key for key in found["missing_keys"] if not key.startswith(f"{spare}."))
    if missing:  # transformers would draw them at random and go on
        raise ValueError(f"another network's weights: {len(missing)} missing, first {missing[0]}")
    return network.eval().requires_grad_(False)


def worded(tokenizer: Any) -> Any:
    """The tokenizer. Raises ValueError where it knows no words: transformers makes an empty one of a vocabulary that it cannot find."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError("there is no vocabulary")
    return tokenizer


def had(load: Callable[[], Any], key: str, fetch: str) -> Any:
    """What `load` gives. Raises MissingAsset where it cannot: one line with the key, the reason, and `fetch`, which says what to do."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return load()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise MissingAsset(f"{key}: {first_line(error)}; {fetch}") from error
