"""A LLaVA and a BERT with random weights, small enough to be made in every test run, in the layout of the published ones."""

from itertools import pairwise
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    DebertaConfig,
    DebertaModel,
    DebertaTokenizer,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

SPECIAL = ["<unk>", "<s>", "</s>"]
SAYS = ["a", "the", "red", "blue", "small", "circle", "square", "dog", "left", "right", "on", "is", "and", "of", "Yes", "No"]
SAYS += ["What", "happening", "in", "this", "image", "Does", "show", "Answer", "yes", "or", "no"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "red", "blue", "small", "circle", "square", "dog", "left", "on", "##s"]
TEMPLATE = "USER: <image>\n{question} ASSISTANT:"
CHAT = (  # what the published processor's template makes of one question
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def scaled(network: nn.Module, gain: float) -> None:
    """Weights so large that what goes in matters to what comes out, as in a trained network."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=gain * parameter[0].numel() ** -0.5)


def tokenizer() -> LlamaTokenizer:
    """Letters, and the words of SAYS as single tokens."""
    pieces, merges = dict.fromkeys("▁\n" + "".join(chr(n) for n in range(33, 127))), []
    for word in SAYS:
        parts = ["▁" + word[:length] for length in range(len(word) + 1)]
        merges += [pair for pair in ((a, b[len(a) :]) for a, b in pairwise(parts)) if pair not in merges]
        pieces |= dict.fromkeys(parts)
    made = LlamaTokenizer(vocab={each: n for n, each in enumerate([*SPECIAL, *pieces])}, merges=merges, add_bos_token=True)
    made.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    return made


def build(folder: Path) -> None:
    """LLaVA with CLIP's eye for 4x4 patches of 32-pixel images, and its processor."""
    words = tokenizer()
    size = len(words)
    numbers = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**numbers, image_size=32, patch_size=8),
        text_config=LlamaConfig(
            **numbers, vocab_size=size, bos_token_id=1, eos_token_id=2, pad_token_id=words.pad_token_id, max_position_embeddings=512
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = LlavaForConditionalGeneration(config)
        scaled(net, 1.5)
    spoken = words.convert_tokens_to_ids(["</s>", *(f"▁{word}" for word in SAYS)])
    with torch.no_grad():
        net.lm_head.weight[[n for n in range(size) if n not in spoken]] = 0  # it says words, not letters
    net.generation_config.eos_token_id = [2, words.convert_tokens_to_ids("▁left")]  # so that answers end, and at different lengths
    net.save_pretrained(folder)
    eye = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(eye, words, 8, "default", CHAT, num_additional_image_tokens=1).save_pretrained(folder)


def build_scorer(folder: Path) -> None:
    """BERT with three layers, for texts of 16 tokens."""
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = BertModel(config)
        scaled(net, 1.0)
    net.save_pretrained(folder)
    BertTokenizer(vocab={word: n for n, word in enumerate(WORDS)}, model_max_length=16).save_pretrained(folder)


def build_deberta(folder: Path) -> None:
    """DeBERTa as the published scorer's is: relative positions only, and a tokenizer of bytes."""
    letters = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *sorted(ByteLevel.alphabet())]
    config = DebertaConfig(
        vocab_size=len(letters),
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=64,
        type_vocab_size=0,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_biased_input=False,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = DebertaModel(config)
        scaled(net, 1.0)
    net.save_pretrained(folder)
    DebertaTokenizer(vocab={letter: n for n, letter in enumerate(letters)}, merges=[], model_max_length=64).save_pretrained(folder)
