"""`alignbench evaluate` gives the run's own numbers, asks nobody twice, never takes another's scores for one's own, and sits in a table."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.experiment import Experiment
from alignbench.policy import Policy
from alignbench.remembered import depends_on
from alignbench.report.record import read_about, read_result, read_samples
from alignbench.rewards.judge import Judge
from alignbench.subjects import of_run, of_weights

BRIGHTNESS = "{_target_: alignbench.rewards.brightness.Brightness}"
WORLD = [
    *("model=gaussian", "reward=jpeg_compressibility", "eval=plain", "eval.prompts=3", "eval.images=2", "eval.validation_prompts=2"),
    *("eval.grid=2", "epochs=4", "eval.every=1", "method.images=8", "method.batch=4", "sampler.steps=3", "eval.peak=held_out"),
    *(f"eval.judges=[{BRIGHTNESS}]", "method.optimizer.lr=0.05", "method.clip=10"),
]
SANDBOX = [
    *("eval=quick", "eval.prompts=3", "eval.grid=2", "eval.every=0", "epochs=1", "sampler.steps=3", "sampler.deterministic=0"),
    *("method.images=8", "method.batch=8", "method.optimizer.lr=0.02"),
]
ADAPTERS = {"lora": ["adapter=lora", "lora.rank=2", "lora.alpha=6.0"], "full": ["adapter=full"]}


def made(words: list[str], output: Path) -> Path:
    arguments = [*words, f"output={output}"]
    assert main(arguments) == 0
    return compose(arguments).folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(WORLD, tmp_path_factory.mktemp("world"))


@pytest.fixture
def run(first: Path, tmp_path: Path) -> Path:
    """A finished run on the Gaussian world whose peak is neither end, beside no cache."""
    assert 0 < read_about(first)["peak"] < 4, "the tests mean something only then: choose other numbers"
    return Path(shutil.copytree(first, tmp_path / "outputs" / first.name))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    output = tmp_path_factory.mktemp("sandbox")
    return {name: made([*SANDBOX, *words], output) for name, words in ADAPTERS.items()}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was asked, in order: `images` where images are sampled, else the judge's name."""
    seen: list[str] = []
    rollout, score = Policy.rollout, Judge.score_in_parts

    def sampling(self: Policy, *words: Any, **more: Any) -> Any:
        seen.append("images")
        return rollout(self, *words, **more)

    def judging(self: Judge, *words: Any, **more: Any) -> Any:
        seen.append(self.reward.name)
        return score(self, *words, **more)

    monkeypatch.setattr(Policy, "rollout", sampling)
    monkeypatch.setattr(Judge, "score_in_parts", judging)
    return seen


def evaluated(to: Path, *words: str) -> list[dict[str, Any]]:
    assert main(["evaluate", *words, f"to={to}"]) == 0
    return read_samples(to)


def of(who: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in ("who", "epoch", "image")} for row in rows if row["who"] == who]


# --- a run's own numbers


@pytest.mark.parametrize("at, who", [("last", "policy"), ("peak", "peak")])
def test_under_its_own_evaluation_a_run_has_its_own_rows(at: str, who: str, run: Path, tmp_path: Path) -> None:
    rows, own = evaluated(tmp_path / "to", f"run={run}", f"at={at}"), read_samples(run)
    assert of("policy", rows) == of(who, own)
    assert of("reference", rows) == of("reference", own)
    assert of("policy", own) != of("peak", own)
    result, before = read_result(tmp_path / "to"), read_result(run)
    assert result["epochs"] == (4 if at == "last" else before["peak"])
    assert result["meters"] == before["meters"]
    if at == "last":
        assert result["metrics"] == before["metrics"]
        assert result["weights"] == before["weights"]


