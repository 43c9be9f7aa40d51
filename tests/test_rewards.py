"""The first rewards: what they measure, and that what they say of themselves is true."""

import io

import pytest
import torch
from PIL import Image

from alignbench.rewards.base import Reward
from alignbench.rewards.brightness import Brightness, LightLeft, LightRight
from alignbench.rewards.colour import Colour
from alignbench.rewards.exact_judge import ExactJudge
from alignbench.rewards.jpeg import JpegCompressibility, JpegIncompressibility
from alignbench.rewards.scene_judge import SceneJudge
from alignbench.rng import generator
from alignbench.worlds.scenes import COLOURS, Scene, all_scenes, draw, nearness

REWARDS = [
    SceneJudge(),
    ExactJudge(),
    Colour(width=0.35),
    JpegCompressibility(),
    JpegIncompressibility(),
    Brightness(),
    LightLeft(),
    LightRight(),
]
SCENES = all_scenes("train")[::500]
PROMPTS = [scene.caption for scene in SCENES]


def pictures() -> torch.Tensor:
    return draw(SCENES, generator(0, "pictures"))


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.name)
def test_a_reward_is_what_it_says(reward: Reward) -> None:
    images = pictures().requires_grad_(True)
    scores = reward(images, PROMPTS)
    low, high = reward.range
    assert scores.shape == (len(PROMPTS),)
    assert ((scores >= low) & (scores <= high)).all()
    alone = torch.cat([reward(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(len(PROMPTS))])
    torch.testing.assert_close(scores, alone)
    assert scores.requires_grad is reward.differentiable
    if reward.differentiable:
        scores.sum().backward()
        assert images.grad is not None
        assert images.grad.abs().sum() > 0
    if reward.spatial:
        map_ = reward.map(images, PROMPTS)
        assert map_.shape == (len(PROMPTS), *images.shape[2:])
        torch.testing.assert_close(map_.flatten(1).mean(1), scores)
    else:
        with pytest.raises(ValueError, match="spatial reward"):
            reward.map(images, PROMPTS)


def test_the_scene_judge_pays_for_each_attribute() -> None:
    assert SceneJudge()(pictures(), PROMPTS).min() > 0.97
    assert ExactJudge()(pictures(), PROMPTS).all()
    for scene, image in zip(SCENES, pictures(), strict=True):
        for wrong in (
            {"shape": "ring" if scene.shape != "ring" else "circle"},
            {"position": "at the top" if scene.position != "at the top" else "at the left"},
        ):
            other = [Scene(**{**scene.__dict__, **wrong}).caption]
            assert SceneJudge()(image[None], other) < SceneJudge()(image[None], [scene.caption]) - 0.03
            assert not ExactJudge()(image[None], other).any()


def test_light_has_a_place_that_no_change_of_the_whole_image_earns() -> None:
    image = torch.rand(1, 3, 32, 32, generator=generator(0, "lit"))
    left, right = LightLeft(), LightRight()
    torch.testing.assert_close(left(image + 0.25, [""]), left(image, [""]))
    torch.testing.assert_close(right(image.flip(3), [""]), left(image, [""]))
    assert left.map(image, [""])[:, :, :16].all()
    assert not left.map(image, [""])[:, :, 16:].any()
    lit = torch.zeros(1, 3, 32, 32)
    lit[..., :8] = 1
    assert (left(lit, [""]).item(), right(lit, [""]).item()) == (0.5, 0.0)


def test_the_scene_judge_rises_on_the_way_to_the_right_colour() -> None:
    scene = Scene("circle", "red", "large", "in the centre", "blue")
    image = draw([scene], generator(0, "one"))
    wrong = torch.tensor(COLOURS["green"])[:, None, None]
    faded = [SceneJudge()(image + share * (wrong - image), [scene.caption]).item() for share in (0.0, 0.2, 0.4, 0.6)]
    assert faded == sorted(faded, reverse=True)
    assert len(set(faded)) == 4


def test_jpeg_size_is_that_of_the_file_in_kilobytes() -> None:
    image = torch.rand(1, 3, 32, 32, generator=generator(0, "noise"))
    buffer = io.BytesIO()
    Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=95)
    assert JpegIncompressibility()(image, [""]).item() == pytest.approx(len(buffer.getvalue()) / 1000)
    assert JpegCompressibility()(image, [""]).item() == -JpegIncompressibility()(image, [""]).item()
    flat = torch.full_like(image, 0.5)
    assert JpegCompressibility()(flat, [""]) > JpegCompressibility()(image, [""])


