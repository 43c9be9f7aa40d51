"""Every choice is built for real, and a small experiment runs in this process from words to page."""

import json
import shlex
import sys
import threading
from pathlib import Path
from typing import Any

import hub_datasets
import imagereward_file
import judges
import numpy as np
import pytest
import torch
from conftest import SANDBOX, fitting, yaml_of
from diffusers import DDIMScheduler, StableDiffusionPipeline
from picture_files import pick_a_pic
from PIL import Image
from safetensors.torch import save_file

from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.config import MissingAsset, choices, conf_folder, located
from alignbench.evaluation.callbacks import standing
from alignbench.experiment import Experiment, costs, outline
from alignbench.report.record import read_about, read_config, read_metrics, read_result, read_run, read_samples
from alignbench.rewards import geneval, hpsv2_official, imagereward_official
from alignbench.rewards.brightness import Brightness
from alignbench.rewards.imagereward import ImageReward, Sizes
from alignbench.rng import generator
from alignbench.serve import Server

GROUPS = ("method", "model", "sampler", "reward", "dataset", "eval", "budget", "trainer", "recipe")
SMALL = [
    "model=gaussian",
    "reward=jpeg_compressibility",
    "eval=plain",
    "eval.prompts=3",
    "eval.images=2",
    "eval.validation_prompts=2",
    "eval.grid=2",
]


def labelled(folder: Path, groups: int, shape: tuple[int, ...]) -> None:
    """A labels folder in which the second image of each pair was chosen, and the left half of each image painted white."""
    names = [[f"{group}-{k}.png" for k in range(2)] for group in range(groups)]
    (folder / "images").mkdir(parents=True)
    (folder / "heat").mkdir()
    for name in (name for pair in names for name in pair):
        Image.new("RGB", (32, 32)).save(folder / "images" / name)
        heat = Image.new("L", (32, 32), 128)
        heat.paste(255, (0, 0, 16, 32))
        heat.save(folder / "heat" / name)
    items = [{"prompt": "a small red circle at the left on a blue background", "images": pair} for pair in names]
    (folder / "items.json").write_text(json.dumps({"format": 1, "run": "x", "groups": items}))
    (folder / "preferences.jsonl").write_text("".join(json.dumps({"group": group, "best": 1}) + "\n" for group in range(groups)))
    sampler = json.dumps({"steps": shape[0] - 1, "eta": 1.0, "guidance": 3.0})
    save_file({"x": torch.zeros(2 * groups, *shape)}, folder / "rollouts.safetensors", {"sampler": sampler})


ADAPTER = """
def load(settings):
    return {"name": "scripted", "version": "1", "weights": ""}, lambda images, prompts: images.mean((1, 2, 3))
"""
WEIGHTS = {  # under the name that they were published with
    "imagereward_official": "ImageReward.pt",
    "hpsv2_official": "HPS_v2_compressed.pt",
    "hpsv2_1_official": "HPS_v2.1_compressed.pt",
}