def test_what_peaked_before_training_is_the_reference(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = read_about(run) | {"peak": 0}
    monkeypatch.setattr("alignbench.subjects.read_about", lambda _: about)
    rows = evaluated(tmp_path / "to", f"run={run}", "at=peak")
    assert of("policy", rows) == of("reference", rows)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
def test_scale_moves_along_the_line_from_the_start(scale: float, run: Path) -> None:
    subject, trained = of_run(run, "last", scale, []), Experiment.finished(run).policy.trainable()
    for name, parameter in subject.policy.trainable().items():
        assert torch.equal(parameter, scale * trained[name])  # on the Gaussian world training starts from 0


def images(experiment: Experiment, policy: Policy) -> Tensor:
    return experiment.scored("test", experiment.config["eval"]["prompts"], policy).images


@pytest.mark.parametrize("adapter", list(ADAPTERS))
def test_scale_0_is_the_reference_and_1_the_run_bit_for_bit(adapter: str, sandbox: dict[str, Path]) -> None:
    run, found = sandbox[adapter], {}
    for scale in (0.0, 0.5, 1.0):
        subject = of_run(run, "last", scale, [])
        found[scale] = images(subject.experiment, subject.policy)
    whole = Experiment.finished(run)
    assert torch.equal(found[0.0], images(whole, whole.policy.reference))
    assert torch.equal(found[1.0], images(whole, whole.policy))
    near, far = ((found[scale] - found[0.0]).abs().mean().item() for scale in (0.5, 1.0))
    assert 0 < near < far


def test_half_a_lora_is_half_its_update(sandbox: dict[str, Path]) -> None:
    """B A, not B/2 A/2; a full copy lies between."""
    for run in sandbox.values():
        half, whole = of_run(run, "last", 0.5, []), Experiment.finished(run)
        alone = [whole.model.export_pipeline, half.experiment.model.export_pipeline]
        weights = []
        for n, export in enumerate(alone):
            export("policy", run / f"alone{n}")
            weights.append(of_weights(str(run / f"alone{n}"), ["model=sandbox"]).experiment.model.weights("init"))
        start = whole.model.weights(None)
        moved = {name: weights[0][name] - start[name] for name in weights[0]}
        assert max(each.abs().max().item() for each in moved.values()) > 1e-3
        for name, each in moved.items():
            torch.testing.assert_close(weights[1][name] - start[name], each / 2, rtol=0, atol=1e-6)


# --- weights from elsewhere


@pytest.mark.parametrize("adapter, place", [("lora", ""), ("lora", ":pytorch_lora_weights.safetensors"), ("lora", "/pipeline")]
                         + [("full", ""), ("full", "/unet"), ("full", "/pipeline")])  # fmt: skip
def test_exported_weights_score_as_their_run(adapter: str, place: str, sandbox: dict[str, Path], tmp_path: Path) -> None:
    run = sandbox[adapter]
    if not (run / "export").exists():
        assert main(["export", str(run), "pipeline=true"]) == 0
    evaluation = [word for word in SANDBOX if word.startswith(("eval", "sampler")) and "every" not in word]
    words = [f"weights={run}/export{place}", "model=sandbox", *evaluation, f"output={tmp_path}"]
    rows, own = evaluated(tmp_path / "to", *words), read_samples(run)
    for who in ("reference", "policy"):
        for name, atol, rtol in (("scene_judge", 1e-5, 0), ("exact_judge", 0, 0), ("colour", 1e-5, 0), ("kl", 0, 1e-4)):
            one, other = ([row[name] for row in of(who, each)] for each in (rows, own))
            np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)
    assert of("policy", rows) != of("reference", rows)
    about = read_about(tmp_path / "to")
    assert about["anchor"] == read_about(run)["anchor"]  # they stand in one table
    assert {metric["label"] for metric in about["metrics"] if metric["name"] in ("scene_judge", "colour")} == {"unknown"}


def test_a_pipeline_with_another_part_is_not_taken_for_its_denoiser(sandbox: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    """Neither another VAE nor another schedule is lost in silence."""
    subject = of_run(sandbox["full"], "last", 1.0, [])
    subject.experiment.model.export_pipeline("policy", tmp_path / "pipe")
    file = tmp_path / "pipe" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.02}))
    capsys.readouterr()
    assert main(["evaluate", "model=sandbox", f"weights={tmp_path}/pipe", f"output={tmp_path}"]) == 2
    assert "its scheduler differ" in capsys.readouterr().err
    with torch.no_grad():
        next(subject.experiment.model.vae.parameters()).add_(1)
    subject.experiment.model.export_pipeline("policy", tmp_path / "other")
    assert main(["evaluate", "model=sandbox", f"weights={tmp_path}/other", f"output={tmp_path}"]) == 2
    assert "its vae differ" in capsys.readouterr().err


