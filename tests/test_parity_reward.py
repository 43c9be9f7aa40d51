"""Statistical parity: what each image is credited with is a policy gradient of the set's worth; CLIP classifies as transformers."""

import math
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.config import MissingAsset
from alignbench.report.record import read_metrics
from alignbench.rewards.base import Reward
from alignbench.rewards.groups import credited
from alignbench.rewards.parity import Parity, SceneParity, one_hot, parity
from alignbench.rng import generator
from alignbench.worlds.scenes import ATTRIBUTES, COLOURS, POSITIONS, SHAPES, SIZES, Scene, draw

BASE = Scene("circle", "red", "large", "in the centre", "blue")
VALUES = dict(zip(ATTRIBUTES, (SHAPES, tuple(COLOURS), tuple(SIZES), tuple(POSITIONS), tuple(COLOURS)), strict=True))


def scenes(attribute: str, values: list[str]) -> Tensor:
    return draw([Scene(**(vars(BASE) | {attribute: value})) for value in values], generator(0, "scenes"))


def scored(attribute: str, values: list[str], prompts: list[str] | None = None) -> Tensor:
    return SceneParity(attribute=attribute)(scenes(attribute, values), prompts or ["a"] * len(values))


def worth(values: tuple[int, ...], count: int) -> float:
    """R as the paper has it, by counting."""
    return -sum((values.count(a) / len(values) - 1 / count) ** 2 for a in range(count))


# --- the credit


PLACES = ["at the left", "at the right", "at the top"]  # three of five: the policy below shows no other
N = 4
SETS = list(product(range(len(PLACES)), repeat=N))
LOGITS = torch.tensor([1.2, 0.1, -0.7], dtype=torch.float64, requires_grad=True)


def credits() -> Tensor:
    """The reward's own scores [sets,N] of all sets of four images, each set with a prompt of its own, in one call."""
    drawn = scenes("position", PLACES)
    images = torch.cat([drawn[list(values)] for values in SETS])
    prompts = [f"set {index}" for index in range(len(SETS)) for _ in range(N)]
    return SceneParity(attribute="position")(images, prompts).view(-1, N).double()


