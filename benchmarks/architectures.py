"""Pipelines with random weights: the real architectures of SD 1.5 and SDXL, and a small one of SD's shape. Nothing is downloaded.

Images mean nothing; time and memory do not depend on what the weights are.
"""

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from alignbench.worlds.sandbox import tokenizer

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1, "set_alpha_to_one": False}


def text(hidden: int, layers: int, heads: int, projection: int | None, tiny: bool) -> Any:
    words = tokenizer()
    hidden, layers, heads, projection = (32, 1, 2, projection and 32) if tiny else (hidden, layers, heads, projection)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=projection or hidden,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def vae(tiny: bool) -> AutoencoderKL:
    blocks = (8, 8) if tiny else (128, 256, 512, 512)
    return AutoencoderKL(
        block_out_channels=blocks,
        down_block_types=["DownEncoderBlock2D"] * len(blocks),
        up_block_types=["UpDecoderBlock2D"] * len(blocks),
        latent_channels=4,
        layers_per_block=2,
        norm_num_groups=8 if tiny else 32,
        sample_size=32 if tiny else 512,
    )


def sd15_unet(tiny: bool) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8 if tiny else 64,
        block_out_channels=(8, 16) if tiny else (320, 640, 1280, 1280),
        cross_attention_dim=32 if tiny else 768,
        attention_head_dim=2 if tiny else 8,
        norm_num_groups=8 if tiny else 32,
        down_block_types=["CrossAttnDownBlock2D"] * (1 if tiny else 3) + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (1 if tiny else 3),
    )


def sd15(folder: Path, tiny: bool) -> None:
    StableDiffusionPipeline(
        vae=vae(tiny),
        text_encoder=text(768, 12, 12, None, tiny),
        tokenizer=tokenizer(),
        unet=sd15_unet(tiny),
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def sdxl_unet(tiny: bool) -> UNet2DConditionModel:
    pooled, times = (32, 8) if tiny else (1280, 256)
    return UNet2DConditionModel(
        sample_size=8 if tiny else 128,
        block_out_channels=(8, 16, 16) if tiny else (320, 640, 1280),
        norm_num_groups=8 if tiny else 32,
        cross_attention_dim=64 if tiny else 2048,
        attention_head_dim=2 if tiny else (5, 10, 20),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 1, 2) if tiny else (1, 2, 10),
        addition_embed_type="text_time",
        addition_time_embed_dim=times,
        projection_class_embeddings_input_dim=pooled + 6 * times,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    )


def sdxl(folder: Path, tiny: bool) -> None:
    first, second = text(768, 12, 12, None, tiny), text(1280, 32, 20, 1280, tiny)
    StableDiffusionXLPipeline(
        vae=vae(tiny),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=sdxl_unet(tiny),
        scheduler=DDIMScheduler(**SCHEDULER),
        add_watermarker=False,
    ).save_pretrained(folder)


def small_unet(size: int) -> UNet2DConditionModel:
    """3.15 million parameters, latents of `size`."""
    return UNet2DConditionModel(
        sample_size=size,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=8,
    )


def small(folder: Path, size: int) -> None:
    """Latents [4,size,size], images four times as large."""
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(16, 24, 32),
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=4 * size,
            mid_block_add_attention=False,
        ),
        text_encoder=text(64, 2, 4, None, tiny=False),
        tokenizer=tokenizer(),
        unet=small_unet(size),
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
