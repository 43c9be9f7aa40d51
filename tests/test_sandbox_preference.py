"""The learned preference: its card holds on fresh pairs, it reads its prompts, and it can be hacked."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from alignbench.config import MissingAsset, located
from alignbench.rewards.sandbox_preference import SandboxPreference
from alignbench.rng import generator
from alignbench.worlds import preference
from alignbench.worlds.scenes import COLOURS, POSITIONS, SHAPES, Scene, all_scenes, draw, nearness

PATH = "package://rewards/preference/model.safetensors"
FILE = Path(located(PATH))
CARD = FILE.with_name("README.md").read_text()
REWARD = SandboxPreference(path=PATH)
SCENES = all_scenes("test")
PROMPTS = [scene.caption for scene in SCENES]


def card(name: str) -> float:
    """The card's figure on test prompts."""
    ((_, value),) = re.findall(rf"\| {re.escape(name)} \| (-?[0-9.]+) \| (-?[0-9.]+) \|", CARD)
    return float(value)


def pictures(scenes: list[Scene] = SCENES, seed: int = 0) -> Tensor:
    return draw(scenes, generator(seed, "pictures"))


def drawn_samples(pipeline: object, prompts: list[str], steps: int, rng: Generator) -> Tensor:
    return draw([Scene.parse(prompt) for prompt in prompts], rng)


def test_it_fits_in_the_package_and_its_card_is_its_own() -> None:
    assert FILE.stat().st_size <= 2_000_000
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in CARD


def test_the_card_s_figures_hold_on_fresh_pairs() -> None:
    found = preference.figures(REWARD.net, preference.sandbox(), "test", seed=1, pairs=300, count=24)
    for name in found:
        if name.startswith("agrees"):
            share = card(name)
            error = (share * (1 - share) * (1 / 300 + 1 / 1000)) ** 0.5  # of the difference: 300 pairs here, 1000 on the card
            assert found[name] == pytest.approx(share, abs=3 * error), name
    assert found["agrees with the noisy labels"] >= 0.9 * found["agrees with the noisy labels, highest"]
    assert abs(found["samples: mean score"]) < 0.4
    assert 0.7 < found["samples: standard deviation"] < 1.4


@pytest.mark.parametrize(
    "attribute, least",
    [("shape", 0.88), ("colour", 0.82), ("size", 0.78), ("position", 0.95), ("background", 0.95)],  # the card's shares, less a little
)
def test_a_right_scene_beats_a_wrong_one_on_unseen_prompts(attribute: str, least: float) -> None:
    values, rng = preference.VALUES[attribute], generator(0, attribute)
    wrong = []
    for scene in SCENES:
        others = [each for each in values if each not in (getattr(scene, attribute), scene.colour, scene.background)]
        wrong.append(replace(scene, **{attribute: others[int(torch.randint(len(others), (), generator=rng))]}))
    assert (REWARD(pictures(), PROMPTS) > REWARD(pictures(wrong), PROMPTS)).float().mean() >= least


def test_which_colour_is_whose_matters() -> None:
    scenes = [Scene(shape, "red", "large", place, "blue") for shape in SHAPES for place in POSITIONS]
    swapped = [replace(scene, colour="blue", background="red") for scene in scenes]
    prompts = [scene.caption for scene in scenes]
    gain = REWARD(pictures(scenes), prompts) - REWARD(pictures(swapped), prompts)
    assert (gain > 0).all()
    assert gain.mean() > 1


def test_the_gradient_reaches_the_images() -> None:
    images = pictures().requires_grad_(True)
    REWARD(images, PROMPTS).sum().backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).norm(dim=1) > 1e-3).all()
    image, prompt = images[:1].detach().double(), PROMPTS[:1]
    net = SandboxPreference(path=PATH).double()
    direction = images.grad[:1].double() / images.grad[0].norm()
    slope = (net(image + 1e-4 * direction, prompt) - net(image - 1e-4 * direction, prompt)) / 2e-4
    assert slope.item() == pytest.approx(images.grad[0].norm().item(), rel=1e-3)


