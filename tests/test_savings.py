"""A window of noisy steps, a fraction of the trained ones, smaller images: what each leaves out, and that it leaves the rest alone."""

import re
from collections import Counter
from dataclasses import fields
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from methods_zoo import ZOO, made, moved, optimise, prompts_of, variant
from torch import Tensor

from alignbench.compose import compose
from alignbench.config import ConfigError
from alignbench.experiment import Experiment, planned
from alignbench.methods.base import Method
from alignbench.rng import Draws
from alignbench.samplers.ddim import DDIM
from alignbench.tables import Transition

SWITCHES = {"sampler.window": "[2,5]", "method.fraction": "0.5", "model.pixels": "16", "eval.pixels": "64"}
SMALL = [
    "reward=brightness",
    "eval=plain",
    "epochs=1",
    "method.images=4",
    "method.images_per_prompt=2",
    "method.batch=4",
    "sampler.steps=3",
    "sampler.deterministic=0",
]


def windowed() -> DDIM:
    return DDIM(steps=4, eta=1.0, guidance=2.0, deterministic=0, window=(1, 3))


# --- identity


@pytest.mark.parametrize("key", SWITCHES)
def test_a_switch_that_is_off_is_no_part_of_the_identity(key: str) -> None:
    plain, off, on = (compose(words) for words in ([], [f"{key}=null"], [f"{key}={SWITCHES[key]}"]))
    group, name = key.split(".")
    assert off.config[group][name] is None
    assert (off.hash, off.cell, off.identity) == (plain.hash, plain.cell, plain.identity)
    assert name not in plain.identity[group]
    assert on.identity[group][name] == on.config[group][name] is not None
    assert on.hash != plain.hash
    assert on.cell != plain.cell


@pytest.mark.parametrize(
    "key, words",
    [
        ("method.clip", ["method=d3po"]),
        ("eval.patience", []),
        ("model.init", []),
        ("budget.reward_queries", []),
        ("model.pixels", ["model=flux_dev", "epochs=1"]),  # which had the key before others did
        ("method.pictures", ["method=sft", "method.pictures=null"]),
    ],
)
def test_any_other_null_is(key: str, words: list[str]) -> None:
    group, name = key.split(".")
    assert compose(words).identity[group][name] is None


