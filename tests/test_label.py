"""From a run to labels to D3PO: the images that a person sees are the policy's, and what is chosen trains."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import alignbench.compose as compose_module
from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.experiment import Experiment
from alignbench.label import sample
from alignbench.labels import Journal, heat, preferences, read_items
from alignbench.report.record import read_metrics
from alignbench.rng import Draws

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
        "method=d3po_human", *SMALL, f"method.path={labelled}", "method.batch=5", "epochs=6", "eval.every=6",
        "method.optimizer.lr=1e-4", f"output={tmp_path}",
    ]  # fmt: skip
    assert main(words) == 0
    rows = [row for row in read_metrics(compose(words).folder) if row["split"] == "train"]
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-3)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.01
    assert rows[-1]["accuracy"] > 0.9  # five pairs can be learned by heart
    assert rows[-1]["reward_queries"] == 0


@pytest.fixture(scope="module")
def painted(labelled: Path) -> Path:
    """The same folder with the left half of each brighter image painted white, of the darker one black."""
    (labelled / "heat").mkdir()
    chosen = dict(preferences(labelled))
    for group in range(5):
        for k in range(2):
            heat_map = Image.new("RGBA", (32, 32))  # clear: nothing said
            heat_map.paste((255, 255, 255, 255) if chosen[group] == k else (0, 0, 0, 255), (0, 0, 16, 32))
            heat_map.save(labelled / "heat" / f"{group}-{k}.png")
    return labelled


def test_heat_maps_train_pxpo(painted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loss, 0 at first, falls as the ratios follow."""
    maps = heat(painted)
    assert sorted(maps) == list(range(10))  # two images of group 5 have none
    assert all(torch.equal(each[:, 16:], torch.zeros(32, 16)) for each in maps.values())
    assert {each[0, 0].item() for each in maps.values()} == {1.0, -1.0}
    words = [
        "method=pxpo_human", *SMALL, f"method.path={painted}", "method.batch=10", "epochs=6", "eval.every=6",
        "method.optimizer.lr=1e-4", f"output={tmp_path}",
    ]  # fmt: skip
    assert main(words) == 0
    rows = [row for row in read_metrics(compose(words).folder) if row["split"] == "train"]
    assert rows[0]["loss"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["loss"] < -3e-4
    assert rows[-1]["reward_queries"] == 0
    assert main([word.replace("batch=10", "batch=11") for word in words]) == 2
    assert "heat has 10 heat maps" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:eval.judges. colour is the trained reward")  # which it is, and stands in the table once
def test_a_painted_map_is_paid_as_a_reward_s_map_would_be(painted: Path) -> None:
    """The loss of one batch by PXPO from heat maps and by PXPO: one number."""
    human = Experiment.build(compose(["method=pxpo_human", *SMALL, f"method.path={painted}", "epochs=1"]).config).method
    pixel = Experiment.build(compose(["method=pxpo", "reward=colour", *SMALL]).config).method
    batch = next(iter(human.collect([], Draws(0, 0))))
    assert batch.advantage.shape[1:] == (8, 8)
    assert batch.advantage.abs().sum() > 0
    assert torch.equal(human.loss(batch)[0], pixel.loss(batch)[0])


def test_other_heat_maps_are_another_run(painted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    shutil.copytree(painted, folder)
    words = ["method=pxpo_human", f"method.path={folder}", "epochs=1"]
    before = compose(words).hash
    (folder / "heat").mkdir(exist_ok=True)
    Image.new("L", (32, 32), 200).save(folder / "heat" / "5-0.png")
    compose_module._digest.cache_clear()
    assert compose(words).hash != before


@pytest.mark.parametrize(
    "name, size, said",
    [("9-9.png", (32, 32), "has the name of its image"), ("0-0.png", (32, 16), "32x16 pixels"), ("0-0.png", None, "not an image")],
)
def test_wrong_heat_maps_are_named(name: str, size: tuple[int, int] | None, said: str, labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled, tmp_path / "labels", ignore=shutil.ignore_patterns("heat"))
    (tmp_path / "labels" / "heat").mkdir()
    path = tmp_path / "labels" / "heat" / name
    path.write_bytes(b"paint") if size is None else Image.new("L", size).save(path)
    with pytest.raises(ValueError, match=said):
        heat(tmp_path / "labels")


def test_a_tie_is_left_out_and_too_few_pairs_are_refused(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len([best for _, best in preferences(labelled) if best is not None]) == 5
    words = ["method=d3po_human", *SMALL, f"method.path={labelled}", "epochs=1", f"output={tmp_path}"]
    assert main([*words, "method.batch=6"]) == 2
    assert "decides 5 pairs" in capsys.readouterr().err


def test_another_sampler_is_refused(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "method=d3po_human",
        *SMALL,
        f"method.path={labelled}",
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
