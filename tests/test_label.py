"""From a run to labels to D3PO: the images that a person sees are the policy's, and what is chosen trains."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.experiment import Experiment
from alignbench.label import sample
from alignbench.labels import Journal, preferences, read_items
from alignbench.report.record import read_metrics

SMALL = ["eval=quick", "eval.prompts=2", "eval.images=2", "eval.validation_prompts=2", "eval.grid=2", "sampler.steps=3"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labels folder of the untrained sandbox, in which the brighter image of each group was chosen, and one group is a tie."""
    output = tmp_path_factory.mktemp("outputs")
    words = ["method=reference", *SMALL, f"output={output}"]
    assert main(words) == 0
    run = compose(words).folder
    folder = run / "labels"
    sample(run, folder, groups=6, images=2, seed=0)
    items = read_items(folder)
    journal = Journal(folder, items)
    for index, group in enumerate(items.groups):
        light = [np.asarray(Image.open(folder / "images" / name)).mean() for name in group.images]
        journal.choose(index, None if index == 5 else int(np.argmax(light)))
    journal.close()
    return folder


def test_a_group_starts_from_one_noise_and_shows_what_was_sampled(labelled: Path) -> None:
    x = load_file(labelled / "rollouts.safetensors")["x"]  # [12,T+1,C,h,w]
    assert torch.equal(x[0::2, 0], x[1::2, 0])
    assert not torch.equal(x[0::2, -1], x[1::2, -1])
    model = Experiment.build(compose(["method=reference", *SMALL]).config).model
    shown = np.stack([np.asarray(Image.open(labelled / "images" / f"{row // 2}-{row % 2}.png")) for row in range(12)])
    with torch.no_grad():
        decoded = model.decode(x[:, -1]).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(shown - decoded).max() < 1


def test_the_choices_train_d3po(labelled: Path, tmp_path: Path) -> None:
    words = [
        "method=d3po_human", *SMALL, f"method.path={labelled / 'preferences.jsonl'}", "method.batch=5", "epochs=6", "eval.every=6",
        "method.optimizer.lr=1e-4", f"output={tmp_path}",
    ]  # fmt: skip
    assert main(words) == 0
    rows = [row for row in read_metrics(compose(words).folder) if row["split"] == "train"]
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-3)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.01
    assert rows[-1]["accuracy"] > 0.9  # five pairs can be learned by heart
    assert rows[-1]["reward_queries"] == 0


def test_a_tie_is_left_out_and_too_few_pairs_are_refused(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len([best for _, best in preferences(labelled) if best is not None]) == 5
    words = ["method=d3po_human", *SMALL, f"method.path={labelled / 'preferences.jsonl'}", "epochs=1", f"output={tmp_path}"]
    assert main([*words, "method.batch=6"]) == 2
    assert "decides 5 pairs" in capsys.readouterr().err


def test_another_sampler_is_refused(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "method=d3po_human",
        *SMALL,
        f"method.path={labelled / 'preferences.jsonl'}",
        "epochs=1",
        "method.batch=5",
        f"output={tmp_path}",
    ]
    assert main([*words, "guidance=2"]) == 2
    assert "guidance=3" in capsys.readouterr().err


def test_the_next_command_is_one(labelled: Path) -> None:
    words = json.loads((labelled / "items.json").read_text())["next_step"].split()
    assert words[:3] == ["python", "-m", "alignbench"]
    assert compose([*words[3:], "epochs=1"]).config["sampler"]["steps"] == 3


@pytest.mark.parametrize("words", [[], ["x=1"], ["nowhere"], ["nowhere", "groups=0"], ["nowhere", "images=1"], ["nowhere", "pages=3"]])
def test_wrong_words_end_in_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
