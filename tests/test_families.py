"""Every family of models through everything that a run does, on tiny pipelines with random weights; the table at the end says which."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import yaml_of
from safetensors.torch import load_file

from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.config import choices, conf_folder, located
from alignbench.experiment import Experiment
from alignbench.report.record import read_metrics

pytestmark = pytest.mark.slow

SMALL = [
    "eval=quick", "eval.judges=[]", "eval.features=[]", "eval.prompts=2", "eval.images=2", "eval.validation_prompts=2",
    "eval.grid=2", "eval.every=0", "eval.batch=2", "recipe=none",
]  # fmt: skip


MODELS = [choice for choice in choices("model", conf_folder()) if yaml_of("model", choice)["download_gb"]]
TRACKS = {"multi_step": "ddpo", "few_step": "pso", "one_step": "di_star"}
METHODS = {
    "ddpo": ["method=ddpo", "method.images=2", "method.batch=2", "method.optimizer.lr=1e-3"],
    "pso": ["method=pso", "method.images=2", "method.batch=1", "method.optimizer.lr=1e-3"],
    "di_star": ["method=di_star", "method.batch=2", "method.turns=1", "method.optimizer.lr=1e-3"],
}
PAIRS = [(choice, TRACKS[track]) for choice in MODELS for track in yaml_of("model", choice)["tracks"]]
FIRST = [(choice, TRACKS[next(iter(yaml_of("model", choice)["tracks"]))]) for choice in MODELS]


@pytest.fixture(scope="module")
def instead(stand_ins: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """As `stand_ins`, with the sandbox told that it predicts v where the model does."""
    folder = tmp_path_factory.mktemp("v") / "sandbox"
    shutil.copytree(located("package://models/sandbox"), folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    return stand_ins | {"sd21": [f"model.path={folder}"]}


def words(choice: str, method: str, instead: dict[str, list[str]], output: Path) -> list[str]:
    few = ["sampler.steps=3"] if method == "ddpo" else []
    return [f"model={choice}", *instead[choice], *METHODS[method], "reward=brightness", *few, *SMALL, "epochs=2", f"output={output}"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "weights").rglob("*.safetensors"))
    assert files
    return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("choice, method", PAIRS)
def test_it_trains(choice: str, method: str, instead: dict, tmp_path: Path, record_property: Callable) -> None:
    line = words(choice, method, instead, tmp_path)
    assert main(line) == 0
    folder = compose(line).folder
    assert len([row for row in read_metrics(folder) if row["split"] == "train"]) == 2
    finished = Experiment.finished(folder)
    start, trained = finished.policy.reference, finished.method.evaluated
    x, t, cond = torch.randn(1, *finished.model.shape), torch.tensor([500]), finished.model.encode(["a red circle"])
    with torch.no_grad():
        before, after = (finished.model.output(x, t, cond, policy.who, None) for policy in (start, trained))
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
    assert all(torch.isfinite(value).all() for value in weights(folder).values())
    record_property("family", (choice, method))


@pytest.mark.parametrize("choice, method", FIRST)
def test_it_resumes_and_exports_the_same(choice: str, method: str, instead: dict, tmp_path: Path, record_property: Callable) -> None:
    """Back to the checkpoint of the first epoch: the second ends in the same weights, bit for bit."""
    line = words(choice, method, instead, tmp_path)
    assert main(line) == 0
    folder = compose(line).folder
    expected = weights(folder)
    for name in ("result.json", "weights"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "checkpoints" / "last.ckpt").unlink()
    assert main(line) == 0
    again = weights(folder)
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    record_property("family", (choice, "resume, export"))
