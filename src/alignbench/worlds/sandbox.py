"""Makes the sandbox, a small Stable Diffusion pipeline, from a seed: `python -m alignbench.worlds.sandbox FOLDER`."""

import argparse
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from alignbench.worlds.scenes import ATTRIBUTES, PIXELS, POSITIONS, Scene, all_scenes, correct, draw

LATENT = 8  # the VAE reduces by 4
TOKENS = 16  # the longest caption has 13
GUIDANCE, STEPS = 3.0, 20  # of the figures on the model card
DROP_CAPTION = 0.1  # trains the unconditional branch that guidance needs


def tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges make every word of the captions one token."""
    words = sorted({word for scene in all_scenes() for word in scene.caption.split()})
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bpe.decoder = decoders.BPEDecoder()
    bpe.train_from_iterator(words, trainers.BpeTrainer(vocab_size=1000, end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    pieces = list(dict.fromkeys(pieces)) + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=TOKENS)


def untrained() -> StableDiffusionPipeline:
    """The pipeline with random weights, every part a stock diffusers or transformers class."""
    words = tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=256,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 40, 48),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=PIXELS,
        mid_block_add_attention=False,
    )
    unet = UNet2DConditionModel(
        sample_size=LATENT,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    scheduler = DDIMScheduler(  # Stable Diffusion 1.5's schedule
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=words,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def batch(scenes: list[Scene], size: int, step: int, seed: int, purpose: int) -> tuple[list[str], Tensor, torch.Generator]:
    """Training scenes as a function of (seed, purpose, step): captions, images [B,3,H,W] and the generator for what follows."""
    generator = torch.Generator().manual_seed((seed * 7 + purpose) * 10_000_019 + step)
    picked = [scenes[i] for i in torch.randint(len(scenes), (size,), generator=generator)]
    return [scene.caption for scene in picked], draw(picked, generator), generator


def optimiser(parameters: list[nn.Parameter], peak: float, steps: int) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.OneCycleLR]:
    adamw = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.01)
    return adamw, torch.optim.lr_scheduler.OneCycleLR(adamw, peak, total_steps=steps, pct_start=0.1)


class Progress:
    """Runs `steps` steps with a progress bar; what an interrupted run had reached is continued from its checkpoint."""

    def __init__(self, path: Path, parts: dict[str, object], steps: int, every: int = 250):
        self.path, self.parts, self.steps, self.every = path, parts, steps, every
        self.start = 0
        if path.exists():
            saved = torch.load(path, weights_only=True)
            self.start = saved.pop("step")
            for name, state in saved.items():
                parts[name].load_state_dict(state)  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[int]:
        for step in track(range(self.start, self.steps), description=self.path.stem, total=self.steps, completed=self.start):
            yield step
            if (step + 1) % self.every == 0 or step + 1 == self.steps:
                state = {name: part.state_dict() for name, part in self.parts.items()}  # type: ignore[attr-defined]
                temporary = self.path.with_suffix(".tmp")
                torch.save(state | {"step": step + 1}, temporary)
                temporary.replace(self.path)


def train_vae(vae: AutoencoderKL, steps: int, seed: int, work: Path) -> None:
    """Reconstruction (L1 + L2), weighted towards edges, with a KL term just strong enough to keep the latents near a unit scale.

    It sees every pair of colours: what the splits hold out is which colour a shape comes in, and that is the denoiser's business.
    """
    adamw, schedule = optimiser(list(vae.parameters()), 2e-3, steps)
    scenes = all_scenes()
    progress = Progress(work / "vae.pt", {"vae": vae, "adamw": adamw, "schedule": schedule}, steps)
    for step in progress:
        _, images, generator = batch(scenes, 32, step, seed, purpose=0)
        target = images * 2 - 1
        edge = F.max_pool2d((target - F.avg_pool2d(target, 3, 1, 1, count_include_pad=False)).abs().amax(1, keepdim=True), 3, 1, 1)
        weight = 1 + 4 * edge  # most pixels are plain background
        posterior = vae.encode(target).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        output = vae.decode(latents).sample
        gap = output - target
        loss = (weight * (gap.abs() + gap.square())).mean() + 5e-7 * posterior.kl().mean()
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        adamw.step()
        schedule.step()
        if step % 100 == 0:
            print(f"vae {step} loss {loss.item():.4f} psnr {-10 * math.log10(gap.square().mean().item() / 4):.2f} dB", flush=True)
    _, images, generator = batch(scenes, 512, 0, seed, purpose=1)
    with torch.no_grad():
        vae.register_to_config(scaling_factor=round(1 / vae.encode(images * 2 - 1).latent_dist.sample(generator).std().item(), 5))


def train_unet(pipeline: StableDiffusionPipeline, steps: int, cycle: int, seed: int, work: Path) -> None:
    """The usual eps regression, text encoder and UNet together, some captions dropped; each cycle's rate peaks at half the last's."""
    unet, text_encoder, words, vae = pipeline.unet, pipeline.text_encoder, pipeline.tokenizer, pipeline.vae
    scenes = all_scenes("train")
    vae.requires_grad_(False)
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    adamw, schedule = optimiser(parameters, 1.5e-3 / 2**cycle, steps)
    parts = {"unet": unet, "text_encoder": text_encoder, "adamw": adamw, "schedule": schedule}
    for step in Progress(work / f"unet-{cycle}.pt", parts, steps):
        captions, images, generator = batch(scenes, 64, step, seed, purpose=2 + cycle)
        keep = torch.rand(len(captions), generator=generator) >= DROP_CAPTION
        captions = [caption if kept else "" for caption, kept in zip(captions, keep, strict=True)]
        tokens = words(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            latents = vae.encode(images * 2 - 1).latent_dist.sample(generator) * vae.config.scaling_factor
        eps = torch.randn(latents.shape, generator=generator)
        t = torch.randint(1000, (len(captions),), generator=generator)
        predicted = unet(pipeline.scheduler.add_noise(latents, eps, t), t, text_encoder(tokens)[0]).sample
        loss = F.mse_loss(predicted, eps)
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()
        schedule.step()
        if step % 100 == 0:
            print(f"unet {cycle} {step} loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def figures(pipeline: StableDiffusionPipeline, seed: int, images: int = 420) -> dict[str, float]:
    """What the model card states, on the test split: VAE PSNR on held-out scenes, and what the exact judge finds in samples."""
    scenes = all_scenes("test")
    generator = torch.Generator().manual_seed(seed)
    real = draw(scenes, generator)
    rebuilt = pipeline.vae.decode(pipeline.vae.encode(real * 2 - 1).latent_dist.mode()).sample / 2 + 0.5
    psnr = -10 * (rebuilt.clamp(0, 1) - real).square().mean().log10()
    picked = [scenes[i].caption for i in torch.randperm(len(scenes), generator=generator)[:images]]
    pipeline.set_progress_bar_config(disable=True)
    pictures = [
        pipeline(picked[i : i + 60], num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator, output_type="pt").images
        for i in range(0, len(picked), 60)
    ]
    right = correct(torch.cat(pictures), picked).float()
    result = {"vae_psnr_db": psnr.item(), "all_five": right.prod(1).mean().item()}
    result |= {name: right[:, i].mean().item() for i, name in enumerate(ATTRIBUTES)}
    asked = [Scene.parse(caption).position for caption in picked]
    for place in POSITIONS:
        rows = torch.tensor([each == place for each in asked])
        result[f"position, asked {place}"] = right[rows, ATTRIBUTES.index("position")].mean().item()
    return result


def model_card(folder: Path, numbers: dict[str, float], seed: int, vae_steps: int, unet_steps: list[int]) -> str:
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in numbers.items())
    hashes = "\n".join(
        f"| `{path.relative_to(folder)}` | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |"
        for path in sorted(folder.rglob("*.safetensors"))
    )
    return f"""---
