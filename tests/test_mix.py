"""Mixes: the sum by hand, and draws that are frequent as their weights say, shared by a prompt's images and always the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignbench.__main__ import main
from alignbench.assets import named
from alignbench.compose import compose
from alignbench.experiment import Experiment
from alignbench.rewards.base import Reward
from alignbench.rewards.brightness import Brightness, LightLeft
from alignbench.rewards.colour import Colour
from alignbench.rewards.jpeg import JpegCompressibility
from alignbench.rewards.mix import Mix, MixDrawn
from alignbench.rewards.parity import SceneParity
from alignbench.rewards.sandbox_preference import SandboxPreference
from alignbench.rng import generator
from alignbench.worlds.scenes import all_scenes, draw

SCENES = all_scenes("train")[::220]
PROMPTS = [scene.caption for scene in SCENES]
NUMBERS: dict[str, Any] = {"weights": [2.0, -0.5], "means": [0.4, 0.9], "stds": [0.2, None]}


def pictures() -> Tensor:
    return draw(SCENES, generator(0, "pictures"))


class Says(Reward):
    """A number of its own for every image: which judge was asked can be read off the score."""

    name, differentiable, spatial, range = "says", False, True, (-float("inf"), float("inf"))
    unit = licence = ""
    backbones = datasets = ()

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number, self.asked = number, 0

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.full((len(images), *images.shape[2:]), self.number)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.asked += 1
        return self.number + images.mean((1, 2, 3))


def drawn(weights: list[float], seed: int = 0, **more: Any) -> MixDrawn:
    given = {"judges": [Says(10.0 * index) for index in range(len(weights))], "means": [0.0] * len(weights), "stds": [None] * len(weights)}
    return MixDrawn(**(given | more), weights=weights, seed=seed)


def judged(mix: MixDrawn, images: Tensor, prompts: list[str]) -> list[int]:
    """Which judge gave each score."""
    return ((mix(images, prompts) - images.mean((1, 2, 3))) / 10).round().int().tolist()


# --- the sum


def test_the_sum_is_that_of_normalised_scores() -> None:
    mix, images = Mix(judges=[Brightness(), Colour(width=0.35)], **NUMBERS), pictures().requires_grad_(True)
    scores = mix(images, PROMPTS)
    by_hand = 2 * (Brightness()(images, PROMPTS) - 0.4) / 0.2 - 0.5 * Colour(width=0.35)(images, PROMPTS)
    torch.testing.assert_close(scores, by_hand)
    torch.testing.assert_close(mix.map(images, PROMPTS).flatten(1).mean(1), scores)
    assert (mix.differentiable, mix.spatial, mix.grouped) == (True, True, False)
    torch.testing.assert_close(torch.cat([mix(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(len(PROMPTS))]), scores)
    scores.sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad, torch.autograd.grad(by_hand.sum(), images)[0])


@pytest.mark.parametrize(
    "judge, facts",
    [
        (Colour(width=0.35), (True, True, False)),
        (JpegCompressibility(), (False, False, False)),
        (SandboxPreference(path="package://rewards/preference/model.safetensors"), (True, False, False)),
        (SceneParity(attribute="size"), (False, False, True)),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_a_mix_can_do_what_its_judges_can(judge: Reward, facts: tuple[bool, bool, bool]) -> None:
    mix = Mix(judges=[Brightness(), judge], **NUMBERS)
    assert (mix.differentiable, mix.spatial, mix.grouped) == facts
    if not mix.spatial:
        with pytest.raises(ValueError, match=f"reward=mix has no pixel map: {judge.name} among its judges"):
            mix.map(pictures(), PROMPTS)
    if mix.grouped:
        assert mix(pictures(), ["a"] * len(PROMPTS)).isfinite().all()
        with pytest.raises(ValueError, match="has one: set"):
            mix(pictures(), PROMPTS)
    assert (mix.backbones, mix.members[-1]) == (judge.backbones, judge.name)  # the only one


@pytest.mark.parametrize("key, value", [("weights", [1.0]), ("means", [0.0] * 3), ("stds", []), ("judges", [])])
def test_lists_of_other_lengths_are_refused(key: str, value: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"reward\.\w+: \d for \d judges; give .* one each"):
        Mix(**({"judges": [Brightness(), Colour(width=0.35)]} | NUMBERS | {key: value}))


def test_judges_and_numbers_count_in_what_it_is() -> None:
    one = Mix(judges=[Brightness(), Colour(width=0.35)], **NUMBERS).identity()
    others = [
        Mix(judges=[Brightness(), Colour(width=0.3)], **NUMBERS),
        Mix(judges=[LightLeft(), Colour(width=0.35)], **NUMBERS),
        Mix(judges=[Brightness(), Colour(width=0.35)], **(NUMBERS | {"means": [0.0, 0.0]})),
    ]
    assert all(each.identity() != one for each in others)
    assert json.dumps(Colour(width=0.35).identity(), sort_keys=True) in one["settings"]


# --- the draw


def test_judges_are_drawn_as_often_as_their_weights_say() -> None:
    mix, count = drawn([1.0, 0.0, 3.0]), 4000
    images = torch.rand(count, 3, 2, 2, generator=generator(0, "many"))
    judges = judged(mix, images, [f"prompt {row}" for row in range(count)])
    shares = torch.bincount(torch.tensor(judges), minlength=3) / count
    assert shares[1] == 0
    assert abs(shares[0].item() - 0.25) < 4 * (0.25 * 0.75 / count) ** 0.5
    assert [judge.asked for judge in mix.judges] == [1, 0, 1]  # once each, not once an image


def test_a_prompt_s_images_share_their_judge_and_other_images_draw_again() -> None:
    mix, prompts = drawn([1.0, 1.0]), [f"prompt {row}" for row in range(100)] * 2
    images = torch.rand(200, 3, 2, 2, generator=generator(0, "pairs"))
    judges = judged(mix, images, prompts)
    assert judges[:100] == judges[100:]
    assert 30 < sum(judges[:100]) < 70
    for changed in (
        judged(mix, images.flip(3), prompts),  # other images
        judged(drawn([1.0, 1.0], seed=1), images, prompts),  # another seed
        judged(mix, images, [f"{prompt}!" for prompt in prompts]),  # another prompt
    ):
        assert 20 < sum(a != b for a, b in zip(judges[:100], changed[:100], strict=True)) < 80


def test_the_same_inputs_in_any_order_and_any_parts_draw_the_same() -> None:
    mix, prompts = drawn([1.0, 2.0, 1.0]), [f"prompt {row % 20}" for row in range(80)]
    images = torch.rand(80, 3, 4, 4, generator=generator(0, "parts"))
    scores, maps = mix(images, prompts), mix.map(images, prompts)
    order = torch.randperm(80, generator=generator(0, "order"))
    assert torch.equal(mix(images[order], [prompts[row] for row in order]), scores[order])
    for part in range(4):  # whole prompts a process
        rows = [row for row in range(80) if row % 20 // 5 == part]
        assert torch.equal(drawn([1.0, 2.0, 1.0])(images[rows], [prompts[row] for row in rows]), scores[rows])
    assert torch.equal((maps[:, 0, 0] / 10).int(), ((scores - images.mean((1, 2, 3))) / 10).round().int())


def test_a_pair_has_one_judge_whatever_its_order() -> None:
    mix, prompts = drawn([1.0, 1.0], stds=[0.1, 10.0]), [f"prompt {row}" for row in range(60)]
    a, b = torch.rand(2, 60, 3, 2, 2, generator=generator(0, "pair"))
    chosen = mix.prefer(a, b, prompts)
    torch.testing.assert_close(chosen + mix.prefer(b, a, prompts), torch.ones(60))
    apart = a.mean((1, 2, 3)) - b.mean((1, 2, 3))
    by_judge = torch.stack([torch.sigmoid(apart / 0.1), torch.sigmoid(apart / 10)])
    nearest = (by_judge - chosen).abs().argmin(0)
    torch.testing.assert_close(by_judge.gather(0, nearest[None])[0], chosen)  # one of the two judges, on both images
    assert 15 < nearest.sum() < 45


def test_a_drawn_judge_passes_the_gradient_on() -> None:
    mix = MixDrawn(judges=[Brightness(), LightLeft()], weights=[1.0, 1.0], means=[0.5, 0.0], stds=[0.2, None], seed=0)
    images = pictures().requires_grad_(True)
    mix(images, PROMPTS).sum().backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()
    assert (mix.grouped, mix.differentiable, mix.spatial) == (True, True, True)


def test_no_weight_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reward\.weights: all are 0"):
        drawn([0.0, 0.0])


# --- through the front door


def test_the_measured_numbers_normalise_the_reference_s_scores() -> None:
    """conf/reward/mix.yaml: on drawn scenes, which are near the sandbox's own, each judge is within two of 0."""
    config = compose(["method=ddpo", "reward=mix"]).config
    assert [asset.key for asset in named(config)] == ["model.path", "reward.judges[0].path"]
    mix = Experiment.build(config).reward
    assert isinstance(mix, Mix)
    for index, judge in enumerate(mix.judges):
        assert ((judge(pictures(), PROMPTS).mean() - mix.means[index]) / mix.stds[index]).abs() < 2


def test_a_run_trains_from_a_mix_and_one_that_cannot_be_served_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["eval=quick", "eval.prompts=2", "eval.images=2", "eval.grid=2", "eval.every=0", "epochs=1", "sampler.steps=3"]
    words = ["method.images=16", "method.images_per_prompt=4", f"output={tmp_path}", *small]
    assert main(["method=ddpo", "reward=mix_drawn", *words]) == 0
    assert main(["method=pxpo", "reward=mix", *words]) == 2
    assert "needs a pixel map, which reward=mix has not" in capsys.readouterr().err
