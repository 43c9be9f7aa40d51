"""Stable Diffusion 3 and FLUX pipelines with random weights, small enough for a test: `build_sd3(folder)`, `build_flux(folder)`."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from alignbench.worlds.sandbox import TOKENS, tokenizer

WIDTH = 32  # of T5, and of the transformers' cross-attention
PIXELS = 16  # that models are built for: latents 16x8x8


def build_sd3(folder: Path) -> Path:
    """Stable Diffusion 3.5 medium's parts and schedule: dual attention in one layer, qk norm; its own size is 32 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        words, t5_words = tokenizer(), pieces()
        pipe = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=16,
                patch_size=2,
                in_channels=16,
                out_channels=16,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=WIDTH,
                caption_projection_dim=32,
                pooled_projection_dim=40,  # two rows of WIDTH, the second partly padding
                pos_embed_max_size=24,
                dual_attention_layers=(0,),
                qk_norm="rms_norm",
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(1.5305, 0.0609),
            text_encoder=CLIPTextModelWithProjection(clip(words, 16, 16)),
            tokenizer=words,
            text_encoder_2=CLIPTextModelWithProjection(clip(words, 16, 24)),
            tokenizer_2=words,
            text_encoder_3=t5(t5_words),
            tokenizer_3=t5_words,
        )
        return saved(pipe, folder)


def build_flux(folder: Path, distilled: bool = True) -> Path:
    """FLUX.1-dev's parts and schedule; the pipeline's own size is diffusers' constant, so models name `pixels`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        words, t5_words = tokenizer(), pieces()
        pipe = FluxPipeline(
            transformer=FluxTransformer2DModel(
                patch_size=1,
                in_channels=64,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                pooled_projection_dim=40,
                guidance_embeds=distilled,
                axes_dims_rope=(4, 4, 8),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=vae(0.3611, 0.1159),
            text_encoder=CLIPTextModel(clip(words, 40, 40)),
            tokenizer=words,
            text_encoder_2=t5(t5_words),
            tokenizer_2=t5_words,
        )
        return saved(pipe, folder)


def clip(words: CLIPTokenizer, width: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def pieces() -> T5Tokenizer:
    """Letters, and the space that SentencePiece writes."""
    letters = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=[(letter, -float(i)) for i, letter in enumerate(letters)], extra_ids=0)


def t5(words: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=len(words), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=4))


def vae(scale: float, shift: float) -> AutoencoderKL:
    """Reduces by 2."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=scale,
        shift_factor=shift,
    )


def saved(pipe: DiffusionPipeline, folder: Path) -> Path:
    """In eval mode: T5's dropout would otherwise change images from call to call. Zero-initialised output layers get weights too."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
            for parameter in part.parameters():
                if parameter.ndim > 1 and not parameter.any():
                    nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    pipe.save_pretrained(folder)
    return folder
