"""A small instance of every method, and the loops that the tests train it with."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from conftest import FULL
from lightning.pytorch import Callback, Trainer
from torch import Generator, Tensor

from alignbench.checkpoint import AtomicCheckpointIO
from alignbench.methods.base import Method
from alignbench.methods.d3po import D3PO
from alignbench.methods.ddpo import DDPO
from alignbench.methods.di_star import DIStar
from alignbench.methods.diffusion_dpo import DiffusionDPO
from alignbench.methods.kl_rlhf import KLRLHF
from alignbench.methods.pso import PSO
from alignbench.methods.pxpo import PXPO
from alignbench.methods.rwr import RWR
from alignbench.methods.sft import SFT
from alignbench.models.base import Diffusion, Spec, Who
from alignbench.models.gaussian_world import GaussianWorld
from alignbench.policy import Policy
from alignbench.rewards.base import Reward
from alignbench.rewards.judge import Judge
from alignbench.rng import Draws, generator
from alignbench.rollouts import Rollouts
from alignbench.samplers.base import Sampler
from alignbench.samplers.ddim import DDIM
from alignbench.samplers.few_step import FewStep
from alignbench.samplers.one_step import OneStep

PROMPTS = ["a dog", "two cats", "the sea"]


def told(prompt: str) -> float:
    """A prompt as a number; 0 for the empty one."""
    return sum(map(ord, prompt)) % 7 / 10


class PromptedWorld(GaussianWorld):
    """A Gaussian world whose data depends on the prompt, so that guidance and the empty prompt matter."""

    def embed(self, prompts: list[str]) -> Tensor:  # type: ignore[override]
        return torch.tensor([told(prompt) for prompt in prompts], dtype=self.alpha_bar.dtype)[:, None, None]

    def predict(self, x: Tensor, t: Tensor, cond: Tensor, who: Who) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        return super().predict(x, t, cond, who) - alpha / sigma * cond[..., None]


class Hill(Reward):
    """Smooth, different for every prompt and pixel, with a map and a gradient."""

    name, differentiable, spatial, range, unit = "hill", True, True, (-float("inf"), 0.0), ""
    licence = ""
    backbones = datasets = ()

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        target = torch.tensor([told(prompt) for prompt in prompts], dtype=images.dtype, device=images.device)[:, None, None]
        return -(images.mean(1) - 1.5 * target - 0.4).square()

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.map(images, prompts).flatten(1).mean(1)


class Flat(Hill):
    """All images are equally good."""

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        return 0 * super().map(images, prompts) + 0.3


class Brightness(Hill):
    """A second opinion."""

    name = "brightness"

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.mean(1)


class GivenPairs:
    """Pairs of the Gaussian world's images, the brighter one preferred; a third of them ties."""

    datasets = ()
    decided = 2 / 3

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, Tensor, list[str], Tensor]:
        one, other = torch.randn(2, count, 1, 2, 2, generator=generator, dtype=torch.float64)
        brighter = (one.mean((1, 2, 3)) > other.mean((1, 2, 3)))[:, None, None, None]
        win, lose = torch.where(brighter, one, other), torch.where(brighter, other, one)
        prompts = [PROMPTS[index] for index in torch.randint(len(PROMPTS), (count,), generator=generator).tolist()]
        weight = (torch.rand(count, generator=generator) < self.decided).float()
        return win.expand(-1, 3, -1, -1), lose.expand(-1, 3, -1, -1), prompts, weight


def ddim(guidance: float = 2.0) -> DDIM:
    return DDIM(steps=4, eta=1.0, guidance=guidance, deterministic=0)


def few_step() -> FewStep:
    return FewStep(times=[999, 749, 499, 249], kernel="euler_ancestral", guidance=1.0)


def one_step() -> OneStep:
    return OneStep(time=625, guidance=1.0)


