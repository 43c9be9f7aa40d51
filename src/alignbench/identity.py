"""What a frozen network's answers depend on beside its input, as plain text: name, settings and the hash of its weights."""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

ASIDE = ("training", "backbones", "datasets", "members")  # attributes that no answer depends on
PLAIN = (str, int, float, bool, tuple, list, type(None))  # attributes that are settings


def identity(module: nn.Module, name: str) -> dict[str, str]:
    """name, settings (the module's own plain attributes, its tokenizers' vocabularies) and weights: a sha256, "" where there are none."""
    plain = {key: each for key, each in vars(module).items() if isinstance(each, PLAIN) and key[0] != "_" and key not in ASIDE}
    weights = module.state_dict()
    settings = ", ".join(f"{key}={each}" for key, each in sorted(plain.items()))
    for words in _vocabularies(module):
        settings += f", vocabulary={hashlib.sha256(repr(sorted(words.items())).encode()).hexdigest()[:16]}"
    return {"name": name, "settings": settings, "weights": digest(weights) if weights else ""}


def digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names and bytes: two networks with one digest have the same weights bit for bit."""
    total = hashlib.sha256()
    for name, each in sorted(weights.items()):
        total.update(name.encode() + each.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _vocabularies(module: nn.Module) -> Iterator[dict[str, int]]:
    """Of the tokenizers in a module's parts: words under other numbers are other answers."""
    for part in module.modules():
        for each in vars(part).values():
            tokenizer = getattr(each, "tokenizer", each)  # a processor has one
            if hasattr(tokenizer, "get_vocab"):
                yield tokenizer.get_vocab()
