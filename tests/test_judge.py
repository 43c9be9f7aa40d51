"""A reward that misbehaves (R6): its error names it, a constant is warned of once, and in no case does a weight move or become NaN."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FULL
from lightning.pytorch import Trainer
from torch import Tensor

from alignbench.checkpoint import AtomicCheckpointIO
from alignbench.evaluation.callbacks import History, Saver
from alignbench.meters import Meters
from alignbench.methods.ddpo import DDPO
from alignbench.models.gaussian_world import GaussianWorld
from alignbench.policy import Policy
from alignbench.rewards.base import Reward
from alignbench.rewards.judge import Judge
from alignbench.rng import Draws
from alignbench.rollouts import Rollouts
from alignbench.samplers.ddim import DDIM
from alignbench.signals import armed

IMAGES = 8
PROMPTS = [f"prompt {n // 4}" for n in range(IMAGES)]


class Scripted(Reward):
    """Returns whatever it is told to; `turns` counts how often it was asked."""

    name = "scripted"
    differentiable = True
    spatial = True
    range = (-float("inf"), float("inf"))
    unit = licence = ""
    backbones = datasets = ()

    def __init__(self, script: Callable[[Tensor, int], Any]):
        super().__init__()
        self.script, self.turns = script, 0

    def forward(self, images: Tensor, prompts: list[str]) -> Any:
        self.turns += 1
        return self.script(images, self.turns)

    def map(self, images: Tensor, prompts: list[str]) -> Any:
        return self(images, prompts)


def brightness(images: Tensor, turn: int) -> Tensor:
    return images.mean((1, 2, 3))


def constant(images: Tensor, turn: int) -> Tensor:
    return torch.full((len(images),), 0.3)


def raising(images: Tensor, turn: int) -> Tensor:
    raise RuntimeError("the judge's server is gone")


def one_entry(value: float) -> Callable[[Tensor, int], Tensor]:
    return lambda images, turn: brightness(images, turn).index_fill(0, torch.tensor([5]), value)


WRONG: dict[str, tuple[Callable[[Tensor, int], Any], str]] = {
    "raises": (raising, "the judge's server is gone"),
    "nan": (one_entry(float("nan")), r"not finite \(at \[5\]\)"),
    "inf": (one_entry(float("inf")), r"not finite \(at \[5\]\)"),
    "minus inf": (one_entry(-float("inf")), "not finite"),
    "all nan": (lambda images, turn: torch.full((len(images),), float("nan")), "not finite"),
    "overflow": (lambda images, turn: brightness(images, turn).double() * 1e300, "not finite"),
    "scalar": (lambda images, turn: brightness(images, turn).mean(), r"returned \(\) where"),
    "column": (lambda images, turn: brightness(images, turn)[:, None], r"\(8, 1\) where a tensor \(8,\)"),
    "one short": (lambda images, turn: brightness(images, turn)[1:], r"\(7,\) where a tensor \(8,\)"),
    "empty": (lambda images, turn: torch.empty(0), r"\(0,\) where"),
    "list": (lambda images, turn: brightness(images, turn).tolist(), "returned list"),
    "array": (lambda images, turn: np.zeros(len(images)), "returned ndarray"),
    "float": (lambda images, turn: 0.5, "returned float"),
    "none": (lambda images, turn: None, "returned NoneType"),
}


def made(script: Callable[[Tensor, int], Any], advantage: str = "per_prompt", form: str = "importance_sampled") -> DDPO:
    """DDPO with AdamW and a weight decay that shows, on a copy whose weights are not 0, or decay could not move them."""
    torch.manual_seed(0)
    world = GaussianWorld(shape=(1, 2, 2), mean=0.5, std=0.7)
    policy = Policy(world, DDIM(steps=4, eta=1.0, guidance=1.0, deterministic=0), "policy", chunk=64)
    world.grow("policy", FULL)
    for parameter in world.trainable("policy").values():
        parameter.data.fill_(0.1)
    return DDPO(
        policy=policy,
        judge=Judge(Scripted(script), world.meters),
        optimizer=partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.5),
        micro_batch=8,
        processes=1,
        images=IMAGES,
        images_per_prompt=4,
        batch=IMAGES if form == "score_function" else 4,
        inner_epochs=1,
        form=form,
        clip=1e-2,
        advantage=advantage,
        advantage_clip=10.0,
        buffer=32,
        enough=4,
        reduce="mean",
        kl=0.0,
    )


def weights(method: DDPO) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in method.policy.trainable().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def fit(method: DDPO, epochs: int, folder: Path, resume: Path | None = None) -> list[dict[str, Any]]:
    """As a run does; the rows of its history."""
    history = History(method.policy.model.meters, method.learned, lambda: ({}, []), 0, lambda rows: None)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        gradient_clip_val=1.0,
        accumulate_grad_batches=method.updates.accumulate,
        callbacks=[history, Saver(folder / "last.ckpt")],
        plugins=[AtomicCheckpointIO("a" * 64)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loader = Rollouts(lambda: method.collect(PROMPTS, Draws(0, trainer.current_epoch)), len(method.updates))
    with armed():
        trainer.fit(method, loader, ckpt_path=resume, weights_only=True)
    return history.rows


# --- scores that are none


@pytest.mark.parametrize("ask", ["score", "map"])
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_score_is_an_error_that_names_the_reward(kind: str, ask: str) -> None:
    """`map` is given what is right or wrong for `score`: of the wrong shape at least."""
    script, why = WRONG[kind]
    judge = Judge(Scripted(script), Meters())
    with pytest.raises(ValueError, match="reward scripted") as caught:
        getattr(judge, ask)(torch.rand(IMAGES, 3, 2, 2), PROMPTS)
    if ask == "score":
        caught.match(why)
    assert "\n" not in str(caught.value)


def test_a_map_that_is_not_finite_is_an_error() -> None:
    judge = Judge(Scripted(lambda images, turn: images[:, 0].index_fill(0, torch.tensor([2]), float("nan"))), Meters())
    with pytest.raises(ValueError, match=r"reward scripted returned a score that is not finite \(at \[2, 0, 0\]\)"):
        judge.map(torch.rand(IMAGES, 3, 2, 2), PROMPTS)


@pytest.mark.parametrize("scores", [torch.arange(8), torch.arange(8).double(), torch.arange(8) > 3, torch.arange(8).half()])
def test_any_finite_number_is_a_score(scores: Tensor) -> None:
    judge = Judge(Scripted(lambda images, turn: scores), Meters())
    assert torch.equal(judge.score(torch.rand(IMAGES, 3, 2, 2), PROMPTS), scores.float())


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_score_changes_no_weight(kind: str, tmp_path: Path) -> None:
    """One good epoch, then the wrong scores: the run ends where the good epoch left it."""
    script, _ = WRONG[kind]
    good = made(brightness)
    before = weights(good)
    fit(good, 1, tmp_path)
    assert not same(weights(good), before)
    broken = made(lambda images, turn: brightness(images, turn) if turn == 1 else script(images, turn))
    with pytest.raises(ValueError, match="reward scripted"):
        fit(broken, 3, tmp_path)
    assert same(weights(broken), weights(good))
    assert all(weight.isfinite().all() for weight in weights(broken))
    assert broken.judge.reward.turns == 2  # not asked again


# --- a constant


@pytest.mark.parametrize("form", ["importance_sampled", "score_function"])
@pytest.mark.parametrize("advantage", ["per_prompt", "group", "batch"])
def test_a_constant_has_no_gradient(advantage: str, form: str) -> None:
    method = made(constant, advantage, form)
    with pytest.warns(UserWarning, match="reward scripted gave every image the same score") as caught:
        batches = [batch for epoch in range(3) for batch in method.collect(PROMPTS, Draws(0, epoch))]
    assert len(caught) == 1
    assert len(batches) == 3 * len(method.updates)
    for batch in batches:
        assert not batch.advantage.any()
        assert method.idle(batch)
        loss, metrics = method.loss(batch)
        gradients = torch.autograd.grad(loss, list(method.policy.trainable().values()))
        assert not any(gradient.any() for gradient in gradients)
        assert all(value.isfinite() for value in (loss, *metrics.values()))


@pytest.mark.parametrize("form", ["importance_sampled", "score_function"])
@pytest.mark.parametrize("advantage", ["per_prompt", "group", "batch"])
def test_a_constant_moves_no_weight_and_is_warned_of_once(advantage: str, form: str, tmp_path: Path) -> None:
    """Through AdamW with weight decay, which moves a weight wherever it is given a gradient, even one of 0."""
    method = made(constant, advantage, form)
    before = weights(method)
    with pytest.warns(UserWarning, match="reward scripted gave every image the same score") as caught:
        fit(method, 3, tmp_path)
    assert sum("same score" in str(each.message) for each in caught) == 1
    assert method.judge.reward.turns == 3
    assert same(weights(method), before)
    optimizer = method.configure_optimizers()
    for parameter in method.policy.trainable().values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert not same(weights(method), before)  # what a gradient of 0 would have done


@pytest.mark.parametrize("advantage", ["group", "batch"])
def test_a_constant_after_an_informative_epoch_moves_no_weight(advantage: str, tmp_path: Path) -> None:
    """Neither AdamW's momentum nor a gradient that was left over may act."""
    once = made(brightness, advantage)
    fit(once, 1, tmp_path)
    method = made(lambda images, turn: (brightness if turn == 1 else constant)(images, turn), advantage)
    with pytest.warns(UserWarning, match="same score"):
        fit(method, 3, tmp_path)
    assert same(weights(method), weights(once))


def test_a_constant_epoch_logs_nothing_of_the_one_before(tmp_path: Path) -> None:
    """A batch without signal has no loss; Lightning would repeat the last that it was told."""

    def constant_in(silent: int) -> DDPO:
        return made(lambda images, turn: (constant if turn == silent else brightness)(images, turn), "group")

    with pytest.warns(UserWarning, match="same score"):
        whole = fit(constant_in(2), 3, tmp_path / "whole")
    fit(made(brightness, "group"), 1, tmp_path)
    with pytest.warns(UserWarning, match="same score"):
        resumed = fit(constant_in(1), 3, tmp_path / "resumed", tmp_path / "last.ckpt")
    assert resumed == whole
    assert [row.get("loss", 0.0) != 0.0 for row in whole] == [True, False, True]


def test_an_informative_reward_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Judge(Scripted(brightness), Meters()).score(torch.rand(IMAGES, 3, 2, 2), PROMPTS)
        Judge(Scripted(constant), Meters()).score(torch.rand(1, 3, 2, 2), PROMPTS[:1])  # one image is no constant