# --- the cache


def test_the_same_command_again_asks_nobody_and_writes_the_same_bytes(run: Path, asked: list[str], capsys: Any) -> None:
    said = []
    for sampled in (2, 0):
        asked.clear()
        capsys.readouterr()
        assert main(["evaluate", f"run={run}"]) == 0
        (folder,) = (run / "evaluated").iterdir()
        assert asked.count("images") == sampled
        assert asked.count("brightness") == asked.count("jpeg_compressibility") == sampled
        said.append([*(path.read_bytes() for path in sorted(folder.iterdir())), capsys.readouterr().out])
        assert {path.name for path in folder.iterdir()} == {"samples.parquet", "result.json"}
    assert said[0] == said[1]
    assert main(["evaluate", f"run={run}"]) == 0
    assert capsys.readouterr().err.splitlines() == [f"{who}: 6 images: 3 of 3 judges remembered" for who in ("reference", "policy")]


MISSES = {  # words -> how many of the two policies have to be sampled
    "weights": (["at=peak"], 1),
    "scale": (["scale=0.5"], 1),
    "steps": (["sampler.steps=4"], 2),
    "eta": (["sampler.eta=0.5"], 2),
    "guidance": (["guidance=2"], 2),
    "prompts": (["eval.prompts=4"], 2),
    "dataset": (["dataset=animals"], 2),
    "images": (["eval.images=3"], 2),
    "noise": (["eval.noise=1"], 2),
    "precision": (["trainer.precision=bf16-mixed"], 2),
}


@pytest.mark.parametrize("change", list(MISSES))
def test_what_images_depend_on_is_a_miss_and_the_same_again_a_hit(change: str, run: Path, tmp_path: Path, asked: list[str]) -> None:
    words, misses = MISSES[change]
    evaluated(tmp_path / "before", f"run={run}")
    for sampled in (misses, 0):
        asked.clear()
        rows = evaluated(tmp_path / "to", f"run={run}", *words)
        assert asked.count("images") == asked.count("brightness") == sampled
    same = change in ("guidance", "precision")  # the Gaussian world knows neither, the key does
    assert (of("policy", rows) == of("policy", read_samples(tmp_path / "before"))) == same
    asked.clear()
    evaluated(tmp_path / "after", f"run={run}")
    assert not asked


def test_what_no_image_depends_on_is_a_hit(run: Path, tmp_path: Path, asked: list[str]) -> None:
    evaluated(tmp_path / "before", f"run={run}")
    asked.clear()
    for word in ("eval.batch=1", "eval.replicates=500", "eval.grid=1", "trainer.micro_batch=3", "judging.on_error=skip"):
        evaluated(tmp_path / "to", f"run={run}", word)
    assert not asked


def test_a_new_judge_alone_is_asked_and_another_setting_makes_one(run: Path, tmp_path: Path, asked: list[str], capsys: Any) -> None:
    evaluated(tmp_path / "before", f"run={run}")
    for width in (0.35, 0.9):
        asked.clear()
        capsys.readouterr()
        colour = f"{{_target_: alignbench.rewards.colour.Colour, width: {width}}}"
        evaluated(tmp_path / str(width), f"run={run}", f"eval.judges=[{BRIGHTNESS},{colour}]")
        assert asked == ["images", "colour"] * 2
        assert "policy: 6 images: 3 of 4 judges remembered; sampling for colour" in capsys.readouterr().err
    one, other = (of("policy", read_samples(tmp_path / width)) for width in ("0.35", "0.9"))
    assert [row["colour"] for row in one] != [row["colour"] for row in other]
    assert (
        [row["kl"] for row in one] == [row["kl"] for row in other] == [row["kl"] for row in of("policy", read_samples(tmp_path / "before"))]
    )


