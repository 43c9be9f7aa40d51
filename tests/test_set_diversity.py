"""Diversity of a prompt's images: the mean distance of pairs, and each image's part in it."""

import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignbench.config import MissingAsset
from alignbench.rewards.base import Reward
from alignbench.rewards.set_diversity import SceneDiversity, SetDiversity
from alignbench.rng import generator
from alignbench.worlds.scenes import Reading, Scene, all_scenes, draw

SCENES = all_scenes("train")[::220]  # 12
PROMPTS = ["a", "b", "b", "a", "a", "b", "a", "b", "b", "a", "a", "b"]


def pictures() -> Tensor:
    """As PNGs hold them: CLIP sees the image that would be saved."""
    return (draw(SCENES, generator(0, "pictures")) * 255).round() / 255


@pytest.fixture(params=["scene", "clip"])
def reward(request: pytest.FixtureRequest, clip_folder: Path) -> Reward:
    return SceneDiversity() if request.param == "scene" else SetDiversity(path=str(clip_folder), revision=None)


def features(reward: Reward, image: Tensor) -> Tensor:
    """What the reward compares, of one image [D], put together here from what others compute."""
    if isinstance(reward, SceneDiversity):
        seen = Reading.of(image[None])
        return torch.cat([seen.paper[0], seen.ink[0], seen.offset[0] / 6, seen.overlap[0].flatten()])
    from transformers import CLIPImageProcessor

    assert isinstance(reward, SetDiversity)
    process = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_rescale=False)
    net = reward.clip.net
    with torch.no_grad():
        return net.visual_projection(net.vision_model(**process([image], return_tensors="pt")).pooler_output)[0]


def distance(reward: Reward, a: Tensor, b: Tensor) -> float:
    if isinstance(reward, SceneDiversity):
        return (a - b).square().mean().sqrt().item()
    return 1 - torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def test_an_image_is_paid_twice_its_mean_distance_less_what_the_others_are_worth(reward: Reward) -> None:
    images = pictures()
    scores, seen = reward(images, PROMPTS), [features(reward, image) for image in images]
    for row, prompt in enumerate(PROMPTS):
        others = [each for each, one in enumerate(PROMPTS) if one == prompt and each != row]
        mean = sum(distance(reward, seen[row], seen[each]) for each in others) / len(others)
        pairs = [distance(reward, seen[a], seen[b]) for a, b in product(others, others) if a < b]
        assert scores[row].item() == pytest.approx(2 * mean - sum(pairs) / len(pairs), abs=2e-5)


def test_it_is_what_it_says(reward: Reward) -> None:
    images = pictures().requires_grad_(True)
    scores = reward(images, PROMPTS)
    assert (reward.grouped, reward.differentiable, reward.spatial, scores.requires_grad) == (True, False, False, False)
    low, high = reward.range
    assert low <= scores.min() <= scores.max() <= high
    order = torch.randperm(12, generator=generator(0, "order"))
    torch.testing.assert_close(reward(images[order], [PROMPTS[row] for row in order]), scores[order], rtol=1e-4, atol=1e-5)
    own = [row for row, prompt in enumerate(PROMPTS) if prompt == "a"]
    torch.testing.assert_close(reward(images[own], ["another"] * len(own)), scores[own], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=rf"reward={reward.name} .*'c' has one: set method\.images_per_prompt"):
        reward(images, [*PROMPTS[:-1], "c"])


def test_the_prompt_s_mean_is_the_mean_distance_of_its_pairs(reward: Reward) -> None:
    images = pictures()[:5]
    seen = [features(reward, image) for image in images]
    pairs = [distance(reward, seen[a], seen[b]) for a, b in product(range(5), range(5)) if a < b]
    assert reward(images, ["a"] * 5).mean().item() == pytest.approx(sum(pairs) / 10, abs=2e-5)
    two = reward(images[:2], ["a"] * 2)  # without one of two images nothing is left to compare, which counts 0
    torch.testing.assert_close(two, torch.full((2,), 2 * pairs[0]), rtol=1e-4, atol=2e-5)


def test_order_on_constructed_sets(reward: Reward) -> None:
    images = pictures()
    same, odd, varied = images[[0] * 6], images[[0, 0, 0, 4, 0, 0]], images[:6]
    scores = [reward(each, ["a"] * 6) for each in (same, odd, varied)]
    torch.testing.assert_close(scores[0], torch.zeros(6), rtol=0, atol=1e-5)
    assert scores[0].mean() < scores[1].mean() < scores[2].mean()
    assert scores[1].argmax() == 3


def test_the_largest_distances_stay_in_range() -> None:
    black, corner = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    corner[:, :, 1:9, 1:9] = 1
    scores = SceneDiversity()(torch.cat([black, 1 - black, corner, 1 - corner.flip(2, 3)]), ["a"] * 4)
    assert SceneDiversity.range[0] <= scores.min() <= scores.max() <= SceneDiversity.range[1]


def test_the_credit_is_an_unbiased_policy_gradient_of_the_set_s_worth() -> None:
    """By enumeration of all sets of three of three scenes; each image paid what the set is worth is unbiased too, and varies more."""
    places = ("at the left", "at the right", "at the top")
    drawn = draw([Scene("circle", "red", "large", place, "blue") for place in places], generator(0, "drawn"))
    sets, logits = list(product(range(3), repeat=3)), torch.tensor([0.9, 0.0, -0.4], dtype=torch.float64, requires_grad=True)
    prompts = [f"set {index}" for index in range(len(sets)) for _ in range(3)]
    credit = SceneDiversity()(torch.cat([drawn[list(each)] for each in sets]), prompts).view(-1, 3).double()
    seen = Reading.of(drawn).features
    apart = (seen[:, None] - seen).square().mean(-1).sqrt().double()
    worth = torch.stack([(apart[a, b] + apart[a, c] + apart[b, c]) / 3 for a, b, c in sets])
    log_p = torch.log_softmax(logits, 0)
    chance = torch.stack([log_p[list(each)].sum().exp() for each in sets])
    (true,) = torch.autograd.grad((chance * worth).sum(), logits, retain_graph=True)
    slopes = torch.stack([torch.autograd.grad(log_p[a], logits, retain_graph=True)[0] for a in range(3)])[torch.tensor(sets)]
    chance = chance.detach()
    found, spread = {}, {}
    for name, paid in {"ours": credit, "shared": (3 * worth)[:, None].expand(-1, 3), "less its mean": credit - worth[:, None]}.items():
        each = (paid[..., None] * slopes).mean(1)
        found[name] = (chance[:, None] * each).sum(0)
        spread[name] = (chance * each.square().sum(1)).sum() - found[name].square().sum()
    assert true.abs().max() > 0.01
    torch.testing.assert_close(found["ours"], true, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["shared"], true, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["less its mean"], true * 2 / 3, rtol=1e-4, atol=1e-6)  # 1 - 1/n of it, as the page says
    assert spread["ours"] < 0.7 * spread["shared"]


def test_what_is_missing_is_named(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "clip", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(MissingAsset, match=r"reward\.path=.*/clip: no CLIP there"):
        SetDiversity(path=str(tmp_path / "clip"), revision=None)