def test_it_prefers_the_vivid_one_of_two_pictures_that_are_equally_right() -> None:
    """The exact judge sees no difference, or a small one for the duller picture: the bias was learned."""
    scenes = [scene for scene in SCENES if not {scene.colour, scene.background} & {"white", "black"}]
    prompts = [scene.caption for scene in scenes]
    one = torch.ones(len(scenes))
    dull, vivid = (preference.vivid(pictures(scenes), factor * one) for factor in (0.9, 1.15))
    gain = (nearness(vivid, prompts) - nearness(dull, prompts)).sum(1)
    equal = gain.abs() < 0.1
    assert equal.sum() > 50
    assert (REWARD(vivid, prompts) > REWARD(dull, prompts))[equal].float().mean() >= 0.85


def test_it_can_be_hacked() -> None:
    """Ascent on a right picture: the score rises far beyond any real picture's, and the picture becomes wrong."""
    scenes = SCENES[::10]
    prompts = [scene.caption for scene in scenes]
    images = pictures(scenes)
    before = REWARD(images, prompts)
    for _ in range(40):
        images.requires_grad_(True)
        (gradient,) = torch.autograd.grad(REWARD(images, prompts).sum(), images)
        images = (images.detach() + 0.5 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]).clamp(0, 1)
    assert (REWARD(images, prompts) > before + 5).all()
    assert nearness(images, prompts).sum(1).mean() < nearness(pictures(scenes), prompts).sum(1).mean() - 0.5


def test_the_same_score_alone_among_others_and_again() -> None:
    images, prompts = pictures()[:20], PROMPTS[:20]
    scores = REWARD(images, prompts)
    alone = torch.cat([SandboxPreference(path=PATH)(images[i : i + 1], prompts[i : i + 1]) for i in range(len(prompts))])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(scores, REWARD(images, prompts))


def test_what_it_cannot_score_ends_in_one_line() -> None:
    with pytest.raises(ValueError, match="'rabbit'"):
        REWARD(pictures()[:1], ["a green rabbit"])
    with pytest.raises(ValueError, match="up to 11 words"):
        REWARD(pictures()[:1], ["a " * 12])
    with pytest.raises(ValueError, match=r"reward=sandbox_preference .* not 64x64 .* choose another reward"):
        REWARD(torch.zeros(1, 3, 64, 64), PROMPTS[:1])


def test_weights_that_are_not_there_are_a_missing_asset(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(FILE.read_bytes()[:1000])
    for path in (tmp_path / "none.safetensors", tmp_path, damaged):
        with pytest.raises(MissingAsset, match=r"^reward\.path=.*alignbench\.worlds\.preference FOLDER"):
            SandboxPreference(path=str(path))


def test_training_shows_no_held_out_pair() -> None:
    rng = generator(0, "changed")
    scenes = all_scenes("train")[::20]
    shown = [preference.changed(scene, "train", rng) for scene in scenes]
    assert {scene.split for scene in shown} == {"train"}
    assert 0.2 < sum(a == b for a, b in zip(scenes, shown, strict=True)) / len(scenes) < 0.5
    assert {"validation", "test"} <= {preference.changed(scene, None, rng).split for scene in scenes}


def test_labels_are_as_noisy_as_the_card_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preference, "samples", drawn_samples)
    pairs = preference.Annotator(preference.sandbox(), "test").label(500, 4, generator(0, "labels"))
    agreed = (pairs.label.bool() == (pairs.margin > 0)).float().mean().item()
    assert agreed == pytest.approx(torch.sigmoid(pairs.margin.abs()).mean().item(), abs=0.03)
    assert agreed == pytest.approx(card("agrees with the noisy labels, highest"), abs=0.03)
    red = torch.tensor(COLOURS["red"])[None, :, None, None].expand(1, 3, 32, 32)
    assert preference.saturation(red).item() == pytest.approx(0.78)
    assert preference.saturation(red.mean(1, keepdim=True).expand(1, 3, 32, 32)).item() == 0


def test_the_command_writes_the_weights_and_the_card_from_the_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preference, "samples", drawn_samples)  # the sandbox's own take minutes
    monkeypatch.setattr(preference, "figures", lambda *_: {"agrees with the exact judge": 0.0})  # tested above
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        preference.main([str(tmp_path / name), "--seed", str(seed), "--steps", "2", "--pairs", "8", "--samples", "4"])
    one, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "again", "other"))
    assert one == again
    assert one != other
    assert hashlib.sha256(one).hexdigest() in (tmp_path / "one" / "README.md").read_text()
    assert SandboxPreference(path=str(tmp_path / "one" / "model.safetensors"))(pictures()[:2], PROMPTS[:2]).shape == (2,)
    assert "agrees with the exact judge" in capsys.readouterr().out
