"""What `alignbench export` writes is the run's policy wherever it is loaded, says so on its card, and goes nowhere unasked."""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.config import located
from alignbench.experiment import Experiment
from alignbench.report.record import read_result, read_samples
from alignbench.rng import generator

SANDBOX = located("package://models/sandbox")
SMALL = [
    *("eval=quick", "eval.prompts=4", "eval.grid=3", "eval.every=0", "epochs=1", "sampler.steps=3", "sampler.deterministic=0"),
    *("method.images=8", "method.batch=8", "method.optimizer.lr=0.02"),
]
WORDS = {"lora": ["adapter=lora", "lora.rank=2", "lora.alpha=6.0"], "full": ["adapter=full"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each adapter; the LoRA's alpha is not its rank."""
    output, folders = tmp_path_factory.mktemp("outputs"), {}
    for name, words in WORDS.items():
        arguments = [*SMALL, *words, f"output={output}"]
        assert main(arguments) == 0
        folders[name] = compose(arguments).folder
    return folders


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each of the runs with all there is to export."""
    folders = {name: tmp_path_factory.mktemp("exports") / name for name in runs}
    assert main(["export", str(runs["lora"]), f"to={folders['lora']}", "kohya=true", "pipeline=true"]) == 0
    assert main(["export", str(runs["full"]), f"to={folders['full']}", "pipeline=true"]) == 0
    return folders


@torch.no_grad()
def eps(unet: Any) -> Tensor:
    x = torch.randn(2, 4, 8, 8, generator=generator(0, "x"))
    cond = torch.randn(2, *conditions(), generator=generator(0, "cond"))
    return unet.eval()(x, torch.tensor([11, 701]), encoder_hidden_states=cond).sample


@lru_cache
def conditions() -> tuple[int, int]:
    pipe = StableDiffusionPipeline.from_pretrained(SANDBOX)
    return pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim


@lru_cache
@torch.no_grad()
def of_the_run(run: Path, who: str | None = "policy") -> Tensor:
    model = Experiment.finished(run).model
    x = torch.randn(2, *model.shape, generator=generator(0, "x"))
    cond = torch.randn(2, *conditions(), generator=generator(0, "cond"))
    return model.predict(x, torch.tensor([11, 701]), cond, who)


def close(one: Tensor, other: Tensor, tolerance: float, what: str) -> None:
    print(f"FIGURE {what} {(one - other).abs().max():.2e}")
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def pipeline(**parts: Any) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(SANDBOX, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_lora_gives_the_runs_pictures_in_plain_diffusers(runs: dict[str, Path], exported: dict[str, Path]) -> None:
    pipe = pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(exported["lora"], weight_name="pytorch_lora_weights.safetensors")
    rows = [row for row in read_samples(runs["lora"]) if row["image"] and row["who"] == "policy"]
    noise = [generator(0, "evaluation", row["prompt_id"], row["k"]) for row in rows]
    prompts = [row["prompt"] for row in rows]
    images = pipe(prompts, num_inference_steps=3, guidance_scale=3.0, eta=1.0, generator=noise, output_type="np").images
    for row, image in zip(rows, images, strict=True):
        apart = np.abs(np.asarray(Image.open(runs["lora"] / "samples" / row["image"])) - (image * 255).round())
        assert apart.max() <= 1
        assert apart.mean() < 0.01


def test_the_lora_loads_from_the_folder_alone(runs: dict[str, Path], exported: dict[str, Path]) -> None:
    """As the card says, though there are two LoRA files in it."""
    pipe = pipeline()
    pipe.load_lora_weights(exported["lora"])
    close(eps(pipe.unet), of_the_run(runs["lora"]), 1e-5, "lora")


def test_kohyas_file_is_the_same_lora_at_its_own_scale(runs: dict[str, Path], exported: dict[str, Path], tmp_path: Path) -> None:
    file, policy = exported["lora"] / "kohya.safetensors", of_the_run(runs["lora"])
    weights = load_file(file)
    names = {re.sub(r"\.(lora_down\.weight|lora_up\.weight|alpha)$", "", key) for key in weights}
    assert len(weights) == 3 * len(names)
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0" in names
    assert {weights[f"{name}.alpha"].item() for name in names} == {6.0}
    assert {weights[f"{name}.lora_down.weight"].shape[0] for name in names} == {2}
    pipe = pipeline()
    pipe.load_lora_weights(exported["lora"], weight_name=file.name)
    close(eps(pipe.unet), policy, 1e-5, "kohya")
    assert (of_the_run(runs["lora"], None) - policy).abs().max() > 0.01


def test_kohyas_file_by_its_own_formula(runs: dict[str, Path], exported: dict[str, Path]) -> None:
    """As ComfyUI and A1111 apply it, without diffusers' loader: W + alpha / rank * up @ down, names matched with underscores for dots."""
    weights, unet = load_file(exported["lora"] / "kohya.safetensors"), pipeline().unet
    for name, parameter in unet.named_parameters():
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        if f"{key}.alpha" in weights:
            up, down = weights[f"{key}.lora_up.weight"], weights[f"{key}.lora_down.weight"]
            parameter.data += weights[f"{key}.alpha"] / len(down) * up @ down
    close(eps(unet), of_the_run(runs["lora"]), 1e-5, "kohya formula")


@pytest.mark.parametrize("name", list(WORDS))
def test_the_pipeline_folder_is_the_policy(name: str, runs: dict[str, Path], exported: dict[str, Path]) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(exported[name] / "pipeline")
    policy = of_the_run(runs[name])
    close(eps(pipe.unet), policy, 1e-4, f"pipeline {name}")
    assert (eps(pipeline().unet) - policy).abs().max() > 0.01
    assert not any("lora" in key for key in load_file(next((exported[name] / "pipeline" / "unet").glob("*.safetensors"))))
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"


def test_the_full_copy_is_a_unet(runs: dict[str, Path], exported: dict[str, Path]) -> None:
    unet = UNet2DConditionModel.from_pretrained(exported["full"] / "unet")
    close(eps(unet), of_the_run(runs["full"]), 1e-6, "unet")


@pytest.mark.parametrize("name", list(WORDS))
def test_the_card_says_what_the_result_says(name: str, runs: dict[str, Path], exported: dict[str, Path]) -> None:
    text, result = (exported[name] / "README.md").read_text(), read_result(runs[name])
    _, front, body = text.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert (facts["license"], facts["library_name"], facts["base_model"]) == ("apache-2.0", "diffusers", "sandbox")
    assert ("lora" in facts["tags"]) == (name == "lora")
    for metric in result["metrics"]:
        (row,) = [line for line in body.splitlines() if line.startswith(f"| {metric['name']} |")]
        values = (f"{metric['reference']:.4f}", f"{metric['policy']:.4f}", f"{metric['difference']:+.4f}")
        assert all(value in row for value in (*values, *(f"{bound:+.4f}" for bound in metric["interval"])))
        assert f"**{metric['label']}**" in row
    assert {"trained", "gold", "held out"} <= {metric["label"] for metric in result["metrics"]}
    meters = result["meters"]
    counts = [f"{meters['reward_queries']:,}", *(f"{who} {count:,}" for who, count in meters["network_evaluations"].items())]
    kl = next(metric["policy"] for metric in result["metrics"] if metric["name"] == "kl")
    for said in (*counts, f"{kl:.4f} nats", "ddpo", "scene_judge", "scenes", "| 1, 0 |", "Apache-2.0", result["command"]):
        assert said in body
    assert str(runs[name].parent) not in text


@pytest.mark.parametrize("name", list(WORDS))
@pytest.mark.parametrize("whole", [True, False], ids=["pipeline", "weights"])
def test_the_cards_program_runs(name: str, whole: bool, runs: dict[str, Path], exported: dict[str, Path], tmp_path: Path) -> None:
    folder = exported[name]
    if not whole:
        folder = tmp_path / "weights"
        assert main(["export", str(runs[name]), f"to={folder}"]) == 0
        assert not (folder / "pipeline").exists()
    (program,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(program.replace("<this folder>", str(folder)), names)
    assert names["image"].size == (32, 32)
    close(eps(names["pipe"].unet), of_the_run(runs[name]), 1e-4, f"card {name} {whole}")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", list(WORDS))
def test_written_twice_it_is_the_same(name: str, runs: dict[str, Path], exported: dict[str, Path], tmp_path: Path) -> None:
    before, more = contents(exported[name]), ["kohya=true"] * (name == "lora")
    assert main(["export", str(runs[name]), f"to={exported[name]}", *more, "pipeline=true"]) == 0
    assert contents(exported[name]) == before
    assert not list(exported[name].parent.glob(".*"))
    assert str(located("package://")).encode() not in b"".join(value for key, value in before.items() if key.endswith(".json"))


def test_the_usual_place_and_what_is_not_ours(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs["lora"]
    assert main(["export", str(run), "kohya=true"]) == 0
    assert capsys.readouterr().out.strip() == str(run / "export")
    assert set(contents(run / "export")) == {"README.md", "export.json", "kohya.safetensors", "pytorch_lora_weights.safetensors"}
    assert main(["export", str(run)]) == 0  # what the earlier one wrote goes
    assert "kohya.safetensors" not in contents(run / "export")
    (run / "export" / "mine.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for to in (run / "export", run, tmp_path, tmp_path / "file"):
        before = contents(to) if to.is_dir() else {}
        capsys.readouterr()
        assert main(["export", str(run), f"to={to}"]) == 2
        assert one_line(capsys).startswith(f"alignbench: export: to={to}")
        assert (contents(to) if to.is_dir() else {}) == before


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which run"),
        (["to=x"], "which run"),
        (["run", "kohia=true"], "did you mean kohya?"),
        (["run", "kohya"], "no value"),
        (["run", "kohya=yes"], "true or false"),
        (["run", "to="], "no value"),
        (["run", "to=a", "to=b"], "given twice"),
        (["run", "push=nobody"], "NAME/REPOSITORY"),
        (["run"], "result.json is missing"),
    ],
)
def test_wrong_words(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == 2
    assert said in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["eval.prompts=2", "eval.images=2", "eval.grid=1", f"output={tmp_path}"]
    untrained = ["method=reference", "eval=quick", "sampler.steps=2", *small]
    gaussian = ["model=gaussian", "reward=jpeg_compressibility", "eval=plain", "epochs=1", "eval.every=0", "sampler.steps=2", *small]
    gaussian += ["method.images=8", "method.batch=4"]
    wrong = [(runs["full"], ["kohya=true"], "kohya=true is for a LoRA")]
    for words, said in ((untrained, "method=reference trains no weights"), (gaussian, "model=gaussian is no diffusers pipeline")):
        assert main(words) == 0
        wrong.append((compose(words).folder, [], said))
    for run, more, said in wrong:
        capsys.readouterr()
        assert main(["export", str(run), f"to={tmp_path / 'to'}", *more]) == 2
        assert said in one_line(capsys)
        assert not (tmp_path / "to").exists()


def test_a_checkpoint_that_is_gone(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = runs["full"] / "checkpoints"
    checkpoints.rename(runs["full"] / "away")
    try:
        capsys.readouterr()
        assert main(["export", str(runs["full"]), f"to={tmp_path / 'to'}"]) == 3
        assert "makes the run again" in one_line(capsys)
    finally:
        (runs["full"] / "away").rename(checkpoints)


class FakeHub:
    calls: list[tuple[Any, ...]] = []

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", repository, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.calls.append(("upload", repo_id, contents(Path(folder_path))))


def test_push_uploads_that_folder_and_only_when_asked(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FakeHub, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    to = tmp_path / "to"
    assert main(["export", str(runs["lora"]), f"to={to}"]) == 0
    assert FakeHub.calls == []
    assert main(["export", str(runs["lora"]), f"to={to}", "kohya=true", "push=me/aligned"]) == 0
    assert FakeHub.calls == [("create", "me/aligned", True, True), ("upload", "me/aligned", contents(to))]
    assert "/me/aligned" in capsys.readouterr().out


def test_push_without_login_or_network(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    words = ["export", str(runs["lora"]), f"to={to}", "push=me/aligned"]
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    capsys.readouterr()
    assert main(words) == 3
    assert "hf auth login" in one_line(capsys)
    assert not to.exists()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    for error in (
        huggingface_hub.errors.HTTPError("no route to host"),
        huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled"),
    ):

        def refuse(*given: Any, error: Exception = error, **named: Any) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
        assert main(words) == 3
        assert str(error) in one_line(capsys)
        assert json.loads((to / "export.json").read_text())["files"]  # complete, though it went nowhere