def gradients(credit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and total variance of mean_i credit_i grad log p(x_i) under the policy, by enumeration; and grad E[R]."""
    log_p = torch.log_softmax(LOGITS, 0)
    slopes = torch.stack([torch.autograd.grad(log_p[a], LOGITS, retain_graph=True)[0] for a in range(len(PLACES))])
    chance = torch.stack([log_p[list(values)].sum().exp() for values in SETS])
    each = (credit[..., None] * slopes[torch.tensor(SETS)]).mean(1)  # [sets,logits]
    mean = (chance.detach()[:, None] * each).sum(0)
    variance = (chance.detach() * each.square().sum(1)).sum() - mean.square().sum()
    expected = (chance * torch.tensor([worth(values, 5) for values in SETS], dtype=torch.float64)).sum()
    return mean, variance, torch.autograd.grad(expected, LOGITS)[0]


def test_the_credit_is_an_unbiased_policy_gradient_of_the_set_s_worth() -> None:
    credit = credits()
    mean, variance, true = gradients(credit)
    assert true.abs().max() > 0.01
    torch.testing.assert_close(mean, true, rtol=1e-5, atol=1e-7)
    shared = torch.tensor([[N * worth(values, 5)] * N for values in SETS], dtype=torch.float64)
    same, larger, _ = gradients(shared)  # every image is paid what the set is worth
    torch.testing.assert_close(same, true)
    assert variance < 0.5 * larger


def test_a_baseline_that_knows_the_image_itself_is_biased() -> None:
    """Negative control: the mean over all images left out in turn stands in the place of the one left out."""
    wrong = torch.tensor(
        [[N * worth(v, 5) - (N - 1) * sum(worth(v[:i] + v[i + 1 :], 5) for i in range(N)) / N] * N for v in SETS], dtype=torch.float64
    )
    mean, _, true = gradients(wrong)
    assert (mean - true).abs().max() > 0.1 * true.abs().max()


def test_less_the_prompt_s_mean_the_gradient_keeps_its_direction() -> None:
    """What docs/rewards/groups_and_mixes.md says of method.advantage=group and group_mean."""
    credit = credits()
    mean, _, true = gradients(credit - credit.mean(1, keepdim=True))
    torch.testing.assert_close(mean, true * (N - 2) / (N - 1), rtol=1e-5, atol=1e-7)
    pair = scored("size", ["small", "large"])
    assert pair[0] == pair[1]  # so that of two images nothing is left


def test_the_mean_credit_is_what_a_set_without_end_is_worth() -> None:
    shares = torch.softmax(LOGITS.detach(), 0)
    chance = torch.stack([shares[list(values)].prod() for values in SETS])
    exact = -(shares - 0.2).square().sum() - 2 * 0.2**2
    torch.testing.assert_close((chance * credits().mean(1)).sum(), exact, rtol=1e-5, atol=0)


def test_the_credit_of_each_image_by_hand() -> None:
    """Three small, one large: with it R = -2/16 * ..., so n R(S) - (n - 1) R(S without i)."""
    small = 4 * -2 * (1 / 4) ** 2 - 3 * -2 * (1 / 6) ** 2
    large = 4 * -2 * (1 / 4) ** 2 - 3 * -2 * (1 / 2) ** 2
    torch.testing.assert_close(scored("size", ["small", "small", "large", "small"]), torch.tensor([small, small, large, small]))


# --- what it says of itself


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_order_and_range_on_every_attribute(attribute: str) -> None:
    first, second = [each for each in VALUES[attribute] if each not in (BASE.colour, BASE.background)][:2]
    if attribute not in ("colour", "background"):
        first, second = VALUES[attribute][:2]
    same, mixed, even = (
        scored(attribute, values) for values in ([first] * 6, [first] * 5 + [second], [first, second, first, second, second, first])
    )
    assert same.mean() < mixed.mean() < even.mean()
    assert mixed[:5].max() < mixed[5]  # the rare one is worth more
    assert same.mean().item() == pytest.approx(worth((0,) * 6, len(VALUES[attribute])), abs=1e-6)
    low, high = SceneParity.range
    for scores in (same, mixed, even):
        assert low <= scores.min() <= scores.max() <= high


def test_an_image_without_a_shape_counts_for_no_value_and_against_parity() -> None:
    whole = scenes("shape", list(SHAPES))
    lacking = torch.cat([whole[:5], torch.full((1, 3, 32, 32), 0.3)])
    scores, fewer = (SceneParity(attribute="shape")(images, ["a"] * 6) for images in (whole, lacking))
    torch.testing.assert_close(scores, torch.full((6,), scores[0].item()))
    assert fewer[5] < fewer[:5].min()
    assert fewer.mean() < scores.mean()
    blank = SceneParity(attribute="shape")(lacking[[5, 5, 5]], ["a"] * 3)
    assert SceneParity.range[0] <= blank.min() < worth((0, 0, 0), 6)


def test_the_extremes_stay_in_range() -> None:
    for n, count in product((2, 3, 5, 9), (2, 6)):
        for values in product(range(-1, 2), repeat=n) if n < 6 else [(0,) * n, (*(0,) * (n - 1), 1), (-1,) * n, (-1, *(0,) * (n - 1))]:
            scores = credited(parity, one_hot(torch.tensor(values), count), ["a"] * n, "parity")
            assert -1.5 <= scores.min() <= scores.max() <= 1.5
            if min(values) >= 0:
                assert scores.min() >= -1


def judges(clip_folder: Path) -> list[Reward]:
    return [SceneParity(attribute="background"), clip_parity(clip_folder)]


def clip_parity(clip_folder: Path, groups: tuple[str, ...] = ("a cat", "a big dog", "something else")) -> Parity:
    return Parity(path=str(clip_folder), revision=None, groups=list(groups), template="a photo of {}")


def noise(count: int) -> Tensor:
    """Images of different means and textures."""
    flat = torch.rand(count, 3, 1, 1, generator=generator(0, "flat"))
    return (flat + 0.5 * torch.rand(count, 3, 32, 32, generator=generator(0, "noise")) - 0.25).clamp(0, 1)


@pytest.mark.parametrize("which", [0, 1])
def test_order_of_images_and_other_prompts_change_nothing(which: int, clip_folder: Path) -> None:
    reward, images, prompts = judges(clip_folder)[which], noise(12), ["a", "b", "b", "a", "a", "b"] * 2
    scores = reward(images.requires_grad_(True), prompts)
    assert (reward.grouped, reward.differentiable, reward.spatial, scores.requires_grad) == (True, False, False, False)
    assert scores.std() > 0
    order = torch.randperm(12, generator=generator(0, "order"))
    torch.testing.assert_close(reward(images[order], [prompts[row] for row in order]), scores[order])
    own = [row for row, prompt in enumerate(prompts) if prompt == "a"]
    torch.testing.assert_close(reward(images[own], ["another"] * len(own)), scores[own])
    with pytest.raises(ValueError, match=r"'c' has one: set method\.images_per_prompt .* to 2 or more") as caught:
        reward(images, [*prompts[:-1], "c"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="spatial reward"):
        reward.map(images, prompts)


# --- CLIP


def test_clip_classifies_as_transformers_does(clip_folder: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    reward, images = clip_parity(clip_folder), (noise(40) * 255).round() / 255
    net, words = CLIPModel.from_pretrained(clip_folder).eval(), CLIPTokenizer.from_pretrained(clip_folder)
    process = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = process([(each * 255).byte().permute(1, 2, 0).numpy() for each in images], return_tensors="pt")
    texts = words([f"a photo of {group}" for group in reward.groups], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = net(**texts, **pixels).logits_per_image.argmax(1)
    found = reward.values(images)
    assert len(set(expected.tolist())) >= 2
    assert torch.equal(found, expected)
    assert torch.equal(torch.cat([reward.values(each[None]) for each in images]), found)  # one at a time
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reward.values(images), found)
    scores, n = reward(images, ["a"] * 40), 40
    seen = tuple(expected.tolist())
    rest = seen[:7] + seen[8:]
    assert scores[7].item() == pytest.approx(n * worth(seen, 3) - (n - 1) * worth(rest, 3), abs=1e-4)


def test_what_it_says_of_itself_depends_on_its_groups(clip_folder: Path) -> None:
    one, other = (clip_parity(clip_folder, groups).identity() for groups in (("a cat", "a dog"), ("a cat", "a cow")))
    assert one["weights"] != other["weights"]
    assert "groups=['a cat', 'a dog']" in one["settings"]


@pytest.mark.parametrize(
    "groups, template, said",
    [(["a cat"], "{}", "reward.groups=.* two or more different"), (["a", "a"], "{}", "two or more"), (["a", "b"], "a", "one {}")],
)
def test_groups_and_templates_that_cannot_be_are_refused(groups: list[str], template: str, said: str, clip_folder: Path) -> None:
    with pytest.raises(ValueError, match=said):
        Parity(path=str(clip_folder), revision=None, groups=groups, template=template)


@pytest.mark.parametrize("fault", ["missing", "truncated", "tokenizer", "key"])
def test_files_that_are_not_whole_are_refused_in_a_line(fault: str, clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    if fault != "missing":
        shutil.copytree(clip_folder, tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    if fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    if fault == "tokenizer":
        (tmp_path / "clip" / "vocab.json").unlink()
    if fault == "key":
        save_file({key: each for key, each in load_file(weights).items() if key != "visual_projection.weight"}, weights, {"format": "pt"})
    with pytest.raises(MissingAsset, match=r"reward\.path=.*: no CLIP there \(.*\); fetch .* \(1\.7 GB .*`hf download openai/") as caught:
        clip_parity(tmp_path / "clip")
    assert "\n" not in str(caught.value)


# --- a run


def test_a_run_trains_from_it(tmp_path: Path) -> None:
    words = ["method=ddpo", "reward=scene_parity", "eval=quick", "eval.prompts=2", "eval.images=4", "eval.grid=2", "eval.every=0"]
    words += ["epochs=2", "method.images=32", "method.images_per_prompt=8", "sampler.steps=3", f"output={tmp_path}"]
    assert main(words) == 0
    rows = [row for row in read_metrics(compose(words).folder) if row["split"] == "train"]
    assert all(-0.9 <= row["reward"] <= 0.1 and math.isfinite(row["loss"]) for row in rows)
