"""Every family of models through everything that a run does, on tiny pipelines with random weights; the table at the end says which."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.config import located
from alignbench.experiment import Experiment
from alignbench.report.record import read_metrics

pytestmark = pytest.mark.slow

SMALL = [
    "eval=quick", "eval.judges=[]", "eval.prompts=2", "eval.images=2", "eval.validation_prompts=2", "eval.grid=2", "eval.every=0",
    "eval.batch=2", "recipe=none",
]  # fmt: skip


def sandbox(folder: Path, **scheduler: object) -> None:
    """The sandbox's pipeline, with other words in its scheduler's config."""
    shutil.copytree(located("package://models/sandbox"), folder, dirs_exist_ok=True)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | scheduler))


@dataclass(frozen=True)
class Family:
    choice: str  # of conf/model
    build: Callable[[Path], None]
    methods: tuple[str, ...] = ("ddpo", "di_star")  # the first is stopped, resumed and exported
    words: list[str] = field(default_factory=list)


FAMILIES = [
    Family("sd15", sandbox),
    Family("sd21", lambda folder: sandbox(folder, prediction_type="v_prediction")),
]
METHODS = {
    "ddpo": ["method=ddpo", "method.images=2", "method.batch=2", "method.optimizer.lr=1e-3"],
    "pso": ["method=pso", "method.images=2", "method.batch=1", "method.optimizer.lr=1e-3"],
    "di_star": ["method=di_star", "method.batch=2", "method.turns=1", "method.optimizer.lr=1e-3", "reward=brightness"],
}
PAIRS = [(family, method) for family in FAMILIES for method in family.methods]
FIRST = [(family, family.methods[0]) for family in FAMILIES]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    made: dict[str, Path] = {}

    def of(family: Family) -> Path:
        if family.choice not in made:
            made[family.choice] = tmp_path_factory.mktemp(family.choice)
            family.build(made[family.choice])
        return made[family.choice]

    return of


def words(family: Family, method: str, pipeline: Path, output: Path) -> list[str]:
    short = ["sampler.steps=2"] if method == "ddpo" else []
    reward = [] if method == "di_star" else ["reward=jpeg_compressibility"]
    return [
        f"model={family.choice}", f"model.path={pipeline}", *family.words, *METHODS[method], *reward, *short, *SMALL, "epochs=2",
        f"output={output}",
    ]  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "weights").rglob("*.safetensors"))
    assert files
    return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("family, method", PAIRS, ids=[f"{family.choice}-{method}" for family, method in PAIRS])
def test_it_trains(family: Family, method: str, pipelines: Callable, tmp_path: Path, record_property: Callable) -> None:
    line = words(family, method, pipelines(family), tmp_path)
    assert main(line) == 0
    folder = compose(line).folder
    rows = [row for row in read_metrics(folder) if row["split"] == "train"]
    assert len(rows) == 2
    finished = Experiment.finished(folder)
    start, trained = finished.policy.reference, finished.method.evaluated
    x, t = torch.randn(1, *finished.model.shape), torch.tensor([500])
    cond = finished.model.encode(["a red circle"])
    with torch.no_grad():
        before, after = (finished.model.output(x, t, cond, policy.who, None) for policy in (start, trained))
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
    assert all(torch.isfinite(value).all() for value in weights(folder).values())
    record_property("family", (family.choice, method))


@pytest.mark.parametrize("family, method", FIRST, ids=[family.choice for family in FAMILIES])
def test_it_resumes_and_exports_the_same(
    family: Family, method: str, pipelines: Callable, tmp_path: Path, record_property: Callable
) -> None:
    """Back to the checkpoint of the first epoch: the second ends in the same weights, bit for bit."""
    line = words(family, method, pipelines(family), tmp_path)
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
    record_property("family", (family.choice, "resume, export"))
