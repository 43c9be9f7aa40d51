"""PixArt pipelines with random weights, small enough to be made in every test run."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

WIDTH = 24  # of the transformer: divisible by 3, for the 1024-pixel weights' conditions, and by 4, for its positions


def _components(sample_size: int, conditions: bool, scale: float) -> dict[str, Any]:
    letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], extra_ids=0)
    text = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            "text_encoder": T5EncoderModel(text),
            "transformer": PixArtTransformer2DModel(
                sample_size=sample_size,
                num_layers=2,
                num_attention_heads=2,
                attention_head_dim=WIDTH // 2,
                cross_attention_dim=WIDTH,
                caption_channels=16,
                in_channels=4,
                out_channels=8,
                dropout=0.1,  # so that a network left in train mode is seen
                use_additional_conditions=conditions,
            ),
            "vae": AutoencoderKL(
                block_out_channels=(8, 8, 16),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                norm_num_groups=4,
                sample_size=4 * sample_size,
                scaling_factor=scale,
            ),
        }
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", prediction_type="epsilon")
    return {"tokenizer": tokenizer, "scheduler": scheduler, **{name: part.eval() for name, part in parts.items()}}


def build(folder: Path, sample_size: int = 8, conditions: bool = False) -> None:
    """PixArt-alpha, under the class name that the real one was published with. conditions: as its 1024-pixel weights, sample_size 128."""
    PixArtAlphaPipeline(**_components(sample_size, conditions, scale=0.18215)).save_pretrained(folder)
    for file, key in [(folder / "model_index.json", "transformer"), (folder / "transformer" / "config.json", "_class_name")]:
        facts = json.loads(file.read_text())
        facts[key] = ["diffusers", "Transformer2DModel"] if key == "transformer" else "Transformer2DModel"
        file.write_text(json.dumps(facts, indent=2))


def build_sigma(folder: Path) -> None:
    """PixArt-Sigma."""
    PixArtSigmaPipeline(**_components(8, conditions=False, scale=0.13025)).save_pretrained(folder)
