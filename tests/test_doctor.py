"""The doctor: what it calls present loads, what it calls missing would have stopped the run, and it leaves nothing behind."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from conftest import SANDBOX, fitting

from alignbench import __main__ as door
from alignbench import assets, machine
from alignbench import doctor as doctors
from alignbench.assets import Asset
from alignbench.compose import compose
from alignbench.config import located
from alignbench.experiment import Experiment

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def checked(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture) -> Any:
    """The doctor's exit code and its rows by name: state, and the rest with the remedy's line."""

    def of(*words: str) -> tuple[int, dict[str, tuple[str, str]]]:
        output = [] if any(word.startswith("output=") for word in words) else [f"output={tmp_path / 'runs'}"]
        before = set(tmp_path.rglob("*"))
        code = door.main(["doctor", *words, *output])
        assert set(tmp_path.rglob("*")) == before, "it leaves nothing behind"
        printed, error = capsys.readouterr()
        assert error == ""
        rows: dict[str, tuple[str, str]] = {}
        for line in printed.splitlines()[1:-1]:
            if match := re.fullmatch(r"  (\S+) +(ok|missing|warning) +(.+)", line):
                rows[match[1]] = (match[2], match[3])
            elif line:
                name, (state, what) = list(rows.items())[-1]
                assert re.match(r" {20,}-> \S", line), line
                rows[name] = (state, f"{what}\n{line.partition('-> ')[2]}")
        assert code == (3 if any(state == "missing" for state, _ in rows.values()) else 0)
        return code, rows

    return of


def cached(cache: Path, repo: str, source: Path, revision: str = "main") -> Path:
    """A snapshot as huggingface_hub lays it out: blobs, a ref, links."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / revision).write_text(COMMIT)
    for index, file in enumerate(sorted(each for each in source.rglob("*") if each.is_file())):
        blob, link = root / "blobs" / f"{index:040x}", snapshot / file.relative_to(source)
        shutil.copyfile(file, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


# --- a whole machine, and words that no run takes


def test_the_default_misses_nothing(checked: Any) -> None:
    code, rows = checked()
    assert code == 0
    assert list(rows) == ["versions", "torchvision", "device", "model.path", "dataset", "memory", "disk", "output"]
    assert {name for name, (state, _) in rows.items() if state != "ok"} <= {"torchvision"}
    assert torch.__version__.partition("+")[0] in rows["versions"][1]
    assert "2,520 train, 420 validation, 420 test" in rows["dataset"][1]
    assert "an estimate" in rows["memory"][1]


@pytest.mark.parametrize(
    "words, named",
    [
        (["method=ddppo"], ["method=ddppo", "did you mean ddpo?"]),
        (["metod=ddpo"], ["metod", "did you mean method?"]),
        (["seed=-1"], ["seed", "conf/config.yaml"]),
        (["model=sd14"], ["epochs", "no value yet"]),
    ],
)
def test_wrong_words_are_one_line(words: list[str], named: list[str], capsys: pytest.CaptureFixture) -> None:
    assert door.main(["doctor", *words]) == 2
    output, error = capsys.readouterr()
    assert output == "" and error.count("\n") == 1
    assert all(each in error for each in named)


def test_it_is_a_verb(capsys: pytest.CaptureFixture) -> None:
    assert door.main(["--help"]) == 0
    assert "\n  doctor  " in capsys.readouterr().out
    assert door.main(["docter"]) == 2
    assert "did you mean doctor?" in capsys.readouterr().err


# --- weights


def test_weights_that_are_not_here(checked: Any) -> None:
    code, rows = checked("model=sd15", "reward=segmentation", "epochs=1")
    assert code == 3
    assert rows["model.path"] == (
        "missing",
        f"{SD15} is not here (5.5 GB of it are loaded, CreativeML OpenRAIL-M); HF_HUB_OFFLINE is set\nHF_HUB_OFFLINE=0 hf download {SD15}",
    )
    assert "hf download nvidia/segformer-b0-finetuned-ade-512-512" in rows["reward.path"][1]
    assert rows["memory"][0] == "warning"
    assert "5.5 GB of downloads" in rows["disk"][1]


@pytest.mark.parametrize(
    "lost", ["", "unet/*", "unet/*.safetensors", "vae/config.json", "scheduler/*", "model_index.json", "cut", "README.md"]
)
def test_what_it_calls_present_is_what_diffusers_loads(lost: str, checked: Any, cache: Path) -> None:
    """With each part of a pipeline lost in turn; README.md is no part of it."""
    import diffusers

    snapshot = cached(cache, "someone/tiny", Path(located(SANDBOX)))
    for file in list(snapshot.glob(lost)) if lost not in ("", "cut") else []:
        file.unlink()
    if lost == "cut":
        weights = snapshot / "vae" / "diffusion_pytorch_model.safetensors"
        os.truncate(weights, weights.stat().st_size // 2)
    code, rows = checked("model.path=someone/tiny")
    try:
        diffusers.StableDiffusionPipeline.from_pretrained("someone/tiny", cache_dir=cache, use_safetensors=True, local_files_only=True)
        loads = True
    except Exception:  # OSError, ValueError, SafetensorError, whatever each part raises
        loads = False
    assert loads == (lost in ("", "README.md"))
    assert rows["model.path"][0] == ("ok" if loads else "missing"), rows["model.path"]
    assert code == (0 if loads else 3)
    assert ("hf download someone/tiny" in rows["model.path"][1]) != loads


def test_a_tokenizer_without_words_is_missing(checked: Any, cache: Path) -> None:
    """transformers makes an empty one and says nothing: every prompt would read the same."""
    (cached(cache, "someone/tiny", Path(located(SANDBOX))) / "tokenizer" / "tokenizer.json").unlink()
    assert "no vocabulary in tokenizer" in checked("model.path=someone/tiny")[1]["model.path"][1]


def test_a_revision_counts(checked: Any, cache: Path) -> None:
    cached(cache, "someone/tiny", Path(located(SANDBOX)), revision="v2")
    assert checked("model.path=someone/tiny", "model.revision=v2")[1]["model.path"][0] == "ok"
    state, what = checked("model.path=someone/tiny", "model.revision=v3")[1]["model.path"]
    assert state == "missing" and "hf download someone/tiny --revision v3" in what


def test_a_folder_of_a_reward(checked: Any, segformer: Path, tmp_path: Path) -> None:
    words = ["reward=segmentation", "eval=plain"]
    assert checked(*words, f"reward.path={segformer}")[1]["reward.path"][0] == "ok"
    state, what = checked(*words, f"reward.path={tmp_path / 'nowhere'}")[1]["reward.path"]
    assert state == "missing" and "reward.path=<a folder, or an id of the Hub>" in what


def test_one_file_of_a_repository(cache: Path, tmp_path: Path) -> None:
    asset = Asset("model.init", "tianweiy/DMD2:dmd2_sdxl_4step_unet_fp16.bin")
    assert asset.hub == ("tianweiy/DMD2", "dmd2_sdxl_4step_unet_fp16.bin")
    assert asset.command == "hf download tianweiy/DMD2 dmd2_sdxl_4step_unet_fp16.bin"
    assert assets.here(asset) is None
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "dmd2_sdxl_4step_unet_fp16.bin").write_bytes(b"weights")
    cached(cache, "tianweiy/DMD2", tmp_path / "files")
    assert assets.here(asset).read_bytes() == b"weights"
    assert Asset("model.path", "a/b/c").hub is Asset("model.path", "./a").hub is Asset("model.path", "/a/b").hub is None


def test_shards_are_all_needed(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(located(SANDBOX), tmp_path / "pipeline"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet" / "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    asset = Asset("model.path", str(folder))
    with pytest.raises(assets.Damaged, match=r"no unet/b\.safetensors"):
        assets.here(asset)
    shutil.copyfile(folder / "unet" / "a.safetensors", folder / "unet" / "b.safetensors")
    assert assets.here(asset) == folder


# --- the Hub, asked once


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A Hub on this machine that answers as told: status, error code, body; or never."""
    told, over = SimpleNamespace(status=200, code="", body={}, silent=False, asked=[]), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/api/models/"):  # huggingface_hub has questions of its own
                told.asked.append(self.path)
            if told.silent:
                over.wait(20)
                return
            body = json.dumps({"id": "someone/new", "siblings": [{"rfilename": "there.bin"}], **told.body}).encode()
            self.send_response(told.status)
            self.send_header("X-Error-Code", told.code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    yield told
    over.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "answer, state, says",
    [
        ({}, "warning", "the run can fetch it"),
        ({"status": 404, "code": "RepoNotFound"}, "missing", "no such repository"),
        ({"status": 404, "code": "RevisionNotFound"}, "missing", "no revision v9"),
        ({"status": 403, "code": "GatedRepo"}, "missing", "accept the terms on its page on the Hub (someone/new)"),
        ({"body": {"gated": "auto"}}, "missing", "then `hf auth login`, then `hf download someone/new --revision v9`"),
        ({"status": 500}, "missing", "the Hub gives no answer"),
    ],
)
def test_what_the_hub_says(answer: dict, state: str, says: str, checked: Any, cache: Path, hub: SimpleNamespace) -> None:
    vars(hub).update(answer)
    found, what = checked("model.path=someone/new", "model.revision=v9")[1]["model.path"]
    assert (found, says in what) == (state, True), what
    assert set(hub.asked) == {"/api/models/someone/new/revision/v9"}, "one question, and no download"


def test_a_file_that_the_hub_lacks(cache: Path, hub: SimpleNamespace) -> None:
    assert assets.asked(Asset("model.init", "someone/new:there.bin"))[0] == "there"
    assert assets.asked(Asset("model.init", "someone/new:other.bin")) == ("absent", "the Hub's repository has no file other.bin")


def test_a_silent_hub_is_not_waited_for(checked: Any, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it asked again for the next of the weights."""
    monkeypatch.setattr(assets, "PATIENCE", 0.3)
    hub.silent, asked = True, []
    monkeypatch.setattr(doctors, "asked", lambda asset: asked.append(asset.key) or assets.asked(asset))
    started = time.monotonic()
    _, rows = checked("model.path=someone/new", "reward=segmentation")
    assert time.monotonic() - started < 15  # the server would take 20
    assert [rows[key][0] for key in ("model.path", "reward.path")] == ["missing", "missing"]
    assert "the Hub gives no answer" in rows["reward.path"][1]
    assert (asked, len(hub.asked)) == (["model.path"], 1)


# --- libraries, devices, memory


def test_versions_that_do_not_fit(checked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        machine.importlib.metadata, "requires", lambda name: ["torch>=99", "nowhere-to-be-found>=1", "ruff>=99; extra == 'dev'"]
    )
    state, what = checked()[1]["versions"]
    assert state == "missing"
    assert what.endswith("pip install 'torch>=99' 'nowhere-to-be-found>=1'")


def test_a_torchvision_of_another_build(tmp_path: Path) -> None:
    """As a process: it must say so although lightning cannot be imported then."""
    (tmp_path / "fake" / "torchvision").mkdir(parents=True)
    (tmp_path / "fake" / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    path = os.pathsep.join([str(tmp_path / "fake"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "alignbench", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stderr) == (3, ""), done
    assert re.search(r"torchvision +missing .*not of the same build as torch .*torchvision::nms does not exist", done.stdout)
    assert "-> pip uninstall torchvision, or install" in done.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "fake"]


@pytest.mark.slow
def test_no_library_that_holds_weights_is_loaded(tmp_path: Path) -> None:
    held = {"diffusers", "peft", "safetensors.torch"}
    code = f"import sys; from alignbench.__main__ import main; main(); sys.exit(bool({held} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, "doctor"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done


def test_a_gpu_that_is_not_there(checked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: 0)
    state, what = checked("trainer=gpu")[1]["device"]
    assert state == "missing"
    assert what.startswith("trainer.accelerator=gpu, but there is no GPU") and "\ntrainer.accelerator=auto" in what


def test_gpus_that_are_there(checked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Example 9000")
    monkeypatch.setattr(machine, "free_memory", lambda gpu: 24e9 if gpu == 0 else 1e9)
    rows = checked("trainer=gpu")[1]
    assert rows["device"] == ("ok", "Example 9000 (24.0 GB free); trainer.accelerator=gpu")
    assert rows["memory"][0] == "ok" and "24.0 GB are free" in rows["memory"][1]
    state, what = checked("trainer=gpu", "trainer.devices=2")[1]["device"]
    assert state == "missing" and what.endswith("\ntrainer.devices=1")
    monkeypatch.setattr(machine, "free_memory", lambda gpu: 20e6)
    state, what = checked("trainer=gpu")[1]["memory"]
    assert state == "missing" and "adapter=lora" in what


def test_a_measured_figure_goes_before_an_estimate(checked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda gpu: 16e9)
    assert checked("model.memory_gb=12")[1]["memory"][0] == "ok"
    state, what = checked("model.memory_gb=18")[1]["memory"]
    assert state == "missing" and "18.0 GB measured" in what


@pytest.mark.filterwarnings("ignore:eval.judges. colour is the trained reward")
@pytest.mark.parametrize(
    "words",
    [[], ["adapter=lora"], ["adapter=lora", "lora.rank=7", "lora.targets=[to_q]"], [*fitting("method", "di_star")]],
    ids=["full", "lora", "rank 7", "di_star"],
)
def test_parameters_are_counted_as_torch_counts_them(words: list[str]) -> None:
    config = compose(words).config
    asset = next(each for each in assets.named(config) if each.key == "model.path")
    counted, experiment = assets.sizes(Path(located(asset.value)), asset, config), Experiment.build(config)
    parts = [part for part in experiment.model.pipeline[0].components.values() if isinstance(part, torch.nn.Module)]
    assert counted.trained == experiment.trainable_parameters
    assert counted.denoiser == sum(each.numel() for name, each in parts[-1].named_parameters() if "lora_" not in name)
    frozen = {name: each for part in parts for name, each in part.named_parameters() if "lora_" not in name}
    assert counted.frozen == sum(each.numel() for each in frozen.values())
    assert doctors.trained(config, counted) == counted.trained * (3 if "method=di_star" in words else 1)


# --- prompts, labels, disk, folder


def test_more_prompts_than_there_are(checked: Any) -> None:
    assert checked("eval.prompts=421")[1]["dataset"] == (
        "missing",
        "eval.prompts=421, but the test split has 420 prompts\neval.prompts=420",
    )


def test_labels_that_are_not_there(checked: Any, tmp_path: Path) -> None:
    words = ["method=d3po_human", "epochs=1"]
    state, what = checked(*words, "method.path=nowhere/labels")[1]["method.path"]
    assert state == "missing" and "alignbench label" in what
    (tmp_path / "labels").mkdir()
    assert checked(*words, f"method.path={tmp_path / 'labels'}")[1]["method.path"][0] == "ok"


def test_a_disk_that_is_full(checked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(total=1e9, used=0.97e9, free=0.03e9))
    state, what = checked()[1]["disk"]
    assert state == "missing"
    assert what.startswith("30 MB free in") and "of checkpoints\nfree " in what
    assert checked("adapter=lora")[1]["disk"][0] == "ok"
    assert checked("model=sd15", "epochs=1")[1]["disk"][0] == "missing"


def test_an_output_that_cannot_be_written(checked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the place of a folder")
    for output in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("long" * 100)):
        state, what = checked(f"output={output}")[1]["output"]
        assert state == "missing" and f"output={output}" in what

    def refuse(*paths: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine.os, "replace", refuse)
    assert "Read-only file system" in checked()[1]["output"][1]


def test_everything_that_a_judge_loads_is_looked_for(checked: Any, seeing: dict[str, Path], image_reward: Path, tmp_path: Path) -> None:
    """Not only `path`: a scorer, a head, a tokenizer; with the size that the judge's class states."""
    rows = checked("reward=vlm", f"reward.path={seeing['llava']}")[1]
    assert [rows[key][0] for key in ("reward.path", "reward.scorer")] == ["ok", "missing"]
    assert "hf download microsoft/deberta-xlarge-mnli" in rows["reward.scorer"][1]
    rows = checked("reward=imagereward", f"reward.path={image_reward / 'ImageReward.pt'}", f"reward.tokenizer={image_reward}")[1]
    assert [rows[key][0] for key in ("reward.path", "reward.tokenizer")] == ["ok", "ok"]
    rows = checked("reward=imagereward", f"reward.tokenizer={tmp_path}")[1]
    assert "1.8 GB of it are loaded" in rows["reward.path"][1]
    assert rows["reward.tokenizer"][0] == "missing" and "no vocabulary" in rows["reward.tokenizer"][1]
    assert checked("reward=aesthetic")[1]["reward.head"][0] == "missing"