TRAJECTORIES = {"images": 12, "images_per_prompt": 2, "batch": 6, "inner_epochs": 1, "reduce": "mean"}
DDPO_ = (
    DDPO,
    ddim,
    TRAJECTORIES
    | {"form": "importance_sampled", "clip": 0.01, "advantage": "per_prompt", "advantage_clip": 5.0, "buffer": 8, "enough": 3, "kl": 0.0},
)
PXPO_ = (PXPO, ddim, TRAJECTORIES | {"form": "importance_sampled", "clip": 0.05, "normalise": "batch", "advantage_clip": 5.0})
KL_RLHF = (
    KLRLHF,
    ddim,
    TRAJECTORIES
    | {"reward_weight": 10.0, "kl": 0.3, "clip": 0.05, "variant": "exact", "baseline": "none", "value_epochs": 1}
    | {"value_width": 8, "value_lr": 0.01, "replay": 1},
)
D3PO_ = (D3PO, ddim, TRAJECTORIES | {"batch": 3, "beta": 2.0, "clip": None, "reference": "initial", "criteria": [], "margin": 0.0})
PSO_ = (PSO, few_step, TRAJECTORIES | {"images": 16, "batch": 4, "beta": 5.0, "clip": 0.1, "ties": "masked", "margin": 0.0})
DI_STAR = (
    DIStar,
    one_step,
    {"batch": 12, "turns": 1, "critic_turns": 1, "divergence": "pseudo_huber", "huber": 1e-3, "normalise": "none", "guidance": 2.0}
    | {"placement": "inside", "reward_weight": 3.0, "reduce": "sum", "times": (20, 979), "ema": 0.9, "critic_lr": 0.03},
)
RWR_ = (
    RWR,
    ddim,
    {"images": 12, "images_per_prompt": 4, "batch": 12, "steps": 2} | {"form": "dense", "inverse_temperature": 5.0, "percentile": 0.7},
)
SFT_ = (SFT, ddim, {"images": 12, "images_per_prompt": 4, "batch": 12, "steps": 2, "drop_prompt": 0.2, "pictures": None})
DIFFUSION_DPO = (DiffusionDPO, ddim, {"batch": 12, "steps": 2, "beta": 20.0, "reduce": "mean", "drop_prompt": 0.2, "pairs": GivenPairs()})

Entry = tuple[Callable[..., Method], Callable[[], Sampler], dict[str, Any]]


def variant(entry: Entry, sampler: Callable[[], Sampler] | None = None, **changes: Any) -> Entry:
    make, usual, numbers = entry
    return make, sampler or usual, numbers | changes


ZOO: dict[str, Entry] = {
    "ddpo": DDPO_,
    "ddpo_group": variant(DDPO_, advantage="group", kl=0.2, inner_epochs=2),
    "ddpo_sf": variant(DDPO_, form="score_function", batch=12, advantage="batch"),
    "pxpo": PXPO_,
    "pxpo_sf": variant(PXPO_, form="score_function", batch=12, normalise="per_prompt"),
    "kl_rlhf": KL_RLHF,
    "kl_rlhf_released": variant(KL_RLHF, variant="released", baseline="group_mean", replay=2),
    "kl_rlhf_value": variant(KL_RLHF, baseline="value", value_epochs=2, replay=3),
    "d3po": D3PO_,
    "d3po_clip": variant(D3PO_, clip=0.1, images=9, images_per_prompt=3),
    "d3po_moving": variant(D3PO_, reference="moving", inner_epochs=2),
    "d3po_criteria": variant(D3PO_, criteria=[Brightness()]),
    "pso": PSO_,
    "pso_second_wins": variant(PSO_, ties="second_wins", clip=None),
    "di_star": DI_STAR,
    "di_star_kl": variant(DI_STAR, divergence="kl", critic_turns=3),
    "di_star_l2": variant(DI_STAR, divergence="l2", normalise="sid"),
    "di_star_outside": variant(DI_STAR, placement="outside"),
    "di_star_outside_kl": variant(DI_STAR, placement="outside", divergence="kl"),
    "di_star_outside_l2": variant(DI_STAR, placement="outside", divergence="l2"),
    "di_star_few_step": variant(DI_STAR, few_step, reduce="mean", turns=2),
    "diff_instruct": variant(DI_STAR, divergence="kl", reward_weight=0.0, guidance=1.0),
    "rwr": RWR_,
    "rwr_sparse": variant(RWR_, form="sparse", percentile=0.5),
    "sft": SFT_,
    "diffusion_dpo": DIFFUSION_DPO,
    "diffusion_dpo_sum": variant(DIFFUSION_DPO, reduce="sum", beta=2.0),
}


