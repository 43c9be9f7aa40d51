"""An epoch of DDPO with LoRA on the full architecture of SD 1.5 or SDXL with random weights: peak memory and images a second.

    python benchmarks/ddpo_lora.py sd15 sdxl              # on a GPU, bf16; writes benchmarks/results/<device>.json
    python benchmarks/ddpo_lora.py sd15 --tiny --cpu      # the same path in seconds, for a test; prints and writes nothing

Nothing is downloaded. Images mean nothing; time and memory do not depend on what the weights are.
"""

import argparse
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from alignbench.__main__ import main as alignbench
from alignbench.compose import compose
from alignbench.worlds.sandbox import tokenizer

RESULTS = Path(__file__).parent / "results"
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


def measured(family: str, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    pipeline = work / family
    {"sd15": sd15, "sdxl": sdxl}[family](pipeline, options.tiny)
    images, steps = (4, 2) if options.tiny else (options.images, options.steps)
    words = [
        "method=ddpo",
        f"model={family}",
        f"model.path={pipeline}",
        "model.schedule={}",
        "adapter=lora",
        "reward=jpeg_compressibility",
        "recipe=none",
        f"trainer={'default' if options.cpu else 'gpu'}",
        f"trainer.micro_batch={options.micro_batch}",
        f"method.images={images}",
        f"method.batch={images}",
        f"sampler.steps={steps}",
        "sampler.deterministic=0",
        "epochs=1",
        "eval=quick",
        "eval.judges=[]",
        "eval.features=[]",
        "eval.prompts=2",
        "eval.images=2",
        "eval.validation_prompts=1",
        "eval.every=0",
        "eval.grid=1",
        f"eval.batch={options.micro_batch}",
        f"output={work}/outputs",
    ]
    if not options.cpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    if alignbench(words):
        raise SystemExit(f"{family}: the run failed")
    timing = json.loads((compose(words).folder / "timing.json").read_text())
    return {
        "family": family,
        "images": images,
        "steps": steps,
        "micro_batch": options.micro_batch,
        "command": "python -m alignbench " + " ".join(words).replace(str(work), "WORK"),
        "training_seconds": round(timing["seconds"]["training"], 2),
        "images_a_second": round(images / timing["seconds"]["training"], 3),
        "peak_memory_gb": None if options.cpu else round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "whole_seconds": round(time.perf_counter() - started, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="+", choices=["sd15", "sdxl"])
    parser.add_argument("--images", type=int, default=16, help="of the epoch")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        parser.error("there is no GPU here; --cpu --tiny tries the path")
    with tempfile.TemporaryDirectory() as work:
        found = [measured(family, options, Path(work)) for family in options.families]
    device = "cpu" if options.cpu else torch.cuda.get_device_name()
    report = {"device": device, "torch": torch.__version__, "precision": "32-true" if options.cpu else "bf16-mixed", "measured": found}
    print(json.dumps(report, indent=1))
    if not options.tiny and not options.cpu:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"ddpo_lora-{re.sub('[^a-z0-9]+', '-', device.lower())}.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
