"""What evaluation measures without a judge, from images to columns and rows: on an untrained policy, which is its reference."""

import re
from pathlib import Path

import pytest
import torch
from conftest import yaml_of
from torch import Tensor

from alignbench.assets import named
from alignbench.compose import compose
from alignbench.config import ConfigError
from alignbench.evaluation.measures import MEASURED, Measures, real_features, within_prompt_distance, within_prompt_lpips
from alignbench.evaluation.sets import differences
from alignbench.experiment import Experiment
from alignbench.features.readings import Readings
from alignbench.run import sets_of

METRICS = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
ENCODER = "{_target_: alignbench.features.sandbox_encoder.SandboxEncoder, path: package://models/sandbox, revision: null, time: 0}"
READINGS = "{_target_: alignbench.features.readings.Readings}"
PICTURES = "{_target_: alignbench.datasets.scenes.ScenePictures}"
LPIPS = "{_target_: alignbench.features.lpips.Lpips, path: none, revision: null}"
WORDS = ["eval=quick", "epochs=1", "sampler.steps=3", "eval.prompts=3", f"eval.features=[{READINGS},{ENCODER}]", f"eval.real={PICTURES}"]


class Apart(torch.nn.Module):
    """A distance in the place of LPIPS: of the images' means."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return (one - other).mean((1, 2, 3)).abs()


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return Experiment.build(compose(WORDS).config)


def test_an_untrained_policy_is_its_reference(experiment: Experiment) -> None:
    scored = {
        "reference": experiment.scored("test", 3, experiment.policy.reference),
        "policy": experiment.scored("test", 3, experiment.method.evaluated),
    }
    spent = experiment.model.meters.state()
    assert spent["reward_queries"] == 0 and not any(spent["network_evaluations"].values())
    columns = [
        "kl",
        "reference_error",
        "diversity",
        *(f"{each}_{space}" for space in ("readings", "sandbox_encoder") for each in ("distance", "vendi")),
    ]
    assert list(scored["policy"].measured) == columns
    assert set(columns) <= set(experiment.measures.columns)
    for before, after in zip(*(side.rows for side in scored.values()), strict=True):
        assert {name: before[name] for name in columns} == {name: after[name] for name in columns}
        assert before["kl"] == 0 and 0 < before["reference_error"] < 2 and 1 < before["vendi_readings"] < 2
    first, second = scored["policy"].rows[:2]
    assert first["vendi_readings"] == second["vendi_readings"] and first["reference_error"] != second["reference_error"]
    assert scored["policy"].measured["vendi_readings"]["note"].endswith("the space of readings")

    rows = experiment.sets(scored)
    assert [(row["space"], row["against"], row["who"]) for row in rows[::7]] == [
        (space, *sides)
        for space in ("readings", "sandbox_encoder")
        for sides in (("reference", "policy"), ("real", "reference"), ("real", "policy"))
    ]
    own = {row["name"]: row["value"] for row in rows[:7]}
    assert own == pytest.approx({"frechet": None, "kid": 0, "cmmd": 0, "precision": 1, "recall": 1, "density": 1, "coverage": 1}, abs=1e-9)
    assert [row["value"] for row in rows[7:14]] == [row["value"] for row in rows[14:21]]  # the two sides are one
    assert {row["images"] for row in rows} == {row["images_against"] for row in rows} == {6}
    assert next(row["value"] for row in rows if row["name"] == "kid" and row["against"] == "real") > 0.01
    lines = sets_of({"sets": rows})
    assert lines[0].startswith("6 images against 6 of the reference, readings: kid ")
    assert lines[1].startswith("6 images against 6 real ones, readings: ") and len(lines) == 4


def test_a_space_of_a_judges_name_keeps_its_own_identity(experiment: Experiment) -> None:
    names = experiment.identities
    assert {"scene_judge", "features: readings", "features: sandbox_encoder"} <= names.keys()
    assert "time=0" in names["features: sandbox_encoder"]["settings"] and len(names["features: sandbox_encoder"]["weights"]) == 64


def test_distances_within_a_prompt_are_means_over_its_other_images() -> None:
    levels = torch.tensor([0.0, 0.2, 0.6, 0.5, 0.5, 0.5])
    images = levels[:, None, None, None].expand(-1, 3, 4, 4)
    expected = [(0.2 + 0.6) / 2, (0.2 + 0.4) / 2, (0.6 + 0.4) / 2, 0, 0, 0]
    assert within_prompt_distance(images, 3).tolist() == pytest.approx(expected, abs=1e-6)
    assert within_prompt_lpips(Apart(), images, 3, 2).tolist() == pytest.approx(expected, abs=1e-6)  # type: ignore[arg-type]


class Three:
    """A folder of three pictures, drawn with replacement."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        rows = torch.randint(3, (count,), generator=generator)
        return (rows / 4)[:, None, None, None].expand(-1, 3, 32, 32).clone(), [""] * count


