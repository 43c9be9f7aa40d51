"""How judges see an image, against PIL, torchvision and transformers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pictures import SIZES, checks, noise, photograph, tensor
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor
from torchvision.transforms import functional as official
from transformers import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from alignbench.rewards.framing import CLIP_MEAN, CLIP_STD, clip_normalised, framed, letterboxed

Draw = Callable[[int, int], np.ndarray]
CROPPED = Compose([Resize(224, interpolation=InterpolationMode.BICUBIC), CenterCrop(224), ToTensor()])  # as ImageReward's and OpenAI's
MORE = [*SIZES, (225, 333), (97, 1201), (331, 224)]  # the last three have an odd number of pixels too many


@pytest.mark.parametrize("size", MORE, ids=str)
@pytest.mark.parametrize("draw", [photograph, checks, noise])
def test_a_frame_is_what_pil_makes_of_the_picture(draw: Draw, size: tuple[int, int]) -> None:
    picture = draw(*size)
    ours = framed(tensor(picture), 224)[0]
    assert ours.shape == (3, 224, 224)
    assert torch.equal(ours, CROPPED(Image.fromarray(picture)))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("draw", [photograph, checks])
def test_a_frame_with_a_gradient_is_near(draw: Draw, size: tuple[int, int]) -> None:
    picture = draw(*size)
    apart = (framed(tensor(picture).requires_grad_(True), 224)[0] - CROPPED(Image.fromarray(picture))).abs() * 255
    assert apart.max() < 1.5
    assert apart.mean() < 0.3


def test_a_picture_that_is_no_8_bits_is_framed_as_its_png() -> None:
    picture, drift = photograph(300, 451), 0.49 * (torch.rand(1, 3, 300, 451) * 2 - 1) / 255
    assert torch.equal(framed(tensor(picture) + drift, 224), framed(tensor(picture), 224))
    assert torch.equal(letterboxed(tensor(picture) + drift, 224, True), letterboxed(tensor(picture), 224, True))
    assert torch.equal(framed(3 * tensor(checks(40, 40)) - 1, 224), framed(tensor(checks(40, 40)), 224))


def test_who_asks_for_a_gradient_is_given_one_and_others_the_png() -> None:
    seen = tensor(photograph(300, 451)).requires_grad_(True)
    assert framed(seen, 224).requires_grad
    with torch.no_grad():
        assert torch.equal(framed(seen, 224), framed(seen.detach(), 224))
    assert not torch.equal(framed(seen, 224), framed(seen.detach(), 224))
    exact = tensor(photograph(64, 64)).double()  # in which gradients are checked: a step far below 1/255 counts
    assert not torch.equal(framed(exact, 224), framed(exact + 1e-6, 224))


@pytest.mark.parametrize("size", MORE, ids=str)
@pytest.mark.parametrize("draw", [photograph, checks, noise])
def test_a_frame_is_what_transformers_makes_of_the_picture(draw: Draw, size: tuple[int, int]) -> None:
    """In PIL, as the published judges were used, up to fp32; its newer way on tensors rounds otherwise, by at most two levels."""
    picture = draw(*size)
    ours = clip_normalised(framed(tensor(picture), 224, floor=True))[0]
    seen = CLIPImageProcessorPil()(Image.fromarray(picture), return_tensors="pt").pixel_values[0]
    assert (ours - seen).abs().max() < 2e-6
    newer = CLIPImageProcessor()(Image.fromarray(picture), return_tensors="pt").pixel_values[0]
    assert ((ours - newer).abs().amax((1, 2)) * torch.tensor(CLIP_STD) * 255 < 2.01).all()


def test_an_odd_number_of_pixels_too_many_has_two_centres() -> None:
    picture = photograph(224, 227)
    assert torch.equal(framed(tensor(picture), 224), tensor(picture)[..., 2:226])  # round(1.5)
    assert torch.equal(framed(tensor(picture), 224, floor=True), tensor(picture)[..., 1:225])


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", MORE, ids=str)
@pytest.mark.parametrize("draw", [photograph, checks, noise])
def test_a_letterbox_is_what_torchvision_makes_of_the_tensor(draw: Draw, size: tuple[int, int], antialias: bool) -> None:
    seen = tensor(draw(*size))
    scale = 224 / max(size)
    tall, wide = (round(side * scale) for side in size)
    expected = official.resize(seen, [tall, wide], InterpolationMode.BICUBIC, antialias=antialias)
    down, across = 224 - tall, 224 - wide
    expected = official.pad(expected, [across // 2, down // 2, across - across // 2, down - down // 2])
    assert torch.equal(letterboxed(seen, 224, antialias), expected)


def test_bars_are_black_and_every_pixel_inside_them_counts() -> None:
    seen = torch.full((1, 3, 100, 201), 0.5, requires_grad=True)
    box = letterboxed(seen, 224, True)
    inside = box[0, 0, :, 0] > 0.1
    assert inside.sum() == 111
    assert inside.nonzero()[0] == 56
    assert not box[..., ~inside, :].any()
    box.sum().backward()
    assert seen.grad is not None
    assert (seen.grad > 0).all()


def test_normalised_is_by_clip_s_numbers() -> None:
    seen = tensor(photograph(20, 30))
    torch.testing.assert_close(clip_normalised(seen), official.normalize(seen, list(CLIP_MEAN), list(CLIP_STD)))
