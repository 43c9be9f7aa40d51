"""What every judge of images must be, for the tests of each."""

from collections.abc import Callable
from pathlib import Path

import clip_files as files
import pytest
import torch
from pictures import drawn

from alignbench.config import MissingAsset
from alignbench.rewards.aesthetic import Aesthetic
from alignbench.rewards.base import Reward
from alignbench.rewards.hpsv2 import HPSv2
from alignbench.rewards.pickscore import PickScore
from alignbench.rng import generator


def is_what_it_says(reward: Reward, prompts: list[str], apart: float) -> None:
    """Alone as in a batch, within its range, a gradient to every image and none to a weight; images' scores are `apart` or more."""
    seen = drawn(3, 3, 96, 128).requires_grad_(True)
    scores = reward(seen, prompts)
    low, high = reward.range
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert scores.std() > apart
    assert ((scores >= low) & (scores <= high)).all()
    alone = torch.cat([reward(seen[i : i + 1], prompts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, scores, rtol=1e-5, atol=1e-6 * max(1.0, scores.detach().abs().max().item()))
    scores.sum().backward()
    assert seen.grad is not None
    assert (seen.grad.flatten(1).norm(dim=1) > 0).all()
    assert not any(each.requires_grad for each in reward.parameters())
    plain = reward(seen.detach(), prompts)
    torch.testing.assert_close(
        torch.cat([reward(seen.detach()[i : i + 1], prompts[i : i + 1]) for i in range(3)]), plain, rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ValueError, match="spatial reward"):
        reward.map(seen, prompts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = reward(seen.detach(), prompts)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)


def has_the_gradient_of_its_score(reward: Reward, prompt: str) -> None:
    """Against differences, in float64."""
    reward = reward.double()
    seen = (0.2 + 0.6 * drawn(1, 3, 40, 56).double()).requires_grad_(True)
    step = torch.rand(seen.shape, generator=generator(0, "step"), dtype=torch.float64) - 0.5
    reward(seen, [prompt]).sum().backward()
    with torch.no_grad():
        ends = [reward(seen + side * 1e-5 * step, [prompt]).item() for side in (1, -1)]
    assert seen.grad is not None
    assert (seen.grad * step).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def prefers_red(reward: Reward) -> None:
    """Of a network rebuilt by `clip_files.likes_red`: redder is better, and more so where the prompt says so."""
    level = torch.linspace(0, 1, 6)[:, None, None]
    picture = torch.zeros(6, 3, 48, 48)
    picture[:, 0] = level
    asked, not_asked = reward(picture, ["a red circle"] * 6), reward(picture, ["a blue circle"] * 6)
    least = 1e-4 * min(reward.range[1], 100.0)
    assert (asked.diff() > least).all()
    assert ((asked - not_asked).diff() > least).all()
    assert (asked - not_asked)[-1] > least
    assert (reward.prefer(picture[5:], picture[:1], ["a red circle"]) > 0.5).all()


def refused(make: Callable[[], Reward]) -> str:
    """The one line that a judge without its files ends in."""
    with pytest.raises(MissingAsset) as caught:
        make()
    line = str(caught.value)
    assert "\n" not in line
    return line


def stand_ins(folder: Path) -> dict[str, list[str]]:
    """Words that put small files in the place of those that the choices of CLIP's family name, by choice; with `shrink`."""
    from transformers import CLIPConfig

    for name in ("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt"):
        torch.save({"state_dict": files.weights(files.open_clip_shapes(files.SMALL))}, folder / name)
    sizes = files.small(len(files.vocabulary()))
    CLIPConfig(**files.for_transformers(sizes, "gelu")).save_pretrained(folder)
    files.save_folder(folder, files.as_transformers(files.weights(files.open_clip_shapes(sizes))))
    files.tokenizer(folder)
    torch.save(files.weights(files.head_shapes(files.HEAD)), folder / "head.pth")
    return {
        "hpsv2": [f"reward.path={folder}/HPS_v2_compressed.pt"],
        "hpsv2_1": [f"reward.path={folder}/HPS_v2.1_compressed.pt"],
        "pickscore": [f"reward.path={folder}", f"reward.tokenizer={folder}"],
        "clip_score": [f"reward.path={folder}"],
        "aesthetic": [f"reward.path={folder}", f"reward.head={folder}/head.pth"],
    }


def shrink(patch: pytest.MonkeyPatch) -> None:
    """The judges' networks, as small as those files."""
    sizes = files.for_transformers(files.small(len(files.vocabulary())), "gelu")
    for judge, small in ((HPSv2, files.SMALL), (PickScore, sizes), (Aesthetic, sizes)):
        patch.setattr(judge, "sizes", small)
    patch.setattr(Aesthetic, "widths", files.HEAD)