class One(Three):
    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        return torch.zeros(count, 3, 32, 32), [""] * count


def test_a_real_picture_counts_once() -> None:
    measures = Measures([Readings()])
    found = real_features(measures, Three(), 40, 0, 16, torch.device("cpu"))["readings"]
    assert found.shape == (3, 20) and len(found.unique(dim=0)) == 3
    with pytest.raises(ValueError, match="40 draws gave 1 different picture"):
        real_features(measures, One(), 40, 0, 16, torch.device("cpu"))


@pytest.mark.parametrize(
    "words, said",
    [
        ([f"eval.features=[{READINGS},{READINGS}]"], "readings is there twice"),
        (["eval.features=[{_target_: alignbench.rewards.exact_judge.ExactJudge}]"], "ExactJudge is no feature space"),
        (["reward=colour", "eval.features=[{_target_: alignbench.rewards.colour.Colour, width: 0.3}]"], "Colour is no feature space"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Experiment.build(compose(["eval=quick", "epochs=1", *words]).config)


@pytest.mark.parametrize(
    "words, said",
    [
        ("eval.features=[{_target_: alignbench.policy.Policy}]", "alignbench.policy.Policy is not for a config"),
        ("eval.features=[{_target_: alignbench.features.readings.Reading}]", "did you mean alignbench.worlds.scenes.Reading"),
        ("eval.features=[{_target_: alignbench.features.clip.Clip, path: here}]", r"eval.features\[0\].revision .*missing"),
        ("eval.reference_times=[1.5]", "eval.reference_times"),
        ("eval.precision_neighbours=0", "eval.precision_neighbours"),
    ],
)
def test_what_no_constructor_takes_is_refused_before_anything_is_built(words: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose(["epochs=1", words])


def test_the_preset_for_photographs_names_what_it_fetches() -> None:
    found = {asset.key: asset for asset in named(compose(["eval=photos", "epochs=1"]).config) if asset.key.startswith("eval.")}
    assert list(found) == ["eval.judges[0].path", *(f"eval.features[{index}].path" for index in range(3)), "eval.lpips.path"]
    assert [found[f"eval.features[{index}].path"].gb for index in range(3)] == [1.7, 1.2, 0.1]
    assert yaml_of("eval", "photos")["reference_times"] == yaml_of("eval", "default")["reference_times"]


def test_everything_that_is_measured_is_explained() -> None:
    columns = [f"{name}_<space>" if name in ("distance", "vendi") else name for name in MEASURED]
    names = differences(torch.zeros(2, 1), torch.zeros(2, 1), precision_k=3, coverage_k=5, paired=True)
    spaces = [file.stem for file in (Path(__file__).parents[1] / "src/alignbench/features").glob("*.py")]
    for name in (*columns, *names, *(name for name in spaces if name not in ("__init__", "base", "lpips"))):
        assert re.search(rf"^\| `{re.escape(name)}` \|", METRICS, re.MULTILINE), name