def elsewhere(choice: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What judges in other processes need, in the current folder, with a small script in this environment for the packages and theirs."""
    Image.new("L", (8, 8), 255).save("heat.png")
    Path("judge.py").write_text(ADAPTER)
    monkeypatch.setattr("alignbench.rewards.worker.environment", lambda *_: Path(sys.executable))
    for module in (imagereward_official, hpsv2_official, geneval):
        monkeypatch.setattr(module, "SCRIPT", "judge.py")
    if choice == "remote":
        server = Server(Brightness(), "cpu", "127.0.0.1", 0)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return [f"reward.url=http://127.0.0.1:{server.server_port}"]
    if choice == "geneval":
        Path("detector.pth").write_bytes(b"weights")
        return ["reward.path=detector.pth"]
    if choice in WEIGHTS:
        Path(WEIGHTS[choice]).write_bytes(b"weights")
        Path("vocab.txt").write_text("[PAD]")
        return [f"reward.path={WEIGHTS[choice]}", *(["reward.tokenizer=."] if choice == "imagereward_official" else [])]
    return []


def prompt_files(choice: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that a dataset's words name, in the current folder and in the Hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    for name in ("prompts", "train", "validation", "test"):
        Path(f"{name}.txt").write_text("\n".join(f"{name} {number}" for number in range(900)))
    node = compose(fitting("dataset", choice)).config["dataset"]
    if "repository" in node:
        hub_datasets.stand_in(cache, node)


@pytest.mark.parametrize("group, choice", [(group, choice) for group in GROUPS for choice in choices(group, conf_folder())], ids=str)
@pytest.mark.filterwarnings("ignore:eval.judges")
def test_every_choice_is_built(
    group: str,
    choice: str,
    tmp_path: Path,
    segformer: Path,
    image_reward: Path,
    clip_judges: dict[str, list[str]],
    seeing: dict[str, Path],
    stand_ins: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    labelled(tmp_path / "labels", groups=12, shape=(6, 4, 8, 8))
    pick_a_pic(tmp_path / "pairs.parquet")
    words = fitting(group, choice)
    words += [word for model, instead in stand_ins.items() if f"model={model}" in words for word in instead]
    if group == "dataset":
        prompt_files(choice, tmp_path / "hub", monkeypatch)
    if choice == "segmentation":
        words.append(f"reward.path={segformer}")
    if choice == "imagereward":
        monkeypatch.setattr(ImageReward, "sizes", Sizes(imagereward_file.VISION, imagereward_file.TEXT, imagereward_file.HEAD))
        words += [f"reward.path={image_reward}/ImageReward.pt", f"reward.tokenizer={image_reward}"]
    if group == "reward" and choice in clip_judges:
        judges.shrink(monkeypatch)
        words += clip_judges[choice]
    if group == "reward":
        there = elsewhere(choice, monkeypatch)
        words = [word for word in words if word.partition("=")[0] not in {each.partition("=")[0] for each in there}] + there
        words += {
            "vlm": [f"reward.path={seeing['llava']}", f"reward.scorer={seeing['bert']}", "reward.layer=2"],
            "vqa_score": [f"reward.path={seeing['llava']}"],
            "parity": clip_judges["clip_score"],
            "set_diversity": clip_judges["clip_score"],
        }.get(choice, [])
    if (group, choice) in (("eval", "photos"), ("eval", "papers")):  # their networks are built in tests of their own
        words += ["eval.judges=[]", "eval.features=[]", "eval.lpips=null"]
    built = Experiment.build(compose(words).config)
    assert len(built.method.updates) % built.method.updates.accumulate == 0
    assert bool(len(built.method.updates)) == bool(built.method.plan()) == bool(built.policy.trainable()) == bool(built.config["epochs"])
    assert built.prompts.train
    assert not set(built.prompts.train) & set(built.prompts.test)
    assert not set(built.prompts.train) & set(built.prompts.validation)


@pytest.mark.parametrize("judge", yaml_of("eval", "papers")["judges"], ids=lambda judge: judge["_target_"].rpartition(".")[2])
def test_a_judge_of_papers_is_a_reward_as_it_is_configured(judge: dict[str, Any]) -> None:
    assert judge in [yaml_of("reward", name) for name in choices("reward", conf_folder())]


def test_a_model_that_is_not_here_says_how_to_get_it() -> None:
    with pytest.raises(MissingAsset, match="hf download stable-diffusion-v1-5/stable-diffusion-v1-5"):
        Experiment.build(compose(["model=sd15", "epochs=1"]).config)


def test_the_policy_at_step_0_is_the_reference(tmp_path: Path) -> None:
    """Same prompts, same noise, same images bit for bit, and no divergence: whatever differs later comes from training."""
    built = Experiment.build(compose(["eval=quick", "epochs=1", "sampler.steps=3"]).config)
    sides = [built.scored("test", 4, policy) for policy in (built.policy, built.policy.reference)]
    assert torch.equal(sides[0].images, sides[1].images)
    assert sides[0].mean("kl") == 0.0
    assert len({image.numpy().tobytes() for image in sides[0].images}) == len(sides[0].images)
    assert built.model.meters.state() == {"reward_queries": 0, "network_evaluations": {}}  # evaluation counts nothing


def run(tmp_path: Path, *more: str) -> Path:
    words = [*SMALL, "epochs=2", "eval.every=1", "method.images=8", "method.batch=4", "sampler.steps=3", f"output={tmp_path}", *more]
    arguments = list({word.partition("=")[0]: word for word in words}.values())  # the last of each key
    assert main(arguments) == 0
    return compose(arguments).folder


def test_a_run_writes_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path)
    out, err = capsys.readouterr()
    for planned in ("reward queries", "network evaluations", "checkpoint", "estimated time", "trains"):
        assert planned in err
    assert "epoch 2/2" in err
    assert str(folder / "report.html") in out
    assert {path.name for path in folder.iterdir()} >= {
        "config.yaml", "metrics.jsonl", "metrics.csv", "samples.parquet", "samples", "result.json", "report.html", "timing.json",
        "checkpoints", "weights",
    }  # fmt: skip
    result: dict[str, Any] = read_result(folder)
    assert result["meters"]["reward_queries"] == 16
    assert result["choices"]["method"] == "ddpo"
    rows = read_metrics(folder)
    assert [(row["epoch"], row["split"]) for row in rows] == [
        (0, "validation"),
        (1, "train"),
        (1, "validation"),
        (2, "train"),
        (2, "validation"),
    ]
    assert rows[0]["kl"] == 0.0
    assert rows[-1]["kl"] > 0
    assert rows[-1]["reward_queries"] == 16
    samples = read_samples(folder)
    assert len(samples) == 2 * 3 * 2
    for metric in result["metrics"]:
        means = {who: [row[metric["name"]] for row in samples if row["who"] == who] for who in ("reference", "policy")}
        for who, values in means.items():
            assert sum(values) / len(values) == pytest.approx(metric[who], abs=1e-12)
        assert metric["policy"] - metric["reference"] == pytest.approx(metric["difference"], abs=1e-12)


def test_a_finished_run_is_shown_and_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(tmp_path) == folder
    assert "already done" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert run(tmp_path, "seed=1") != folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_how_much_goes_through_at_once_changes_no_image(tmp_path: Path) -> None:
    folders = [
        run(tmp_path / name, f"trainer.micro_batch={rows}", f"eval.batch={chunk}", "method.optimizer.lr=0.01", "method.clip=0.5")
        for name, rows, chunk in (("a", 4, 8), ("b", 12, 3))
    ]
    weights = [read_result(folder)["metrics"] for folder in folders]
    assert folders[0].name == folders[1].name  # not part of a run's identity
    for one, other in zip(*weights, strict=True):
        assert one["policy"] == pytest.approx(other["policy"], rel=1e-3, abs=1e-4)
    assert weights[0][1]["name"] == "kl"
    assert weights[0][1]["policy"] > 0.1  # nats: the weights did move


def test_the_lora_of_a_run_gives_its_pictures_in_plain_diffusers(tmp_path: Path) -> None:
    """The policy's pictures in the run folder, level for level, from the pipeline folder, the exported LoRA and the evaluation's noise."""
    arguments = [
        "adapter=lora",
        "eval=quick",
        "eval.prompts=4",
        "eval.grid=3",
        "eval.every=0",
        "epochs=2",
        "sampler.steps=3",
        "sampler.deterministic=0",
    ]
    arguments += ["method.images=8", "method.batch=8", "method.optimizer.lr=0.02", f"output={tmp_path}"]
    assert main(arguments) == 0
    folder = compose(arguments).folder
    pictured = {who: [row for row in read_samples(folder) if row["image"] and row["who"] == who] for who in ("reference", "policy")}
    pipe = StableDiffusionPipeline.from_pretrained(located("package://models/sandbox"))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    images = {}
    for who, rows in pictured.items():
        if who == "policy":
            pipe.load_lora_weights(folder / "weights")
        noise = [generator(0, "evaluation", row["prompt_id"], row["k"]) for row in rows]
        prompts = [row["prompt"] for row in rows]
        images[who] = pipe(prompts, num_inference_steps=3, guidance_scale=3.0, eta=1.0, generator=noise, output_type="np").images
        for row, image in zip(rows, images[who], strict=True):
            picture = np.asarray(Image.open(folder / "samples" / row["image"]))
            apart = np.abs(picture - (image * 255).round())  # the adapter is merged there: a value may round to the next level
            assert apart.max() <= 1
            assert apart.mean() < 0.01
    assert np.abs(images["reference"] - images["policy"]).max() > 0.01


@pytest.mark.parametrize(
    "more, said",
    [
        (["eval.prompts=5000"], "eval.prompts=5000: the test split has 420"),
        (["sampler.eta=0"], "set sampler.eta above 0"),
        (["model=gaussian", "adapter=lora", "epochs=1"], "set adapter=full"),
        (["adapter=lora", "lora.targets=[nope]"], r"lora.targets=\['nope'\]"),
        (["method=ddpo_sf", "method.batch=16"], "one update a collection"),
        (["eval.patience=2", "eval.peak=null"], "eval.patience=2: nothing to wait for; none is chosen"),
        (["eval.patience=2", "eval.judges=[]"], "no judge of the evaluation is held out from scene_judge"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_before_anything_runs(more: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Experiment.build(compose(more).config)


def test_a_judge_that_is_there_already_is_left_out_with_a_word() -> None:
    with pytest.warns(UserWarning, match=r"^eval\.judges: colour is the trained reward, and stands in the table once$"):
        built = Experiment.build(compose(["reward=colour"]).config)
    assert built.judges[0].reward is built.reward
    assert [judge.reward.name for judge in built.judges] == ["colour", "exact_judge"]


def test_another_judge_of_a_name_that_is_taken_is_refused() -> None:
    """Its column would be either's."""
    with pytest.raises(ValueError, match=r"^eval\.judges: colour has the name of the trained reward and other settings or weights"):
        Experiment.build(compose(["reward=colour", "reward.width=0.9"]).config)
    node = {"_target_": "alignbench.rewards.scene_panel.ScenePanel", "rater": 0}
    config = compose([]).config
    config["eval"]["judges"] = [node | {"noise": 0.5}, node | {"noise": 0.7}]
    with pytest.raises(ValueError, match=r"^eval\.judges: panel_0 has the name of one before it and other settings"):
        Experiment.build(config)
    config["eval"]["judges"] = [node | {"noise": 0.5}, node | {"noise": 0.5, "rater": 1}]
    assert [judge.reward.name for judge in Experiment.build(config).judges] == ["scene_judge", "panel_0", "panel_1"]


@pytest.mark.parametrize("words", [["method=ddpo"], ["method=d3po"], ["method=di_star", "reward=brightness"]], ids=lambda words: words[0])
def test_without_the_weights_the_plan_is_printed_before_what_is_missing(words: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main([*words, "model=sd15", "epochs=10", f"output={tmp_path}"]) == 3
    *plan, last = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[1].strip() for line in plan[1:]] == [
        "model",
        "device memory",
        "epochs",
        "reward queries",
        "network evaluations",
    ]
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5" in last
    assert not list(tmp_path.iterdir())


def test_the_plan_without_weights_is_the_plan_with_them() -> None:
    for words in (["method=ddpo"], ["method=d3po"], ["method=di_star", "reward=brightness"], ["method=kl_rlhf"], ["method=rwr"]):
        config = compose([*words, "model=sd15", f"model.path={SANDBOX}", "epochs=3"]).config
        built = Experiment.build(config)
        assert all(line in outline(config) for line in costs(config, built.method).values())


PEAKED = ["eval.peak=held_out", "eval.judges=[{_target_: alignbench.rewards.brightness.Brightness}]"]


def test_the_samples_hold_every_validation_and_say_which_run_they_are_of(tmp_path: Path) -> None:
    folder = run(tmp_path, *PEAKED)
    validations, about, means = read_samples(folder, "validation"), read_about(folder), read_metrics(folder)
    for epoch in (0, 1, 2):
        rows = [row for row in validations if row["epoch"] == epoch]
        assert len(rows) == 2 * 2
        logged = next(row for row in means if row["split"] == "validation" and row["epoch"] == epoch)
        for name in ("jpeg_compressibility", "brightness", "kl", "diversity"):
            assert sum(row[name] for row in rows) / 4 == pytest.approx(logged[name], abs=1e-12)
    said, result = dict(about), read_result(folder)
    assert said.pop("config") == read_config(folder)
    assert [metric["name"] for metric in said.pop("metrics")] == [metric["name"] for metric in result.pop("metrics")]
    assert said == result
    assert said.items() >= read_run(folder).items()
    assert compose([*shlex.split(said["command"])[3:]]).cell == compose([*shlex.split(said["command"])[3:], "seed=7"]).cell == said["cell"]


def test_the_best_checkpoint_by_held_out_judges_is_evaluated_beside_the_last(tmp_path: Path) -> None:
    """Whichever epoch it is: its test images are those of the run that ends there."""
    rate = ["method.optimizer.lr=0.05", "method.clip=10", "epochs=4"]
    folder = run(tmp_path, *PEAKED, *rate)
    best = standing(read_samples(folder, "validation"), ["brightness"])
    peak = read_about(folder)["peak"]
    assert peak == max(best, key=lambda epoch: best[epoch])
    assert 0 < peak < 4, "the test means something only where the peak is neither end: choose other numbers"
    until = run(tmp_path / "until", *PEAKED, *rate[:2], f"epochs={peak}")
    there = {who: [row for row in read_samples(place) if row["who"] == who] for place, who in ((folder, "peak"), (until, "policy"))}
    for one, other in zip(there["peak"], there["policy"], strict=True):
        for name in ("jpeg_compressibility", "brightness", "kl", "diversity"):
            assert one[name] == pytest.approx(other[name], rel=1e-6, abs=1e-6)
    last = [row["kl"] for row in read_samples(folder) if row["who"] == "policy"]
    assert last != [row["kl"] for row in there["peak"]]
    stopped = run(tmp_path / "stopped", *PEAKED, *rate, "eval.patience=1")
    first = next(epoch for epoch in (2, 3, 4) if max(best[e] for e in range(epoch)) >= best[epoch])
    assert read_about(stopped)["epochs"] == first


def test_without_a_held_out_judge_there_is_no_peak(tmp_path: Path) -> None:
    folder = run(tmp_path, "eval.peak=held_out")
    assert read_about(folder)["peak"] is None
    assert {row["who"] for row in read_samples(folder)} == {"reference", "policy"}
