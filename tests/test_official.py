"""The official packages' adapter scripts and rewards, with stand-ins for the packages; `make parity` runs the real ones."""

import ast
import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from alignbench.compose import compose
from alignbench.config import MissingAsset, conf_folder, located
from alignbench.experiment import made
from alignbench.rewards import hpsv2_official, imagereward_official
from alignbench.rewards.base import Reward
from alignbench.rewards.hpsv2 import HPSv2
from alignbench.rewards.imagereward import ImageReward

SCRIPTS = {"imagereward": imagereward_official.SCRIPT, "hpsv2": hpsv2_official.SCRIPT}
PINS = {"imagereward": {"image-reward": "1.5", "timm": "0.6.13"}, "hpsv2": {"hpsv2": "1.2.0", "open-clip-torch": "3.3.0"}}
MERGES = "bpe_simple_vocab_16e6.txt.gz"
ECHO = """
def load(settings):
    import hashlib, json
    digest = hashlib.sha256(open(settings["path"], "rb").read()).hexdigest()
    facts = {"name": settings.get("name", "echo"), "version": json.dumps(settings), "weights": digest}
    return facts, lambda images, prompts: [0.5] * len(prompts)
"""


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location("adapter", located(SCRIPTS[name]))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.version = lambda name: f"of {name}"  # type: ignore[attr-defined]
    return module


