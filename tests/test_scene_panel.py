"""The panel: each rater is the exact judge with an error of its own, which depends on the image alone."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from alignbench.compose import compose
from alignbench.experiment import made
from alignbench.rewards.exact_judge import ExactJudge
from alignbench.rewards.scene_judge import SceneJudge
from alignbench.rewards.scene_panel import ScenePanel, SmoothPanel
from alignbench.rng import generator
from alignbench.worlds.scenes import all_scenes, correct, draw

SCENES = all_scenes("train")[::6]
PROMPTS = [scene.caption for scene in SCENES]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """About half of them are right: the others have another image's prompt."""
    return draw(SCENES[: len(SCENES) // 2] + SCENES[len(SCENES) // 2 :][::-1], generator(0, "panel"))


@pytest.fixture(scope="module")
def verdicts(images: Tensor) -> Tensor:
    return correct(images, PROMPTS)


@pytest.fixture
def read_once(verdicts: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Gold, which the panel does not read off all the images again."""
    monkeypatch.setattr("alignbench.rewards.scene_panel.correct", lambda images, prompts: verdicts)
    return verdicts.all(1).float()


def test_the_error_has_no_mean_and_the_spread_that_was_asked(images: Tensor, read_once: Tensor) -> None:
    gold, scores = read_once, ScenePanel(noise=0.5, rater=0)(images, PROMPTS)
    assert 0.4 < gold.mean() < 0.6
    n = len(images)
    for part in (torch.ones(n, dtype=torch.bool), gold == 1, gold == 0):  # whatever the verdict: no bias
        errors = (scores - gold)[part]
        assert len(errors) > 100
        assert errors.mean().abs() < 4 * 0.5 / len(errors) ** 0.5
    assert (scores - gold).std() == pytest.approx(0.5, rel=4 / (2 * n) ** 0.5)
    tails = ((scores - gold).abs() > 0.5 * 1.96).float().mean()
    assert tails == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / n) ** 0.5)  # normal


def test_given_the_image_raters_agree_in_nothing(images: Tensor, read_once: Tensor) -> None:
    errors = torch.stack([ScenePanel(noise=0.5, rater=rater)(images, PROMPTS) - read_once for rater in range(64)])
    assert torch.corrcoef(errors[:4]).triu(1).abs().max() < 4 / len(images) ** 0.5
    assert (errors.mean(0).abs() < 5 * 0.5 / 8).all()  # many raters find the truth of each image


def test_a_rater_says_the_same_of_the_same_image(images: Tensor) -> None:
    rater, few, words = ScenePanel(noise=0.5, rater=3), images[:6], PROMPTS[:6]
    scores = rater(few, words)
    assert torch.equal(scores, torch.cat([rater(few[i : i + 1], words[i : i + 1]) for i in range(6)]))
    assert torch.equal(scores, ScenePanel(noise=0.5, rater=3)(few, words))
    assert torch.equal(scores.flip(0), rater(few.flip(0), words[::-1]))
    stored = (few * 255).round().byte().float() / 255  # as a PNG holds it
    assert torch.equal(scores, rater(stored, words))
    assert not torch.equal(scores, rater(few.flip(3), words))  # another image, another error


def test_a_rater_says_the_same_in_another_process() -> None:
    code = (
        "import torch; from alignbench.rewards.scene_panel import ScenePanel\n"
        "image = torch.zeros(1, 3, 32, 32); image[:, 0] = 0.9; image[:, 0, 12:20, 12:20] = 0\n"
        "print(ScenePanel(noise=2.0, rater=7)(image, ['a small black square in the centre on a red background']).item().hex())"
    )
    image = torch.zeros(1, 3, 32, 32)
    image[:, 0] = 0.9
    image[:, 0, 12:20, 12:20] = 0
    own = ScenePanel(noise=2.0, rater=7)(image, ["a small black square in the centre on a red background"]).item()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == own.hex()


def test_raters_stand_in_one_table_and_none_is_gold(images: Tensor) -> None:
    panel = [ScenePanel(noise=0.5, rater=rater) for rater in (0, 12)]
    assert [each.name for each in panel] == ["panel_0", "panel_12"]
    assert panel[0].identity() == {"name": "panel_0", "settings": "name=panel_0, noise=0.5, rater=0", "weights": ""}
    assert not panel[0].gold
    assert torch.equal(ScenePanel(noise=0.0, rater=0)(images[-40:], PROMPTS[-40:]), ExactJudge()(images[-40:], PROMPTS[-40:]))
    chosen = made(compose(["reward=scene_panel", "reward.rater=4"]).config["reward"])
    assert (chosen.name, chosen.noise) == ("panel_4", 0.5)


def test_the_smooth_panel_is_scene_judge_with_an_error_that_has_no_gradient(images: Tensor) -> None:
    few, words = images[:8].clone().requires_grad_(), PROMPTS[:8]
    scores = [SmoothPanel(noise=noise, rater=1)(few, words) for noise in (0.0, 0.3)]
    assert torch.equal(scores[0], SceneJudge()(few, words))
    assert (scores[1] - scores[0]).abs().max() > 0.05
    slopes = [torch.autograd.grad(each.sum(), few)[0] for each in scores]
    assert torch.equal(*slopes)
    assert slopes[0].flatten(1).norm(dim=1).min() > 0
    assert SmoothPanel(noise=0.3, rater=4).name == "smooth_panel_4"