def test_runs_of_one_model_share_the_references_scores(run: Path, tmp_path: Path, asked: list[str]) -> None:
    other = made([*WORLD, "seed=1"], run.parent)
    evaluated(tmp_path / "one", f"run={run}")
    asked.clear()
    evaluated(tmp_path / "other", f"run={other}")
    assert asked.count("images") == 1
    assert of("policy", read_samples(tmp_path / "one")) != of("policy", read_samples(tmp_path / "other"))


def test_a_lora_a_full_copy_and_weights_from_elsewhere_have_one_reference(sandbox: dict[str, Path]) -> None:
    evaluation = [word for word in SANDBOX if word.startswith(("eval", "sampler")) and "every" not in word]
    subjects = [of_run(folder, "last", 1.0, []) for folder in sandbox.values()]
    subjects += [of_weights(f"{folder}/weights", ["model=sandbox", *evaluation]) for folder in sandbox.values()]
    keys = []
    for subject in subjects:
        test = {0: "a prompt"}
        keys.append([depends_on(subject.experiment, policy, test) for policy in (subject.policy.reference, subject.policy)])
    for reference, policy in keys[1:]:
        assert reference == keys[0][0]
        assert policy["weights"] not in (reference["weights"], keys[0][1]["weights"])


def test_the_best_of_n_is_not_the_reference(tmp_path: Path, asked: list[str]) -> None:
    """Its weights are: a judge chooses among its images."""
    words = [word for word in WORLD if word.startswith(("model=", "reward=", "eval", "sampler"))]
    run = made([*words, "method=best_of_n", "method.n=3"], tmp_path / "outputs")
    asked.clear()
    rows = evaluated(tmp_path / "to", f"run={run}")
    assert of("policy", rows) == of("policy", read_samples(run)) != of("reference", rows)
    asked.clear()
    evaluated(tmp_path / "again", f"run={run}")
    assert not asked


