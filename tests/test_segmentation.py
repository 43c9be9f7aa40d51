"""The segmentation reward, on a small SegFormer with random weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pictures import checks, photograph
from PIL import Image
from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor

from alignbench.__main__ import main
from alignbench.config import MissingAsset
from alignbench.rewards.segmentation import Segmentation
from alignbench.rng import generator


def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=generator(0, "images"))


def test_it_is_what_it_says(segformer: Path) -> None:
    reward, seen, prompts = (
        Segmentation(path=str(segformer), revision=None, label=None),
        images().requires_grad_(True),
        ["a red circle"] * 3,
    )
    map_, scores = reward.map(seen, prompts), reward(seen, prompts)
    assert map_.shape == (3, 32, 32)
    assert ((map_ > 0) & (map_ < 1)).all()
    torch.testing.assert_close(scores, map_.flatten(1).mean(1))
    torch.testing.assert_close(torch.cat([reward(seen[i : i + 1], prompts[:1]) for i in range(3)]), scores, rtol=1e-4, atol=1e-6)
    scores.sum().backward()
    assert seen.grad is not None
    assert seen.grad.abs().sum() > 0
    assert map_.flatten(1).std(1).min() > 1e-3  # it says where


def test_the_shares_of_all_classes_are_one_and_the_prompt_chooses(segformer: Path) -> None:
    reward = Segmentation(path=str(segformer), revision=None, label=None)
    each = [reward(images(), [f"a {word}"] * 3) for word in ("wall", "flooring", "red thing", "Circle")]
    torch.testing.assert_close(sum(each), torch.ones(3))
    torch.testing.assert_close(reward(images(), ["a red circle"] * 3), each[2] + each[3])
    torch.testing.assert_close(Segmentation(path=str(segformer), revision=None, label="Wall")(images(), ["a red circle"] * 3), each[0])
    with pytest.raises(ValueError, match="no class of the network is named in 'a predator'"):
        reward(images()[:1], ["a predator"])


def test_a_network_that_is_sure_of_a_class_pays_for_it(segformer: Path) -> None:
    reward = Segmentation(path=str(segformer), revision=None, label="red")
    with torch.no_grad():
        reward.net.decode_head.classifier.bias[2] += 50
    torch.testing.assert_close(reward(images(), [""] * 3), torch.ones(3))


@pytest.mark.parametrize("size", [(96, 96), (200, 301), (64, 64)], ids=str)
@pytest.mark.parametrize("draw", [photograph, checks])
def test_it_is_the_network_s_own_path(draw: Callable[[int, int], np.ndarray], size: tuple[int, int], segformer: Path) -> None:
    """transformers' processor on a PIL image, the network, its probabilities at the image's size. Within 0.01: PIL rounds to 8 bits."""
    picture = draw(*size)
    processor, net = SegformerImageProcessor.from_pretrained(segformer), SegformerForSemanticSegmentation.from_pretrained(segformer).eval()
    with torch.no_grad():
        logits = net(**processor(Image.fromarray(picture), return_tensors="pt")).logits
    official = F.interpolate(logits.softmax(1), size, mode="bilinear", align_corners=False)[0, 2]
    reward = Segmentation(path=str(segformer), revision=None, label="red")
    ours = reward.map(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, ["a red circle"])[0]
    assert official.std() > 1e-3
    torch.testing.assert_close(ours, official, rtol=0, atol=1e-2)


def test_what_is_missing_or_unknown_is_named(segformer: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"reward.label=sky: .* its classes are wall, floor, flooring, red, circle"):
        Segmentation(path=str(segformer), revision=None, label="sky")
    with pytest.raises(MissingAsset, match=r"no segmentation network there: .*hf download nobody/nothing"):
        Segmentation(path="nobody/nothing", revision=None, label=None)
    (tmp_path / "config.json").write_bytes((segformer / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((segformer / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(MissingAsset, match="no segmentation network there"):
        Segmentation(path=str(tmp_path), revision=None, label=None)


def test_pxpo_learns_from_it(segformer: Path, tmp_path: Path) -> None:
    words = [
        "method=pxpo",
        "reward=segmentation",
        f"reward.path={segformer}",
        "reward.label=red",
        "eval=quick",
        "eval.prompts=2",
        "eval.images=2",
    ]
    words += ["eval.grid=2", "eval.every=0", "epochs=1", "method.images=16", "sampler.steps=3", f"output={tmp_path}"]
    assert main(words) == 0