license: apache-2.0
pipeline_tag: text-to-image
---
# alignbench sandbox

A Stable Diffusion pipeline small enough to ship: {PIXELS}x{PIXELS} pictures of one shape on a plain background, from captions such as
"a small red circle at the left on a blue background". Trained by `python -m alignbench.worlds.sandbox` with seed {seed}
({vae_steps} VAE steps, {" + ".join(map(str, unet_steps))} UNet steps) on scenes drawn by code; of the 48 (shape, colour) pairs the
denoiser never saw 12 (the VAE saw all colours). It is meant to be imperfect: a method that aligns it has room to improve.

Test prompts only (held-out pairs), guidance {GUIDANCE:g}, {STEPS} DDIM steps (eta 0); shares are of images the exact judge finds right:

| figure | value |
|---|---|
{rows}

| file | sha256 |
|---|---|
{hashes}
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m alignbench.worlds.sandbox", description="Train the sandbox pipeline from a seed.")
    parser.add_argument("folder", type=Path, help="where the pipeline is written; its checkpoints go to <folder>.work and are continued")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--unet-steps", type=int, nargs="+", default=[4000, 2000], help="of each cycle")
    options = parser.parse_args(arguments)
    work = options.folder.with_name(options.folder.name + ".work")
    work.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(options.seed)
    pipeline = untrained()
    train_vae(pipeline.vae, options.vae_steps, options.seed, work)
    for cycle, steps in enumerate(options.unet_steps):
        train_unet(pipeline, steps, cycle, options.seed, work)
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        part.eval()
    pipeline.save_pretrained(options.folder)
    numbers = figures(pipeline, options.seed)
    (options.folder / "README.md").write_text(model_card(options.folder, numbers, options.seed, options.vae_steps, options.unet_steps))
    print(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
