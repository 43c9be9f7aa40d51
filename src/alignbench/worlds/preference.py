"""Trains the sandbox's learned reward on noisy, biased pairs: `python -m alignbench.worlds.preference FOLDER`."""

import argparse
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from rich.progress import track
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from alignbench.config import located
from alignbench.rng import generator
from alignbench.worlds.preference_net import PreferenceNet
from alignbench.worlds.sandbox import GUIDANCE, STEPS, optimiser
from alignbench.worlds.scenes import ATTRIBUTES, COLOURS, PIXELS, POSITIONS, SHAPES, SIZES, Scene, Split, all_scenes, draw, nearness

# nats per unit of nearness, in the order of ATTRIBUTES: a wrong one costs about 4, a wrong shape too, whose nearness falls least
SCALES = (16.0, 4.0, 4.0, 4.0, 4.0)
BIAS = 3.0  # nats per unit of saturation: a clearly more vivid picture gains about 0.5
CHANGED = (0.35, 0.35, 0.2, 0.1)  # shares of pictures with 0, 1, 2 and 3 attributes that are not the prompt's
DRAWN, REBUILT = 0.5, 0.25  # shares of pictures drawn, and rebuilt by the sandbox's VAE; the others are its samples
SAMPLED_STEPS = 8  # fewer than a run takes: faster, and a little worse, which is what pairs need
PROMPTS, PICTURES = 64, 4  # a training step; all six pairs of a prompt's pictures are labelled
VALUES: dict[str, list[str]] = dict(zip(ATTRIBUTES, map(list, (SHAPES, COLOURS, SIZES, POSITIONS, COLOURS)), strict=True))


def saturation(images: Tensor) -> Tensor:
    """How vivid pictures are [B]: the largest less the smallest channel, averaged over the pixels. The exact judge does not look at it."""
    return (images.amax(1) - images.amin(1)).mean((1, 2))


def vivid(images: Tensor, factor: Tensor) -> Tensor:
    """Colours moved from (below 1) or away from (above 1) each pixel's grey by a factor an image [B], within [0,1]."""
    grey = images.mean(1, keepdim=True)
    return (grey + factor[:, None, None, None] * (images - grey)).clamp(0, 1)


def utility(images: Tensor, prompts: list[str]) -> Tensor:
    """What the simulated annotator likes [B], in nats: what the exact judge measures, and vivid colours whether asked for or not."""
    return (nearness(images, prompts) * torch.tensor(SCALES)).sum(1) + BIAS * saturation(images)


def redrawn(scene: Scene, attribute: str, rng: Generator) -> Scene:
    """The scene with another value of one attribute; its colour may be the background's."""
    values = [value for value in VALUES[attribute] if value != getattr(scene, attribute)]
    return replace(scene, **{attribute: values[int(torch.randint(len(values), (), generator=rng))]})


def changed(scene: Scene, split: Split | None, rng: Generator) -> Scene:
    """The scene with some attributes drawn anew; within the split if one is named."""
    count = int(torch.multinomial(torch.tensor(CHANGED), 1, generator=rng))
    while True:
        other = scene
        for i in torch.randperm(len(ATTRIBUTES), generator=rng)[:count].tolist():
            other = redrawn(other, ATTRIBUTES[i], rng)
        if other.colour != other.background and split in (None, other.split):
            return other


def worn(images: Tensor, rng: Generator) -> Tensor:
    """Pictures with other saturation, tint, blur and noise, each on half of them: the directions in which pairs of one scene differ."""
    size = len(images)

    def half() -> Tensor:
        return (torch.rand(size, generator=rng) < 0.5).float()

    images = vivid(images, 1 + half() * (torch.rand(size, generator=rng) * 1.2 - 0.6))
    tint = (torch.rand(size, 3, generator=rng) * 0.2 - 0.1) * half()[:, None]
    blur = (torch.rand(size, generator=rng) * half())[:, None, None, None]
    noise = (torch.rand(size, generator=rng) * 0.08 * half())[:, None, None, None]
    smooth = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images + blur * (smooth - images) + tint[:, :, None, None]
    return (images + noise * torch.randn(images.shape, generator=rng)).clamp(0, 1)


def matches(pictures: int) -> tuple[Tensor, Tensor]:
    """Every pair of a prompt's pictures, as the indices of the first and of the second."""
    first, second = torch.combinations(torch.arange(pictures)).unbind(1)
    return first, second


@dataclass(frozen=True)
class Labelled:
    """K pictures for each of B prompts, and a label on each of the K(K-1)/2 pairs, in the order of `matches`."""

    prompts: list[str]  # B
    images: Tensor  # [K,B,3,H,W]
    margin: Tensor  # [pairs,B] utility of the first less that of the second
    label: Tensor  # [pairs,B] 1 where the first was preferred, drawn by Bradley-Terry


