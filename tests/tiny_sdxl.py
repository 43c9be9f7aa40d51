"""A Stable Diffusion XL pipeline of random weights for the tests: latents 8x8, pictures 32x32, the sandbox's tokenizer."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from alignbench.worlds.sandbox import TOKENS, tokenizer

WIDTH, POOLED, TIME = 32, 80, 8  # of each text encoder, of the pooled embedding (wider than both together), of one size's embedding
SCHEDULE = {  # stabilityai/stable-diffusion-xl-base-1.0
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def build(folder: Path) -> None:
    """Write the pipeline, the same at every call."""
    words = tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=64,
        projection_dim=POOLED,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(16, 32),
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME,
            projection_class_embeddings_input_dim=POOLED + 6 * TIME,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(16, 16, 32),
            norm_num_groups=8,
            latent_channels=4,
            sample_size=32,
            scaling_factor=0.13025,
        )
        encoders = CLIPTextModel(text), CLIPTextModelWithProjection(text)
    pipe = StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=encoders[0].eval(),
        text_encoder_2=encoders[1].eval(),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler.from_config(SCHEDULE),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
