"""The sandbox's world: splits, drawing, and the exact judge on real scenes."""

import pytest
import torch

from alignbench.rng import generator
from alignbench.worlds.scenes import ATTRIBUTES, COLOURS, PIXELS, SHAPES, Scene, all_scenes, correct, coverage, draw, nearness, read


def test_splits_are_disjoint_and_hold_out_pairs_of_shape_and_colour() -> None:
    pairs = {split: {(scene.shape, scene.colour) for scene in all_scenes(split)} for split in ("train", "validation", "test")}
    assert [len(pairs[split]) for split in ("train", "validation", "test")] == [36, 6, 6]
    assert len(set.union(*pairs.values())) == 48
    assert {shape for shape, _ in pairs["train"]} == set(SHAPES)
    assert {colour for _, colour in pairs["train"]} == set(COLOURS)
    assert len({scene.caption for scene in all_scenes()}) == 3360


def test_a_caption_reads_back() -> None:
    for scene in all_scenes()[::7]:
        assert Scene.parse(scene.caption) == scene
    with pytest.raises(ValueError, match="not a scene's caption: 'a dog'"):
        Scene.parse("a dog")


def test_the_judge_is_right_on_real_scenes() -> None:
    picked = torch.randperm(3360, generator=generator(0, "scenes"))[:2000].tolist()
    scenes = [all_scenes()[index] for index in picked]
    images = draw(scenes, generator(1, "scenes"))
    assert images.shape == (2000, 3, PIXELS, PIXELS)
    right = correct(images, [scene.caption for scene in scenes])
    assert right.all(1).float().mean() >= 0.99


@pytest.mark.parametrize("attribute", range(5))
def test_each_attribute_is_judged_on_its_own(attribute: int) -> None:
    scene = Scene("circle", "red", "small", "at the left", "blue")
    changes = [{"shape": "cross"}, {"colour": "white"}, {"size": "large"}, {"position": "at the top"}, {"background": "black"}]
    other = Scene(**{**scene.__dict__, **changes[attribute]})
    right = correct(draw([other], generator(0, "one")), [scene.caption])[0]
    assert right.tolist() == [index != attribute for index in range(5)], ATTRIBUTES[attribute]


def test_an_empty_or_noisy_picture_is_not_right() -> None:
    plain = torch.full((1, 3, PIXELS, PIXELS), 0.5)
    assert read(plain)[0, :4].tolist() == [-1] * 4
    noise = torch.rand(64, 3, PIXELS, PIXELS, generator=generator(0, "noise"))
    assert correct(noise, [all_scenes()[0].caption] * 64).all(1).float().mean() < 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_anti_aliased_and_have_the_right_area(shape: str) -> None:
    radius = 7.0
    area = {"circle": 3.14159, "square": 3.0976, "triangle": 2.0297, "cross": 2.2576, "ring": 2.3562, "diamond": 3.38}[shape] * radius**2
    alpha = coverage(shape, torch.tensor([[16.0, 16.0]]), torch.tensor([radius]))[0]
    assert alpha.sum().item() == pytest.approx(area, rel=0.03)
    assert ((alpha > 0.05) & (alpha < 0.95)).any()


def test_nearness_can_be_climbed_along_its_gradient() -> None:
    """From scenes that show another prompt, worn by noise; and the slope is finite where a centre lies on a pixel's own."""
    drawn, words = draw(all_scenes("train")[::100], generator(0, "slope")), [scene.caption for scene in all_scenes("train")[::100]]
    wrong = words[1:] + words[:1]
    images = (drawn + 0.03 * torch.randn(drawn.shape, generator=generator(0, "worn"))).clamp(0, 1)
    ends = []
    for sign in (1, -1):
        x = images
        for _ in range(10):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(nearness(x, wrong).mean(1).sum(), x)
            x = x + sign * 0.1 * slope / slope.flatten(1).norm(dim=1).clamp(min=1e-9)[:, None, None, None]
        ends.append(nearness(x.detach(), wrong).mean(1))
    start = nearness(images, wrong).mean(1)
    assert ((ends[0] - start) > 0).float().mean() > 0.9
    assert (ends[0] - start).mean() > 0.005
    assert (ends[1] - start).mean() < -0.005
    still = torch.zeros(1, 3, 32, 32)
    still[:, 0] = coverage("ring", torch.full((1, 2), 16.5), torch.tensor([7.0]))
    still = still.requires_grad_()
    (slope,) = torch.autograd.grad(nearness(still, ["a large red ring in the centre on a black background"]).sum(), still)
    assert slope.isfinite().all()