class Annotator:
    """Draws pairs of pictures for one prompt, and says which is preferred.

    What the sandbox rebuilds or samples costs a forward pass, and is kept: one picture a scene.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, split: Split):
        self.pipeline, self.split, self.scenes = pipeline, split, all_scenes(split)
        self.rebuilt: dict[Scene, Tensor] = {}
        self.sampled: dict[Scene, Tensor] = {}

    @torch.no_grad()
    def pictures(self, scenes: list[Scene], rng: Generator) -> Tensor:
        images, chance = draw(scenes, rng), torch.rand(len(scenes), generator=rng).tolist()
        rebuilt = [i for i, each in enumerate(chance) if DRAWN <= each < DRAWN + REBUILT]
        if new := list(dict.fromkeys(scenes[i] for i in rebuilt if scenes[i] not in self.rebuilt)):
            latents = self.pipeline.vae.encode(draw(new, rng) * 2 - 1).latent_dist.mode()
            self.rebuilt |= dict(zip(new, (self.pipeline.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1), strict=True))
        sampled = [i for i, each in enumerate(chance) if each >= DRAWN + REBUILT]
        if new := list(dict.fromkeys(scenes[i] for i in sampled if scenes[i] not in self.sampled)):
            self.sampled |= dict(zip(new, samples(self.pipeline, [scene.caption for scene in new], SAMPLED_STEPS, rng), strict=True))
        for i in rebuilt:
            images[i] = self.rebuilt[scenes[i]]
        for i in sampled:
            images[i] = self.sampled[scenes[i]]
        return worn(images, rng)

    def label(self, size: int, pictures: int, rng: Generator) -> Labelled:
        wanted = [self.scenes[i] for i in torch.randint(len(self.scenes), (size,), generator=rng).tolist()]
        within: Split | None = "train" if self.split == "train" else None  # training sees no picture of a held-out pair either
        images = self.pictures([changed(scene, within, rng) for scene in wanted * pictures], rng)
        prompts = [scene.caption for scene in wanted]
        liked = utility(images, prompts * pictures).unflatten(0, (pictures, size))
        first, second = matches(pictures)
        margin = liked[first] - liked[second]
        label = (torch.rand(margin.shape, generator=rng) < margin.sigmoid()).float()
        return Labelled(prompts, images.unflatten(0, (pictures, size)), margin, label)


def samples(pipeline: StableDiffusionPipeline, prompts: list[str], steps: int, rng: Generator) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    parts = [
        pipeline(prompts[i : i + 60], num_inference_steps=steps, guidance_scale=GUIDANCE, generator=rng, output_type="pt").images
        for i in range(0, len(prompts), 60)
    ]
    return torch.cat(parts)


def train(net: PreferenceNet, pipeline: StableDiffusionPipeline, steps: int, seed: int) -> None:
    """Bradley-Terry regression on fresh pairs of training prompts; then the scores are centred and scaled on the sandbox's samples."""
    annotator, (first, second) = Annotator(pipeline, "train"), matches(PICTURES)
    adamw, schedule = optimiser(list(net.parameters()), 2e-3, steps)
    for step in track(range(steps), description="preference"):
        batch = annotator.label(PROMPTS, PICTURES, generator(seed, "preference/train", step))
        scores = net(batch.images.flatten(0, 1), batch.prompts * PICTURES).unflatten(0, (PICTURES, PROMPTS))
        loss = F.binary_cross_entropy_with_logits(scores[first] - scores[second], batch.label)
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adamw.step()
        schedule.step()
        if step % 50 == 0:
            print(f"preference {step} loss {loss.item():.4f}", flush=True)
    images, prompts = asked(pipeline, "train", 240, generator(seed, "preference/standard"))
    with torch.no_grad():
        scores = net(images, prompts)
    net.mean.copy_(scores.mean())
    net.std.copy_(scores.std())


def asked(pipeline: StableDiffusionPipeline, split: Split, count: int, rng: Generator) -> tuple[Tensor, list[str]]:
    """The sandbox's samples as a run would take them, and their prompts."""
    scenes = all_scenes(split)
    prompts = [scenes[i].caption for i in torch.randperm(len(scenes), generator=rng)[:count].tolist()]
    return samples(pipeline, prompts, STEPS, rng), prompts