def locked(name: str) -> str:
    lock = (Path(__file__).parents[1] / "requirements.lock").read_text()
    found = re.search(rf"^{name}==(\S+)", lock, re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_package_is_pinned_and_no_index_is_named(name: str) -> None:
    first, *lines = (conf_folder() / "reward" / "env" / f"{name}.txt").read_text().splitlines()
    assert re.match(r"# the package (image-reward|hpsv2) [\d.]+, unmodified, for reward=.* tried on Python 3\.11", first)
    pins = {}
    for line in lines:
        if text := line.partition("#")[0].strip():
            required = Requirement(text)
            (pin,) = required.specifier
            assert pin.operator == "=="
            assert required.url is None
            assert required.name not in pins
            pins[required.name] = pin.version
    wanted = PINS[name] | {each: locked(each) for each in ("torch", "torchvision")}
    assert {each: pins[each] for each in wanted} == wanted


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_stands_alone(name: str) -> None:
    tree = ast.parse(Path(located(SCRIPTS[name])).read_text())
    heads = {
        each.module if isinstance(each, ast.ImportFrom) else each.names[0].name for each in ast.walk(tree) if "Import" in str(type(each))
    }
    roots = {str(head).partition(".")[0] for head in heads}
    assert "alignbench" not in roots
    assert roots - sys.stdlib_module_names <= {"numpy", "torch", "PIL", "ImageReward", "hpsv2"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_image_is_what_a_file_of_8_bits_holds(name: str) -> None:
    image = np.array([[[0.0, 0.5, 1.0]], [[0.1, 0.499, 2.0]], [[-1.0, 1 / 255, 0.0021]]], np.float32)
    picture = script(name).picture(image)
    assert (picture.mode, picture.size) == ("RGB", (3, 1))
    assert np.asarray(picture).transpose(2, 0, 1).tolist() == [[[0, 128, 255]], [[26, 127, 255]], [[0, 1, 1]]]


# --- image-reward


class Package(torch.nn.Module):
    """What stands in for the package's model: its words are those of the folder that its tokenizer would be read from."""

    def __init__(self, words: int):
        super().__init__()
        self.mlp, self.device = torch.nn.Linear(2, 1), "cpu"
        self.blip = torch.nn.Module()
        self.blip.tokenizer = range(words)

    def score(self, prompt: str, image: Any) -> float:
        return image.getpixel((0, 0))[0] + len(prompt) / 100


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def load(path: str, **more: Any) -> Package:
        seen.update(more, path=path, config=json.loads(Path(more["med_config"]).read_text()))
        return Package(len(Path("bert-base-uncased/vocab.txt").read_text().splitlines()) + 2)

    monkeypatch.setitem(sys.modules, "ImageReward", ModuleType("ImageReward"))
    monkeypatch.setattr(sys.modules["ImageReward"], "load", load, raising=False)
    return seen


def words(folder: Path, count: int = 30522) -> Path:
    (folder / "vocab.txt").write_text("word\n" * count)
    return folder


def given(folder: Path, **more: Any) -> dict[str, Any]:
    return {"path": str(folder / "weights.pt"), "tokenizer": str(folder), "device": None, **more}


def test_image_reward_is_loaded_and_asked_as_its_users_do(tmp_path: Path, package: dict[str, Any]) -> None:
    torch.save(Package(0).state_dict(), tmp_path / "weights.pt")
    here = Path.cwd()
    facts, score = script("imagereward").load(given(words(tmp_path), device="cpu"))
    assert Path.cwd() == here
    assert (package["path"], package["device"]) == (str(tmp_path / "weights.pt"), "cpu")
    published = {"num_attention_heads": 12, "layer_norm_eps": 1e-12, "vocab_size": 30524, "hidden_act": "gelu", "add_cross_attention": True}
    assert published.items() <= package["config"].items()
    assert facts["weights"] == hashlib.sha256((tmp_path / "weights.pt").read_bytes()).hexdigest()
    assert score(np.full((2, 3, 4, 4), 0.2, np.float32), ["one", "three"]) == [51.03, 51.05]
    script("imagereward").load(given(tmp_path))
    assert "device" in package  # from before: null leaves the choice to the package
    with pytest.raises(ValueError, match="zip"):
        score(np.zeros((2, 3, 4, 4), np.float32), ["one"])


def test_image_reward_s_gaps_are_errors(tmp_path: Path, package: dict[str, Any]) -> None:
    """The package itself would go on with random weights, or with an empty vocabulary."""
    torch.save({"mlp.weight": torch.zeros(1, 2)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt lacks 1 of the package's weights, first mlp\.bias"):
        script("imagereward").load(given(words(tmp_path)))
    torch.save(Package(0).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="12 words where the weights know 30524"):
        script("imagereward").load(given(words(tmp_path, 10)))


# --- hpsv2

IMG_SCORE = """
device, model_dict, calls = "cuda", {}, []
def score(image, prompt, cp):
    import torch
    model = model_dict["model"]
    model.load_state_dict(torch.load(cp)["state_dict"])
    return [model(torch.tensor(float(image.getpixel((0, 0))[0]))) + len(prompt)]
"""
OPEN_CLIP = f"""
import pathlib, torch
pathlib.Path(__file__).with_name("{MERGES}").read_bytes()  # as the package's tokenizer, when it is imported
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(()))
    def forward(self, x):
        return (x * self.scale).item()
def create_model_and_transforms(name, **more):
    assert name == "ViT-H-14" and more == dict(precision="amp", device="cpu", light_augmentation=True, output_dict=True)
    return Model(), None, None
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package hpsv2 without its merges, beside a package open_clip that has them."""
    texts = {
        "hpsv2/__init__.py": "",
        "hpsv2/img_score.py": IMG_SCORE,
        "hpsv2/src/__init__.py": "",
        "hpsv2/src/open_clip/__init__.py": OPEN_CLIP,
        "open_clip/__init__.py": "",
        f"open_clip/{MERGES}": "merges",
    }
    for name, text in texts.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(text)
    for name in [each for each in sys.modules if each.partition(".")[0] in ("hpsv2", "open_clip")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def test_hpsv2_is_loaded_without_a_hub_and_asked_as_its_users_do(tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"state_dict": {"scale": torch.tensor(2.0)}}, tmp_path / "weights.pt")
    facts, score = script("hpsv2").load({"name": "hpsv2_1_official", "path": str(tmp_path / "weights.pt"), "device": "cpu"})
    assert (installed / "hpsv2/src/open_clip" / MERGES).read_text() == "merges"
    assert facts == {
        "name": "hpsv2_1_official",
        "version": "hpsv2 of hpsv2, torch of torch, torchvision of torchvision on cpu",
        "weights": hashlib.sha256((tmp_path / "weights.pt").read_bytes()).hexdigest(),
    }
    images = np.full((2, 3, 4, 4), 0.2, np.float32)
    assert score(images, ["one", "three"]) == score(images, ["one", "three"]) == [105.0, 107.0]
    for name in [each for each in sys.modules if each.partition(".")[0] == "hpsv2"]:
        monkeypatch.delitem(sys.modules, name)


def test_a_python_without_tk_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "turtle", None)  # its import fails
    script("hpsv2").with_turtle()
    from turtle import forward  # as the package does

    assert forward is None


# --- the rewards


def node(choice: str, **more: Any) -> dict[str, Any]:
    return compose([f"reward={choice}"]).config["reward"] | more


@pytest.mark.parametrize("choice, native", [("imagereward", ImageReward), ("hpsv2", HPSv2), ("hpsv2_1", HPSv2)])
def test_it_says_of_itself_what_the_native_judge_does(choice: str, native: type[Reward]) -> None:
    ours, theirs = node(choice), node(f"{choice}_official")
    assert (ours["path"], ours["revision"], ours.get("tokenizer")) == (theirs["path"], theirs["revision"], theirs.get("tokenizer"))
    official = {"imagereward": imagereward_official.ImageRewardOfficial}.get(choice, hpsv2_official.HPSv2Official)
    for fact in ("range", "unit", "licence", "backbones", "datasets", "size_gb", "spatial"):
        assert getattr(official, fact) == getattr(native, fact)
    assert not official.differentiable


@pytest.mark.parametrize("choice", ["imagereward_official", "hpsv2_official", "hpsv2_1_official"])
def test_it_starts_its_script_with_what_is_here(
    choice: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real worker and process, in this environment, with a script that says what it was given."""
    tmp_path = tmp_path_factory.mktemp("o")  # short: a version has at most 200 characters
    (tmp_path / "echo.py").write_text(ECHO)
    for module in (imagereward_official, hpsv2_official):
        monkeypatch.setattr(module, "SCRIPT", str(tmp_path / "echo.py"))
    monkeypatch.setattr("alignbench.rewards.worker.environment", lambda *_: Path(sys.executable))
    file = {
        "imagereward_official": "ImageReward.pt",
        "hpsv2_official": "HPS_v2_compressed.pt",
        "hpsv2_1_official": "HPS_v2.1_compressed.pt",
    }[choice]
    (tmp_path / file).write_bytes(b"weights")
    words(tmp_path, 1)
    more = {"tokenizer": str(tmp_path)} if choice == "imagereward_official" else {}
    reward = made(node(choice, path=str(tmp_path / file), device="cpu", **more))
    try:
        identity = reward.identity()
        assert json.loads(identity["version"]) == {"path": str(tmp_path / file), "device": "cpu"} | (more or {"name": choice})
        assert str(tmp_path) not in identity["settings"] or more
        assert identity["weights"] == hashlib.sha256(b"weights").hexdigest()
        assert reward.name == choice
        assert reward(torch.zeros(2, 3, 8, 8), ["a", "b"]).tolist() == [0.5, 0.5]
    finally:
        reward.close()


def test_without_the_files_a_line_says_what_to_fetch(tmp_path: Path) -> None:
    def line(choice: str, **more: str) -> str:
        with pytest.raises(MissingAsset) as caught:
            made(node(choice, **more))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "`hf download THUDM/ImageReward ImageReward.pt`" in line("imagereward_official")
    (tmp_path / "ImageReward.pt").write_bytes(b"weights")
    for tokenizer in (str(tmp_path), "bert-base-uncased"):
        said = line("imagereward_official", path=str(tmp_path / "ImageReward.pt"), tokenizer=tokenizer)
        assert said.startswith(f"reward.tokenizer={tokenizer}: BERT's uncased vocabulary is not there (")
        assert "`hf download bert-base-uncased vocab.txt`" in said
    assert "`hf download xswu/HPSv2 HPS_v2_compressed.pt`" in line("hpsv2_official")
    assert "`hf download xswu/HPSv2 HPS_v2.1_compressed.pt`" in line(
        "hpsv2_1_official", path=str(tmp_path / "none" / "HPS_v2.1_compressed.pt")
    )
    (tmp_path / "HPS_v2_compressed.pt").write_bytes(b"weights")
    assert "HPS_v2_compressed.pt is not HPS_v2.1_compressed.pt" in line("hpsv2_1_official", path=str(tmp_path / "HPS_v2_compressed.pt"))