@pytest.mark.parametrize("harm", ["empty", "half", "flipped", "text", "folder"])
def test_a_damaged_file_of_the_cache_is_as_none(harm: str, run: Path, tmp_path: Path, asked: list[str]) -> None:
    before = evaluated(tmp_path / "before", f"run={run}")
    files = sorted((run.parent / ".evaluations").glob("*/*"))
    assert len(files) == 6  # two judges and the measures, of two sides
    for file in files:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.unlink()
        if harm == "folder":
            file.mkdir()
        else:
            file.write_bytes({"empty": b"", "half": bytes(data[: len(data) // 2]), "flipped": bytes(data), "text": b"no npz"}[harm])
    asked.clear()
    assert evaluated(tmp_path / "to", f"run={run}") == before
    assert asked.count("images") == 2
    asked.clear()
    assert evaluated(tmp_path / "to", f"run={run}") == before
    assert asked.count("images") == (2 if harm == "folder" else 0)  # nothing can be written there, and that is no failure


def test_a_run_is_evaluated_at_its_end_without_the_cache(run: Path, tmp_path: Path, asked: list[str]) -> None:
    evaluated(tmp_path / "to", f"run={run}")
    for path in (run / "result.json", run / "samples.parquet"):
        path.unlink()
    asked.clear()
    made(WORLD, run.parent)
    assert asked.count("images") >= 3


# --- wrong input


WRONG: list[tuple[list[str], int, str]] = [
    ([], 2, "one of run= and weights="),
    (["run=RUN", "weights=x", "model=sandbox"], 2, "one of run= and weights="),
    (["RUN"], 2, "no value"),
    (["run=RUN", "at="], 2, "no value"),
    (["run=RUN", "at=best"], 2, "at=best: last or peak is wanted"),
    (["run=RUN", "scale=half"], 2, "scale=half: a number is wanted"),
    (["run=RUN", "scale=nan"], 2, "scale=nan: a number is wanted"),
    (["run=RUN", "at=last", "at=peak"], 2, "given twice"),
    (["run=RUN", "method.clip=1"], 2, "method.clip=1: is the run's own"),
    (["run=RUN", "reward=colour"], 2, "reward=colour: is the run's own"),
    (["run=RUN", "seed=1"], 2, "seed=1: is the run's own"),
    (["run=RUN", "evil=plain"], 2, "did you mean eval?"),
    (["run=RUN", "eval=nothing"], 2, "eval=nothing (conf/eval): no such choice"),
    (["run=RUN", "eval.prompts=1"], 2, "eval.prompts"),
    (["run=RUN", "eval.prompts=5000"], 2, "the test split has"),
    (["run=nowhere"], 2, "samples.parquet is missing"),
    (["run=EVALUATION"], 2, "itself an evaluation"),
    (["run=UNTRAINED", "scale=0.5"], 2, "method=reference trains no weights"),
    (["run=UNTRAINED", "at=peak"], 2, "at=peak"),
    (["run=GONE"], 3, "last.ckpt: not there"),
    (["run=DAMAGED"], 3, "damaged"),
    (["run=RUN", "to=FILE"], 3, "cannot be written"),
    (["run=RUN", "to=RUN"], 2, "holds a run"),
    (["weights=x"], 2, "of which model?"),
    (["weights=x", "model=nothing"], 2, "no such choice"),
    (["weights=x", "model=gaussian"], 2, "takes no weights from elsewhere"),
    (["weights=x", "model=sandbox", "scale=0.5"], 2, "scale=0.5: of a run only"),
    (["weights=x", "model=sandbox", "epochs=2"], 2, "epochs=2: is no part of an evaluation"),
    (["weights=x", "model=sandbox"], 3, "no UNet2DConditionModel there"),
]


@pytest.mark.parametrize("words, code, said", WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_wrong_input_ends_in_one_line(words: list[str], code: int, said: str, run: Path, tmp_path: Path, capsys: Any) -> None:
    there = {"RUN": run, "FILE": tmp_path / "file", "EVALUATION": tmp_path / "to"}
    (tmp_path / "file").write_text("")
    if "run=EVALUATION" in words:
        evaluated(tmp_path / "to", f"run={run}")
    if "run=UNTRAINED" in words:
        own = [word for word in WORLD if word.startswith(("model=", "reward=", "eval", "sampler"))]
        there["UNTRAINED"] = made([*own, "method=reference"], tmp_path)
    for name in ("GONE", "DAMAGED"):
        there[name] = Path(shutil.copytree(run, tmp_path / name / run.name))
    (there["GONE"] / "checkpoints" / "last.ckpt").unlink()
    (there["DAMAGED"] / "checkpoints" / "last.ckpt").write_bytes(b"damaged")
    capsys.readouterr()
    given = [str(run) if word == "RUN" else word for word in words]
    for name, path in there.items():
        given = [word.replace(f"={name}", f"={path}") for word in given]
    assert main(["evaluate", *given]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if "remembered" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("alignbench: ")
    assert said in lines[0]


# --- in a table


def test_evaluations_stand_in_a_table_beside_their_run(run: Path, tmp_path: Path) -> None:
    for words in (["at=peak"], ["scale=0.5"], ["scale=0.5", "sampler.steps=4"]):
        assert main(["evaluate", f"run={run}", *words]) == 0
    assert main(["table", str(run), str(run / "evaluated"), f"to={tmp_path}/table", "replicates=200"]) == 0
    made = json.loads((tmp_path / "table" / "table.json").read_text())
    steps = {comparison["sampler"]["steps"]: comparison for comparison in made["comparisons"]}
    assert sorted(steps) == [3, 4]  # another sampler is another comparison
    labels = [row["label"] for row in steps[3]["rows"]]
    assert len(set(labels)) == 3
    assert all(label.startswith("ddpo") for label in labels)
    reported = {metric["name"]: metric for metric in read_result(run)["metrics"]}
    for row in steps[3]["rows"]:
        found = row["metrics"]["brightness"]
        assert found["reference"] == pytest.approx(reported["brightness"]["reference"], abs=1e-12)
        own = found["change"]["value"] == pytest.approx(reported["brightness"]["difference"], abs=1e-9)
        assert own == ("at=" not in row["label"])
