"""A person's choices as scores: shares of comparisons won, of labelled images alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alignbench import compose as compose_module
from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.config import MissingAsset
from alignbench.labels import Journal, read_items
from alignbench.rewards.human import Human
from alignbench.rng import generator

SIZES = (2, 3, 2, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Groups of 2, 3, 2 and 2 images: a choice, a choice, a tie, and one that nobody has looked at. 1-2 and 2-0 are one image."""
    folder = tmp_path / "labels"
    (folder / "images").mkdir(parents=True)
    pixels = iter((torch.rand(9, 6, 8, 3, generator=generator(0, "labels")) * 255).byte().numpy())
    groups = [[f"{group}-{k}.png" for k in range(size)] for group, size in enumerate(SIZES)]
    for name in (name for group in groups for name in group):
        Image.fromarray(next(pixels)).save(folder / "images" / name)
    (folder / "images" / "2-0.png").write_bytes((folder / "images" / "1-2.png").read_bytes())
    items = {"format": 1, "run": "a-run", "groups": [{"prompt": f"prompt {i}", "images": each} for i, each in enumerate(groups)]}
    (folder / "items.json").write_text(json.dumps(items))
    journal = Journal(folder, read_items(folder))
    for group, best in ((0, 1), (1, 2), (2, None)):
        journal.choose(group, best)
    journal.close()
    return folder


def image(folder: Path, *names: str) -> Tensor:
    return torch.stack(
        [torch.from_numpy(np.array(Image.open(folder / "images" / f"{name}.png"))).permute(2, 0, 1).float() / 255 for name in names]
    )


def test_scores_are_shares_of_comparisons_won(folder: Path) -> None:
    reward = Human(path=str(folder))
    names = ["0-0", "0-1", "1-0", "1-1", "1-2", "2-0", "2-1"]
    scores = reward(image(folder, *names), [""] * 7)
    shared = (1 + 1 + 0.5) / 3  # won two of group 1, tied the one of group 2
    torch.testing.assert_close(scores, torch.tensor([0, 1, 0, 0, shared, shared, 0.5]))
    order = torch.tensor([3, 0, 6, 2, 4, 1, 5])
    assert torch.equal(reward(image(folder, *names)[order], [""] * 7), scores[order])
    assert torch.equal(torch.cat([reward(image(folder, name), [""]) for name in names]), scores)
    assert (reward.range, reward.differentiable, reward.spatial, reward.grouped) == ((0.0, 1.0), False, False, False)
    assert torch.equal(reward(image(folder, "0-1") + 0.3 / 255, [""]), torch.ones(1))  # the same 8 bits


def test_other_images_are_refused_in_a_line_that_says_what_to_do(folder: Path) -> None:
    reward, known = Human(path=str(folder)), image(folder, "0-1")
    for other in (known.flip(3), image(folder, "3-0"), (known + 1 / 255).clamp(max=1)):  # mirrored, not labelled yet, a level lighter
        with pytest.raises(
            ValueError, match=r"reward=human: 1 of 2 images are none .*cannot score new images; method=d3po_human"
        ) as caught:
            reward(torch.cat([known, other]), ["", ""])
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="1 of 1 images"):
        reward(known.reshape(1, 3, 8, 6), [""])  # the same numbers in another shape


def test_an_undone_choice_does_not_count(folder: Path) -> None:
    journal = Journal(folder, read_items(folder))
    journal.undo()
    journal.close()
    torch.testing.assert_close(Human(path=str(folder))(image(folder, "1-2"), [""]), torch.ones(1))
    with pytest.raises(ValueError, match="cannot score new images"):
        Human(path=str(folder))(image(folder, "2-1"), [""])


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingAsset, match=r"reward\.path=nowhere: no labels there; `python -m alignbench label outputs/<run>`"):
        Human(path="nowhere")
    (folder / "preferences.jsonl").unlink()
    with pytest.raises(ValueError, match="nothing is labelled there yet"):
        Human(path=str(folder))


def test_labels_and_images_count_in_a_run_s_identity_and_in_the_judge_s(folder: Path) -> None:
    words = ["method=best_of_n", "reward=human", f"reward.path={folder}"]

    def now() -> tuple[str, dict[str, str]]:
        compose_module._digest.cache_clear()
        return compose(words).hash, Human(path=str(folder)).identity()

    first = now()
    assert first == now()
    journal = Journal(folder, read_items(folder))
    journal.choose(3, 0)
    journal.close()
    second = now()
    Image.new("RGB", (8, 6)).save(folder / "images" / "0-0.png")
    third = now()
    for which in (0, 1):
        assert first[which] != second[which] != third[which]
    assert str(folder) not in str(third[1])  # where the folder is changes no score


def test_training_from_it_ends_in_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["method=ddpo", "reward=human", f"reward.path={folder}", "epochs=1", "eval=quick", "method.images=16", "sampler.steps=3"]
    assert main([*words, f"output={tmp_path}"]) != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "reward=human" in line]
    assert "cannot score new images; method=d3po_human" in line