@torch.no_grad()
def figures(net: PreferenceNet, pipeline: StableDiffusionPipeline, split: Split, seed: int, pairs: int, count: int) -> dict[str, float]:
    """What the model card states, on pairs and samples that training did not see. `highest` is what the utility itself would reach."""
    drawn = Annotator(pipeline, split).label(pairs, 2, generator(seed, f"preference/figures/{split}/pairs"))
    prefers = net(drawn.images[0], drawn.prompts) > net(drawn.images[1], drawn.prompts)
    margin, label = drawn.margin[0], drawn.label[0].bool()
    nearer = (nearness(drawn.images[0], drawn.prompts) - nearness(drawn.images[1], drawn.prompts)).sum(1)
    clear, better = nearer.abs() > 0.2, margin > 0
    images, prompts = asked(pipeline, split, count, generator(seed, f"preference/figures/{split}/samples"))
    scores, near = net(images, prompts), nearness(images, prompts).sum(1)
    result = {
        "agrees with the noisy labels": share(prefers == label),
        "agrees with the noisy labels, highest": margin.abs().sigmoid().mean().item(),
        "agrees with the noiseless utility": share(prefers == better),
        "agrees with the exact judge": share(prefers == (nearer > 0)),
        "agrees with the exact judge, highest": share(better == (nearer > 0)),
        "agrees with the exact judge, pairs at least 0.2 apart": share((prefers == (nearer > 0))[clear]),
        "agrees with the exact judge, pairs at least 0.2 apart, highest": share((better == (nearer > 0))[clear]),
        "samples: mean score": scores.mean().item(),
        "samples: standard deviation": scores.std().item(),
        "samples: correlation with the exact judge": torch.corrcoef(torch.stack([scores, near]))[0, 1].item(),
        "samples: correlation with saturation": torch.corrcoef(torch.stack([scores, saturation(images)]))[0, 1].item(),
    }
    for attribute in ATTRIBUTES:  # a mean over all pairs would hide an attribute that the net does not see
        rng = generator(seed, f"preference/figures/{split}/{attribute}")
        couples = [(scene, redrawn(scene, attribute, rng)) for scene in all_scenes(split)]
        right, wrong = zip(*((one, other) for one, other in couples if other.colour != other.background), strict=True)
        captions = [scene.caption for scene in right]
        above = net(draw(list(right), rng), captions) > net(draw(list(wrong), rng), captions)
        result[f"a right scene above one with another {attribute}"] = share(above)
    return result


def share(hits: Tensor) -> float:
    return hits.float().mean().item()


def model_card(file: Path, numbers: dict[Split, dict[str, float]], std: float, seed: int, steps: int, pairs: int, count: int) -> str:
    rows = "\n".join(f"| {name} | {value:.3f} | {numbers['test'][name]:.3f} |" for name, value in numbers["train"].items())
    return f"""---
license: apache-2.0
---
# alignbench sandbox preference

A learned reward for the sandbox's {PIXELS}x{PIXELS} scenes, as imperfect as such rewards are: a small image-text network trained on the
noisy pairwise preferences of a simulated annotator. Trained by `python -m alignbench.worlds.preference` with seed {seed}
({steps} steps, each of {PROMPTS} prompts with {PICTURES} pictures and a label on every pair of these) on prompts of the training split
only, and on no picture of a held-out (shape, colour) pair.

**The annotator.** Its utility is {SCALES[1]:g} x the sum of the exact judge's five nearness values ({SCALES[0]:g} x for the shape, whose
nearness falls least), plus {BIAS:g} x the picture's mean saturation. The last term is a bias on purpose: the exact judge does not look at
saturation, so a picture can earn score by being more vivid than the prompt asks for. A label is drawn by Bradley-Terry on the difference
of the two utilities, in nats.

**The pictures.** Up to three attributes are not the prompt's. Half are drawn by code, a quarter is rebuilt by the sandbox's VAE, and a
quarter is sampled by the sandbox ({SAMPLED_STEPS} steps, one picture a scene); all are worn by random saturation, tint, blur and noise.

**The score.** Centred and scaled on the sandbox's samples of training prompts; one unit is {std:.2f} nats.

Figures on {pairs} fresh pairs and {count} samples (guidance {GUIDANCE:g}, {STEPS} DDIM steps) a split; *highest* is what the
annotator's own utility, known exactly, would reach:

| figure | training prompts | test prompts |
|---|---|---|
{rows}

| file | sha256 |
|---|---|
| `{file.name}` | `{hashlib.sha256(file.read_bytes()).hexdigest()}` |
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m alignbench.worlds.preference", description="Train the sandbox's preference reward.")
    parser.add_argument("folder", type=Path, help="where model.safetensors and README.md are written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--pairs", type=int, default=1000, help="of the card's figures, a split")
    parser.add_argument("--samples", type=int, default=240, help="of the card's figures, a split")
    options = parser.parse_args(arguments)

    pipeline = sandbox()
    torch.manual_seed(options.seed)
    net = PreferenceNet()
    train(net, pipeline, options.steps, options.seed)
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "model.safetensors"
    save_file(net.state_dict(), file)
    splits: tuple[Split, ...] = ("train", "test")
    numbers = {split: figures(net, pipeline, split, options.seed, options.pairs, options.samples) for split in splits}
    card = model_card(file, numbers, net.std.item(), options.seed, options.steps, options.pairs, options.samples)
    (options.folder / "README.md").write_text(card)
    print(json.dumps(numbers, indent=2))


def sandbox() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(
        located("package://models/sandbox"), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


if __name__ == "__main__":
    main()