def test_colour_is_highest_where_pixels_have_a_named_colour() -> None:
    red, grey = (torch.tensor(rgb)[None, :, None, None].expand(1, 3, 8, 8) for rgb in (COLOURS["red"], (0.5, 0.5, 0.5)))
    half = torch.cat([red[..., :4], grey[..., :4]], -1)
    map_ = Colour(width=0.35).map(half, ["a red thing"])[0]
    assert map_[:, :4].min() == 1.0
    assert map_[:, 4:].max() < 0.2
    with pytest.raises(ValueError, match="needs a colour in the prompt"):
        Colour(width=0.35)(half, ["a thing"])


def test_preference_is_bradley_terry_on_the_scores() -> None:
    reward, a = Colour(width=0.35), pictures()
    b = a.flip(0)
    expected = torch.sigmoid(reward(a, PROMPTS) - reward(b, PROMPTS))
    torch.testing.assert_close(reward.prefer(a, b, PROMPTS), expected)
    torch.testing.assert_close(reward.prefer(a, b, PROMPTS) + reward.prefer(b, a, PROMPTS), torch.ones(len(PROMPTS)))


def test_the_scene_judge_s_map_says_whose_fault_it_is() -> None:
    """In an image of a wrong shape the background earns more than the ink, in one of a wrong background less, and halves earn half."""
    right = Scene("square", "red", "large", "in the centre", "blue")
    image = draw([right], generator(0, "map"))
    ink, paper = (slice(14, 18), slice(14, 18)), (slice(0, 4), slice(0, 4))
    good = nearness(image, [right.caption])[0]
    for wrong, loses in (({"colour": "green"}, ink), ({"position": "at the top"}, ink), ({"background": "green"}, paper)):
        prompt = Scene(**{**right.__dict__, **wrong}).caption
        near, pixels = nearness(image, [prompt])[0], SceneJudge().map(image, [prompt])[0]
        shape, background = near[:4].mean(), near[4]
        assert (shape < good[:4].mean() - 0.1) == (loses is ink)
        torch.testing.assert_close(pixels[ink] - pixels[0, 0], (shape - background).expand(4, 4))  # in full ink and in none
        assert pixels[ink].max() < pixels[paper].min() if loses is ink else pixels[paper].max() < pixels[ink].min()
    edge = draw([right], generator(0, "map"))
    edge[:, :, :, 25] = 0.5 * (torch.tensor(COLOURS["red"]) + torch.tensor(COLOURS["blue"]))[:, None]  # a column of half ink
    pixels = SceneJudge().map(edge, [Scene("square", "green", "large", "in the centre", "blue").caption])[0]
    torch.testing.assert_close(pixels[10, 25], (pixels[16, 16] + pixels[0, 0]) / 2, atol=0.02, rtol=0)


def test_where_nothing_is_drawn_the_map_is_flat() -> None:
    blank = torch.tensor(COLOURS["blue"])[None, :, None, None].expand(1, 3, 32, 32) + 0.01 * torch.rand(
        1, 3, 32, 32, generator=generator(0, "b")
    )
    pixels = SceneJudge().map(blank, ["a small red circle at the left on a blue background"])
    near = nearness(blank, ["a small red circle at the left on a blue background"])
    assert not near[0, :4].any()
    assert near[0, 4] > 0.9
    torch.testing.assert_close(pixels, (near[0, 4] / 5).expand_as(pixels))