@pytest.mark.parametrize(
    "word, line",
    [
        ("sampler.window=[1,2,3]", r"sampler\.window .*\[1, 2, 3\] is no value for it"),
        ("sampler.window=3", r"sampler\.window .*3 is no value for it"),
        ("method.fraction=0", r"method\.fraction .*0 is no value for it; it must be a number > 0 and <= 1"),
        ("method.fraction=1.5", r"method\.fraction .*1\.5 is no value for it"),
        ("model.pixels=0", r"model\.pixels .*0 is no value for it"),
        ("eval.pixels=big", r"eval\.pixels .*'big' is no value for it"),
    ],
)
def test_a_wrong_value_is_one_line(word: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        compose([word])


def test_a_method_without_trajectories_takes_no_fraction() -> None:
    with pytest.raises(ConfigError, match=r"method\.fraction .*no such key"):
        compose(["method=rwr", "method.fraction=0.5"])


# --- the plan


TRAJECTORIES = [name for name in ZOO if name.startswith(("ddpo", "pxpo", "kl_rlhf", "d3po", "pso"))]


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_with_a_fraction_the_plan_is_what_the_meters_count(name: str) -> None:
    full, part = made(name), moved(made(name, micro_batch=4, fraction=0.3))
    trained = int(part.policy.trained_steps.sum())
    assert part.updates.each == {4: 2, 3: 1}[trained]
    assert part.updates.trained_rows * trained == full.updates.trained_rows * part.updates.each
    steps = list(optimise(part, 1))
    assert dict(part.policy.model.meters.network_evaluations) == part.plan()
    assert len(steps) == len(part.updates) // part.updates.accumulate == len(full.updates) // full.updates.accumulate
    assert sum(part.plan().values()) < sum(full.plan().values())


@pytest.mark.parametrize("name", [name for name in TRAJECTORIES if not name.startswith("pso")])
def test_with_a_window_the_plan_is_what_the_meters_count(name: str) -> None:
    full, part = made(name), moved(made(variant(ZOO[name], windowed), micro_batch=4))
    assert part.policy.trained_steps.tolist() == [False, True, True, False]
    assert 2 * part.updates.trained_rows == full.updates.trained_rows
    list(optimise(part, 1))
    assert dict(part.policy.model.meters.network_evaluations) == part.plan()
    sampled = part.updates.images * 4 * 2
    assert 2 * (part.plan()["policy"] - sampled) == full.plan()["policy"] - sampled  # half the backward passes
    for who in full.plan().keys() - {"policy"}:
        assert 2 * part.plan()[who] == full.plan()[who]


def test_a_window_without_noise_has_nothing_to_learn_from() -> None:
    for window, deterministic in (((2, 2), 0), ((3, 4), 1)):
        sampler = DDIM(steps=4, eta=1.0, guidance=1.0, deterministic=deterministic, window=window)
        with pytest.raises(ValueError, match=r"no step of this sampler has a likelihood.*sampler\.window"):
            made(variant(ZOO["ddpo"], lambda sampler=sampler: sampler))


def test_a_windows_steps_alone_have_a_likelihood_in_a_rollout() -> None:
    method = moved(made(variant(ZOO["ddpo"], windowed)))
    rollout = method.policy.rollout(["a dog"] * 5, "image", Draws(0, 0).each("rollout", range(5)))
    assert rollout.log_prob.ne(0).any(0).tolist() == [False, True, True, False]
    start = method.policy.rollout(["a dog"] * 5, "image", Draws(0, 1).each("rollout", range(5)), rollout.x[:, 0])
    assert torch.equal(start.x[:, 1], rollout.x[:, 1])  # one start, one way, until the window
    assert not torch.isclose(start.x[:, 2], rollout.x[:, 2]).any()


PAGE = (Path(__file__).parents[1] / "docs" / "savings.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (none|`[^|]*`) \| ([\d,]+) \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize("words, evaluations", ROWS)
def test_the_page_says_what_is_planned(words: str, evaluations: str) -> None:
    assert len(ROWS) == 5
    more = [] if words == "none" else words.strip("`").split()
    config = compose(["sampler.steps=10", "sampler.deterministic=1", "eval=plain", *more]).config
    assert f"{planned(config['epochs'], Experiment.build(config).method):,}" == evaluations


# --- a fraction of the steps


def rows_of(method: Method) -> list[list[Transition]]:
    """An epoch's rows, by optimiser step."""
    batches, each = list(method.collect(prompts_of(method), Draws(0, 0))), method.updates.accumulate
    return [batches[start : start + each] for start in range(0, len(batches), each)]


def test_an_update_draws_an_images_steps_without_replacement_and_anew() -> None:
    method = made("ddpo", fraction=0.5, inner_epochs=2, micro_batch=4)
    assert (method.updates.rows, method.updates.accumulate, method.updates.trained_rows) == (12, 3, 48)
    chosen: dict[float, list[tuple[int, ...]]] = {}
    for update in rows_of(method):
        by_image: dict[float, list[int]] = {}
        for batch in update:
            for advantage, k in zip(batch.advantage, batch.k, strict=True):
                by_image.setdefault(advantage.item(), []).append(int(k))
        assert len(by_image) == 6
        assert all(len(steps) == len(set(steps)) == 2 for steps in by_image.values())
        for image, steps in by_image.items():
            chosen.setdefault(image, []).append(tuple(sorted(steps)))
    assert len(chosen) == 12
    assert all(len(turns) == 2 for turns in chosen.values())
    assert any(first != second for first, second in chosen.values())


@pytest.mark.parametrize("name", ["ddpo", "d3po", "kl_rlhf_value", "pxpo_sf"])
def test_the_whole_fraction_is_none_bit_for_bit(name: str) -> None:
    def tensors(table: Any) -> list[Tensor]:
        columns = [getattr(table, field.name) for field in fields(table)]
        return [leaf for column in columns if column is not None for leaf in ([column] if isinstance(column, Tensor) else tensors(column))]

    whole, none = (made(name, fraction=fraction, micro_batch=5) for fraction in (1.0, None))
    for one, other in zip(whole.collect(prompts_of(whole), Draws(0, 0)), none.collect(prompts_of(none), Draws(0, 0)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.mark.parametrize("trained, fraction, each", [(4, 0.5, 2), (4, 0.51, 3), (100, 0.07, 7), (10, 0.6, 6), (3, 1e-12, 1), (5, 1.0, 5)])
def test_how_many_steps_a_fraction_is(trained: int, fraction: float, each: int) -> None:
    method = made(variant(ZOO["ddpo"], lambda: DDIM(steps=trained, eta=1.0, guidance=1.0, deterministic=0)), fraction=fraction)
    assert method.updates.each == each


@pytest.mark.parametrize("name", ["ddpo_sf", "ddpo", "pxpo_sf", "kl_rlhf", "d3po"])
def test_the_expected_gradient_is_the_full_one(name: str) -> None:
    """Its factor is 1: by enumeration of an image's draws, which are C(4, 2) pairs of steps, and over many draws of the code's own."""
    numbers: dict[str, Any] = {"images": 4, "images_per_prompt": 2, "batch": 2 if name == "d3po" else 4}
    method = moved(made(name, **numbers))
    batches = method.collect(prompts_of(method), Draws(0, 0))  # lazy: its rows can be asked for one by one
    (full,) = batches
    parameters = list(method.policy.trainable().values())

    def gradient(batch: Any) -> Tensor:
        return torch.cat([each.flatten() for each in torch.autograd.grad(method.loss(batch)[0], parameters)])

    wanted = gradient(full)
    assert wanted.abs().max() > 1e-4
    items, turn = batches.updates.items, torch.arange(batches.updates.items)
    each = torch.stack(
        [torch.stack([gradient(batches.rows(0, torch.tensor([i]), torch.tensor([k]), turn)) for k in range(4)]) for i in range(items)]
    )  # [items,steps,weights]
    torch.testing.assert_close(each.mean((0, 1)), wanted, rtol=1e-9, atol=1e-12)
    enumerated = torch.stack([each[:, list(pair)].mean((0, 1)) for pair in combinations(range(4), 2)]).mean(0)
    torch.testing.assert_close(enumerated, wanted, rtol=1e-9, atol=1e-12)

    part = moved(made(name, fraction=0.5, **numbers))
    seen, found = Counter[tuple[int, ...]](), []
    drawing = part.collect(prompts_of(part), Draws(0, 0))
    keys = {row.sum().item(): (i, k) for i in range(items) for k in range(4) for row in _first(drawing.rows, i, k)}
    for draw in range(600):
        drawing.shuffle.manual_seed(draw)
        (batch,) = drawing
        places = [keys[row.sum().item()] for row in (batch.win.y if name == "d3po" else batch.y)]
        found.append(torch.stack([each[place] for place in places]).mean(0))
        for i in range(items):
            seen[tuple(sorted(k for image, k in places if image == i))] += 1
    assert set(seen) == set(combinations(range(4), 2))
    share = items * 600 / comb(4, 2)
    assert all(abs(count - share) < 5 * share**0.5 for count in seen.values())
    torch.testing.assert_close(gradient(batch), found[-1], rtol=1e-9, atol=1e-12)  # the code's own loss is the mean of its rows
    spread = torch.stack(found).std(0) / 600**0.5
    assert ((torch.stack(found).mean(0) - wanted).abs() <= 5 * spread + 1e-12).all()
    first = each[:, :2].mean((0, 1))  # always the first two: another gradient, which this would see
    assert ((first - wanted).abs() > 5 * spread + 1e-12).any()


def _first(rows: Any, i: int, k: int) -> Tensor:
    made = rows(0, torch.tensor([i]), torch.tensor([k]), torch.tensor([i]))
    return made.y if isinstance(made, Transition) else made.win.y


# --- smaller images


def test_a_run_at_another_size_says_so_and_can_be_evaluated_at_its_own() -> None:
    config = compose([*SMALL, "method.fraction=0.5", "sampler.window=[0,2]", "model.pixels=16", "eval.pixels=32"]).config
    built = Experiment.build(config)
    plan = built.plan()
    for line in (
        r"noise                in steps 0 to 1 of 0 to 2 alone (sampler.window)",
        r"trained steps        1 of an image's 2, drawn for each update (method.fraction)",
        r"image size           16x16 (model.pixels), 32x32 in evaluation (eval.pixels)",
    ):
        assert line in plan
    assert built.model.shape[1:] == (4, 4)
    batch = next(iter(built.collect()))
    assert batch.x.shape[2:] == (4, 4)
    assert built.scored("validation", 2, built.policy).images.shape[2:] == (32, 32)
    assert built.model.shape[1:] == (4, 4)
    plain = Experiment.build(compose(SMALL).config).plan()
    assert not any(word in plain for word in ("noise  ", "trained steps", "image size"))


@pytest.mark.parametrize("key", ["model.pixels", "eval.pixels"])
def test_a_size_that_the_vae_cannot_make_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key}=18: this model's images are multiples of 4 pixels$"):
        Experiment.build(compose([*SMALL, f"{key}=18"]).config)


def test_a_world_of_one_size_says_so() -> None:
    with pytest.raises(ValueError, match=r"^eval\.pixels=16: this model's images have one size; set null$"):
        Experiment.build(compose(["model=gaussian", "eval=plain", "epochs=1", "eval.pixels=16"]).config)