def a_world() -> PromptedWorld:
    """In float64 and 4 dimensions, with a copy named `policy` that is the reference still."""
    world = PromptedWorld(shape=(1, 2, 2), mean=0.5, std=0.7).double()
    world.grow("policy", FULL)
    return world


def made(
    name: str | Entry,
    *,
    model: Diffusion | None = None,
    spec: Spec = FULL,
    reward: Reward | None = None,
    micro_batch: int = 10**6,
    processes: int = 1,
    chunk: int = 5,
    decay: float = 0.01,
    rate: float = 0.02,
    **changes: Any,
) -> Method:
    """A method of the zoo, with all its copies, on a Gaussian world of its own unless given a model with a `policy`."""
    make, sampler, numbers = ZOO[name] if isinstance(name, str) else name
    torch.manual_seed(0)
    policy = Policy(model or a_world(), sampler(), "policy", chunk=chunk)
    method = make(
        policy=policy,
        judge=Judge(reward or Hill(), policy.model.meters),
        optimizer=partial(torch.optim.AdamW, lr=rate, weight_decay=decay),
        micro_batch=micro_batch,
        processes=processes,
        **(numbers | changes),
    )
    method.grow(spec)
    return method


def prompts_of(method: Method, prompts: list[str] = PROMPTS) -> list[str]:
    """An epoch's prompts, each as often as the method asks."""
    each = method.updates.images_per_prompt
    return [prompts[index % len(prompts)] for index in range(method.updates.images // each) for _ in range(each)]


def moved(method: Method, by: float = 0.05) -> Method:
    """The same method away from where training starts, every network by draws of its own."""
    for who in ("policy", *method.copies):
        for name, parameter in sorted(method.policy.model.trainable(who).items()):
            noise = torch.randn(parameter.shape, generator=generator(0, f"{who}/{name}"), dtype=torch.float32)
            parameter.data += by * noise.to(parameter)
    return method


def weights(method: Method) -> dict[str, Tensor]:
    """Everything that training moves, copied."""
    return {name: each.detach().clone() for name, each in method.named_parameters() if each.requires_grad or ".ema." in name}


def same(one: dict[str, Tensor], other: dict[str, Tensor], *of: str) -> bool:
    """Whether two copies agree bit for bit, or in the names that hold one of `of`."""
    return all(torch.equal(one[name], other[name]) for name in one if not of or any(f".{each}." in f".{name}." for each in of))


def optimise(method: Method, epochs: int, prompts: list[str] = PROMPTS) -> Iterator[dict[str, float]]:
    """A bare loop, as the trainer's but for its clipping; of each optimiser step the means of what was logged, and the gradient's norm."""
    optimizer, updates = method.configure_optimizers(), method.updates
    for epoch in range(epochs):
        rows: list[dict[str, float]] = []
        for index, batch in enumerate(method.collect(prompts_of(method, prompts), Draws(0, epoch))):
            if index % updates.accumulate == 0:
                optimizer.zero_grad()
                rows = []
            loss, metrics = method.loss(batch)
            if not method.idle(batch):
                (loss / updates.accumulate).backward()
            rows.append({"loss": loss.item(), **{key: value.item() for key, value in metrics.items()}})
            if (index + 1) % updates.accumulate == 0:
                gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
                norm = torch.cat(gradients).norm().item() if gradients else 0.0
                optimizer.step()
                means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
                yield means | {"gradient": norm}
            method.on_train_batch_end(None, batch, index)


def fit(method: Method, epochs: int, folder: Path, *watching: Callback, resume: Path | None = None, **options: Any) -> Trainer:
    """A real trainer, which saves folder/last.ckpt."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=1.0,
        accumulate_grad_batches=method.updates.accumulate,
        callbacks=list(watching),
        plugins=[AtomicCheckpointIO("a" * 64)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **({"devices": 1} | options),
    )
    loader = Rollouts(lambda: method.collect(prompts_of(method), Draws(0, trainer.current_epoch)), len(method.updates))
    trainer.fit(method, loader, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return trainer


def gradients(method: Method, batch: Any) -> dict[str, Tensor]:
    """Of the loss, by each trained weight; of those that it does not depend on, zeros."""
    named = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(method.loss(batch)[0], list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}
