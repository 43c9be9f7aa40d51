"""GenEval: the verdict on hand-made detections, task by task; the adapter with stand-ins for its packages; the reward with its metadata."""

import ast
import hashlib
import importlib.util
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from torch import Tensor

from alignbench.compose import _digest, compose
from alignbench.config import ConfigError, MissingAsset, conf_folder, located
from alignbench.experiment import made
from alignbench.rewards import geneval
from alignbench.rewards.clip_score import ClipScore
from alignbench.rewards.geneval import Geneval, tasks

SCRIPT = located(geneval.SCRIPT)
NUMBERS = {"threshold": 0.3, "counting_threshold": 0.9, "max_objects": 16, "position_threshold": 0.1}
CAT = {"class": "cat", "count": 1}
ONE = {"prompt": "a photo of a cat", "tag": "single_object", "include": [CAT]}


def script() -> Any:
    spec = importlib.util.spec_from_file_location("geneval_adapter", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["geneval_adapter"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    module.version = lambda name: f"of {name}"  # type: ignore[attr-defined]
    return module


official = script()


def thing(x: float, y: float, size: float = 10.0, score: float = 0.95) -> Any:
    """A square detection around (x, y)."""
    return official.Found((x - size / 2, y - size / 2, x + size / 2, y + size / 2), score)


def verdict(task: dict[str, Any], objects: dict[str, list[Any]], colours: dict[str, list[str]] | None = None) -> bool:
    def said(name: str, found: list[Any]) -> list[str]:
        return (colours or {})[name][: len(found)]

    return official.verdict(objects, task, said, 0.1)


# --- the verdict


@pytest.mark.parametrize("objects, right", [({"cat": 1}, True), ({"cat": 3}, True), ({"dog": 1}, False), ({}, False)])
def test_single_object(objects: dict[str, int], right: bool) -> None:
    assert verdict(ONE, {name: [thing(0, 0)] * count for name, count in objects.items()}) is right


@pytest.mark.parametrize("there, right", [("cat dog", True), ("cat dog dog bird", True), ("cat", False), ("dog dog", False), ("", False)])
def test_two_objects(there: str, right: bool) -> None:
    task = {"tag": "two_object", "include": [CAT, {"class": "dog", "count": 1}]}
    assert verdict(task, {name: [thing(0, 0)] * there.split().count(name) for name in set(there.split())}) is right


@pytest.mark.parametrize("count", range(6))
def test_counting_wants_as_many_and_no_more(count: int) -> None:
    task = {"tag": "counting", "include": [{"class": "cat", "count": 3}], "exclude": [{"class": "cat", "count": 4}]}
    objects = {"cat": [thing(each, 0) for each in range(count)], "dog": [thing(0, 0)] * 5}
    assert verdict(task, objects) is (count == 3)


def test_of_colours_only_the_surest_object_is_asked() -> None:
    task = {"tag": "colors", "include": [CAT | {"color": "red"}]}
    two = {"cat": [thing(0, 0, score=0.9), thing(9, 9, score=0.5)]}
    assert verdict(task, two, {"cat": ["red", "blue"]})
    assert not verdict(task, two, {"cat": ["blue", "red"]})
    assert not verdict(task, {}, {"cat": ["red"]})
    pair = {"tag": "colors", "include": [{"class": "cat", "count": 2, "color": "red"}]}
    assert verdict(pair, two, {"cat": ["red", "red"]})
    assert not verdict(pair, two, {"cat": ["red", "blue"]})


@pytest.mark.parametrize(
    "cat, dog, right", [("red", "blue", True), ("blue", "red", False), ("red", "red", False), ("green", "blue", False)]
)
def test_attributes_belong_to_their_objects(cat: str, dog: str, right: bool) -> None:
    task = {"tag": "color_attr", "include": [CAT | {"color": "red"}, {"class": "dog", "count": 1, "color": "blue"}]}
    assert verdict(task, {"cat": [thing(0, 0)], "dog": [thing(9, 9)]}, {"cat": [cat], "dog": [dog]}) is right


@pytest.mark.parametrize("place, at", [("left of", (10, 50)), ("right of", (90, 50)), ("above", (50, 10)), ("below", (50, 90))])
def test_position_is_that_of_the_second_object_seen_from_the_first(place: str, at: tuple[float, float]) -> None:
    for wanted in ("left of", "right of", "above", "below"):
        task = {"tag": "position", "include": [{"class": "dog", "count": 1}, CAT | {"position": [wanted, 0]}]}
        assert verdict(task, {"dog": [thing(50, 50)], "cat": [thing(*at)]}) is (wanted == place)
        assert not verdict(task, {"cat": [thing(*at)]})  # nothing to be seen from
        assert not verdict(task, {"dog": [thing(50, 50)]})


def test_every_object_of_a_group_must_lie_there() -> None:
    task = {"tag": "position", "include": [{"class": "dog", "count": 2}, {"class": "cat", "count": 2, "position": ["left of", 0]}]}
    dogs = [thing(80, 50), thing(90, 50)]
    assert verdict(task, {"dog": dogs, "cat": [thing(10, 50), thing(20, 50)]})
    assert not verdict(task, {"dog": dogs, "cat": [thing(10, 50), thing(85, 50)]})
    assert verdict(task, {"dog": dogs, "cat": [thing(10, 50), thing(20, 50), thing(99, 50)]})  # the third is less sure
    wrong = {"tag": "position", "include": [{"class": "dog", "count": 1, "color": "red"}, CAT | {"position": ["left of", 0]}]}
    assert not verdict(wrong, {"dog": dogs, "cat": [thing(10, 50)]}, {"dog": ["blue"]})


def test_what_is_excluded_is_looked_for_among_all_objects() -> None:
    task = {"tag": "single_object", "include": [CAT], "exclude": [{"class": "dog", "count": 2}]}
    assert verdict(task, {"cat": [thing(0, 0)], "dog": [thing(0, 0)]})
    assert not verdict(task, {"cat": [thing(0, 0)], "dog": [thing(0, 0)] * 2})


@pytest.mark.parametrize("degrees", range(1, 360, 8))
def test_a_place_is_a_third_of_the_circle(degrees: int) -> None:
    """Without sizes a place is a cosine over 1/2: 60 degrees to each side, so that neighbours share 30 degrees."""
    angle = math.radians(degrees)
    point = thing(100 * math.cos(angle), 100 * math.sin(angle), 0)
    directions = {"right of": 0, "below": 90, "left of": 180, "above": 270}  # y goes down
    apart = {place: abs((degrees - at + 180) % 360 - 180) for place, at in directions.items()}
    assert official.places(point.box, thing(0, 0, 0).box, 0.1) == {place for place, each in apart.items() if each < 60}


def test_large_objects_must_be_farther_apart() -> None:
    """Of two squares of side s side by side at a distance d: right of where (d - 2 s / 10) / d > 1/2, so from d > 0.4 s on."""
    for distance, found in ((39.9, set()), (40.1, {"right of"})):
        assert official.places(thing(distance, 0, 100).box, thing(0, 0, 100).box, 0.1) == found
    assert official.places(thing(39.9, 0, 100).box, thing(0, 0, 100).box, 0.0) == {"right of"}
    assert official.places(thing(5, 5, 100).box, thing(5, 5, 20).box, 0.1) == set()  # one in the other


def test_objects_are_kept_by_their_confidence() -> None:
    found = {"cat": [thing(0, 0, score=each) for each in (0.4, 0.9, 0.3, 0.95, 0.6)], "dog": [thing(0, 0, score=0.2)]}
    assert [each.score for each in official.kept(found, 0.3, 16)["cat"]] == [0.95, 0.9, 0.6, 0.4]  # 0.3 is not over 0.3
    assert [each.score for each in official.kept(found, 0.3, 2)["cat"]] == [0.95, 0.9]
    assert not official.kept(found, 0.3, 16)["dog"]


# --- the adapter, with stand-ins for mmcv, mmdet and open_clip

NAMES = ("cat", "dog", "mouse")  # as COCO has them


class Clip(torch.nn.Module):
    """Sees an image as its mean colour, and a text as the colour that it names: a template without the colour would be nothing."""

    RGB = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}

    def encode_image(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) - 0.5

    def encode_text(self, texts: list[str]) -> Tensor:
        named = [next(colour for colour in official.COLOURS if f" {colour}" in text) for text in texts]
        return torch.tensor([self.RGB.get(name, (0.0, 0.0, 0.0)) for name in named]) - 0.5


class Texts(list):
    def to(self, device: str) -> "Texts":
        return self


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the detector 'finds' is set by a test as (name, box, score); a mask covers the box's left half."""
    seen: dict[str, Any] = {"found": [], "asked": [], "crops": []}

    class Instances(SimpleNamespace):
        def cpu(self) -> "Instances":
            return self

        numpy = cpu

    def detector(net: Any, pixels: np.ndarray) -> Any:
        seen["asked"].append(pixels)
        masks = np.zeros((len(seen["found"]), *pixels.shape[:2]), bool)
        for mask, (_, (left, top, right, bottom), _) in zip(masks, seen["found"], strict=True):
            mask[top:bottom, left : (left + right) // 2] = True
        names, boxes, scores = zip(*seen["found"], strict=True) if seen["found"] else ((), np.zeros((0, 4)), ())
        labels = [NAMES.index(name) for name in names]
        return SimpleNamespace(pred_instances=Instances(bboxes=np.array(boxes), scores=np.array(scores), labels=labels, masks=masks))

    def prepared(crop: Any) -> Tensor:
        seen["crops"].append(np.asarray(crop))
        return torch.from_numpy(np.asarray(crop) / 255).float().permute(2, 0, 1)

    modules = {name: ModuleType(name) for name in ("mmcv", "mmcv.ops", "mmdet", "mmdet.apis", "open_clip")}
    modules["mmdet"].__file__ = "/site/mmdet/__init__.py"
    made_net = SimpleNamespace(dataset_meta={"classes": NAMES})
    modules["mmdet.apis"].init_detector = lambda *words, device: seen.update(init=(*words, device)) or made_net  # type: ignore
    modules["mmdet.apis"].inference_detector = detector  # type: ignore[attr-defined]
    modules["open_clip"].create_model_and_transforms = lambda *words, **more: seen.update(clip=(words, more)) or (Clip(), None, prepared)  # type: ignore
    modules["open_clip"].get_tokenizer = lambda name: Texts  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def given(folder: Path, *rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    digest = hashlib.sha256(b"weights").hexdigest()
    (folder / f"detector-{digest[:8]}.pth").write_bytes(b"weights")
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    paths = {"path": str(folder / f"detector-{digest[:8]}.pth"), "metadata": str(folder / "tasks.jsonl")}
    return {**paths, "clip": None, "device": "cpu", **NUMBERS, **more}


def painted(*patches: tuple[tuple[int, int, int, int], int]) -> np.ndarray:
    """[1,3,40,40], black, with boxes in one of the three colours."""
    image = np.zeros((1, 3, 40, 40), np.float32)
    for (left, top, right, bottom), channel in patches:
        image[0, channel, top:bottom, left:right] = 1
    return image


def test_the_detector_and_clip_are_asked_as_geneval_does(tmp_path: Path, packages: dict[str, Any]) -> None:
    clause = {"class": "computer mouse", "count": 1, "color": "red"}  # which COCO calls a mouse
    red = {"prompt": "a photo of a red computer mouse", "tag": "colors", "include": [clause]}
    facts, score = official.load(given(tmp_path, red, ONE))
    assert packages["init"][0] == "/site/mmdet/.mim/configs/mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"
    assert packages["clip"] == (("ViT-L-14", "openai"), {"device": "cpu", "force_quick_gelu": True})
    assert facts["weights"] == hashlib.sha256(b"weights").hexdigest()
    assert facts["version"] == "mmdet of mmdet, mmcv of mmcv, open-clip-torch of open-clip-torch, torch of torch on cpu"

    packages["found"] = [("mouse", (4, 4, 24, 12), 0.8), ("cat", (0, 0, 9, 9), 0.31)]
    images = painted(((4, 4, 14, 12), 0), ((14, 4, 24, 12), 2))  # red where the mask is, blue in the box's other half
    assert score(images, [red["prompt"]]) == [1.0]
    assert (packages["asked"][0][5, 5] == [0, 0, 255]).all()  # as OpenCV reads a file
    (crop,) = packages["crops"]
    assert crop.shape == (8, 20, 3)
    assert (crop[:, :10] == [255, 0, 0]).all() and (crop[:, 10:] == 0x99).all()
    assert score(painted(((4, 4, 14, 12), 2), ((14, 4, 24, 12), 0)), [red["prompt"]]) == [0.0]
    assert score(images, [ONE["prompt"]]) == [1.0]
    packages["found"] = [("cat", (0, 0, 9, 9), 0.3)]
    assert score(images, [ONE["prompt"]]) == [0.0]
    packages["found"] = []
    assert score(images, [ONE["prompt"]]) == [0.0]


def test_counting_has_a_threshold_of_its_own(tmp_path: Path, packages: dict[str, Any]) -> None:
    two = {"prompt": "a photo of two cats", "tag": "counting", "include": [CAT | {"count": 2}], "exclude": [CAT | {"count": 3}]}
    _, score = official.load(given(tmp_path, two))
    for scores, right in (((0.95, 0.91), 1.0), ((0.95, 0.9), 0.0), ((0.95, 0.91, 0.89), 1.0), ((0.95, 0.91, 0.92), 0.0)):
        packages["found"] = [("cat", (0, 0, 9, 9), each) for each in scores]
        assert score(painted(), [two["prompt"]]) == [right]


def test_what_the_adapter_cannot_use_is_said(tmp_path: Path, packages: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"tasks\.jsonl: 'a photo of a mouse' asks for 'mouse', which the detector does not know"):
        official.load(given(tmp_path, {**ONE, "prompt": "a photo of a mouse", "include": [{"class": "mouse", "count": 1}]}))
    settings = given(tmp_path, ONE)
    Path(settings["path"]).write_bytes(b"weigh")
    with pytest.raises(ValueError, match=r"detector-\w{8}\.pth is cut or another file"):
        official.load(settings)
    monkeypatch.setitem(sys.modules, "mmcv.ops", None)  # its import fails, as where it was built without torch
    with pytest.raises(OSError, match=r"mmcv is here without its compiled part .*official\.md"):
        official.load(given(tmp_path, ONE))


def test_other_weights_of_clip_are_another_judge(tmp_path: Path, packages: dict[str, Any]) -> None:
    (tmp_path / "clip.pt").write_bytes(b"clip")
    facts, _ = official.load(given(tmp_path, ONE, clip=str(tmp_path / "clip.pt")))
    assert packages["clip"][0] == ("ViT-L-14", str(tmp_path / "clip.pt"))
    assert facts["weights"] != official.load(given(tmp_path, ONE))[0]["weights"]


def test_the_script_stands_alone() -> None:
    tree = ast.parse(Path(SCRIPT).read_text())
    imports = [each for each in ast.walk(tree) if isinstance(each, ast.Import | ast.ImportFrom)]
    roots = {str(each.module if isinstance(each, ast.ImportFrom) else each.names[0].name).partition(".")[0] for each in imports}
    assert roots - sys.stdlib_module_names <= {"numpy", "torch", "PIL", "mmcv", "mmdet", "open_clip"}
    assert official.COLOURS == geneval.COLOURS


def test_every_package_is_pinned() -> None:
    first, *lines = (conf_folder() / "reward" / "env" / "geneval.txt").read_text().splitlines()
    assert "never built nor run" in first
    required = [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]
    assert all(each.url is None and [pin.operator for pin in each.specifier] == ["=="] for each in required)
    pins = {each.name: str(each.specifier) for each in required}
    assert {"mmdet": "==3.3.0", "mmcv": "==2.1.0", "torch": "==2.1.2"}.items() <= pins.items()


# --- the reward


FAULTS = {
    "not json": ("{", r"line 2: not JSON"),
    "no prompt": ('{"tag": "colors"}', "line 2: an object with a prompt is wanted"),
    "tag": (json.dumps(ONE | {"tag": "colour"}), "line 2: tag 'colour'; there is single_object, two_object"),
    "nothing": (json.dumps(ONE | {"include": []}), "line 2: include and exclude are lists"),
    "no class": (json.dumps(ONE | {"include": [{"count": 1}]}), "line 2: a clause has a class"),
    "count": (json.dumps(ONE | {"include": [CAT | {"count": 0}]}), "line 2: count 0 of cat; a whole number from 1"),
    "colour": (json.dumps(ONE | {"include": [CAT | {"color": "teal"}]}), "line 2: color 'teal'; there is red"),
    "place": (json.dumps(ONE | {"include": [CAT, CAT | {"position": ["near", 0]}]}), r"line 2: position \['near', 0\]; a place"),
    "later": (json.dumps(ONE | {"include": [CAT | {"position": ["above", 0]}]}), r"line 2: position \['above', 0\].*earlier clause"),
    "twice": (json.dumps(ONE | {"include": [CAT | {"count": 2}]}), "line 2: the prompt 'a photo of a cat' has another task above"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_line_that_is_no_task_is_named(kind: str, tmp_path: Path) -> None:
    text, said = FAULTS[kind]
    (tmp_path / "tasks.jsonl").write_text(f"{json.dumps(ONE)}\n{text}\n")
    with pytest.raises(ConfigError, match=rf"^reward\.metadata=.*tasks\.jsonl: {said}"):
        tasks(str(tmp_path / "tasks.jsonl"))
    (tmp_path / "tasks.jsonl").write_text(f"{json.dumps(ONE)}\n\n{json.dumps(ONE)}\n")
    assert tasks(str(tmp_path / "tasks.jsonl")) == {ONE["prompt"]: ONE}
    (tmp_path / "tasks.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="no task in it"):
        tasks(str(tmp_path / "tasks.jsonl"))


def test_every_task_of_the_benchmark_is_one_and_coco_knows_its_classes() -> None:
    found = tasks("package://datasets/lists/geneval.jsonl")
    assert {tag: sum(task["tag"] == tag for task in found.values()) for tag in geneval.TAGS} == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    classes = {clause["class"] for task in found.values() for clause in (*task["include"], *task.get("exclude", []))}
    assert len(classes) == 80  # all of COCO's
    assert set(official.ALIASES.values()) < classes
    assert not set(official.ALIASES) & classes
    assert set(compose(["reward=geneval", "dataset=geneval", "eval=plain"]).config["reward"]) > {"path", "metadata"}


ECHO = """
import json
def load(settings):
    known = [json.loads(line)["prompt"] for line in open(settings["metadata"])]
    facts = {"name": "geneval", "version": json.dumps({k: v for k, v in settings.items() if k not in ("path", "metadata")}), "weights": ""}
    return facts, lambda images, prompts: [float(known.index(prompt)) for prompt in prompts]
"""


def test_each_prompt_has_its_task_in_the_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignbench.rewards.worker.environment", lambda *_: Path(sys.executable))
    monkeypatch.setattr(geneval, "SCRIPT", str(tmp_path / "echo.py"))
    monkeypatch.chdir(tmp_path)
    Path("echo.py").write_text(ECHO)
    given(Path(), ONE, ONE | {"prompt": "a cat"})
    Path("detector.pth").write_bytes(b"weights")
    words = ["reward=geneval", "reward.path=detector.pth", "reward.metadata=tasks.jsonl", "reward.threshold=0.25"]
    config = compose(words)
    reward = made(config.config["reward"])
    try:
        images = torch.zeros(3, 3, 8, 8)
        assert reward(images, ["a cat", ONE["prompt"], "a cat"]).tolist() == [1, 0, 1]
        with pytest.raises(ConfigError, match=r"^reward\.metadata=tasks\.jsonl: nothing is said of the prompt 'a dog'; add its line"):
            reward(images, ["a cat", "a dog", "a cat"])
        identity = reward.identity()
        assert json.loads(identity["version"]) == {**NUMBERS, "threshold": 0.25, "clip": None, "device": None}
        assert "threshold=0.25" in identity["settings"]
        assert str(tmp_path) not in str(identity)
    finally:
        reward.close()
    Path("tasks.jsonl").write_text(json.dumps(ONE))
    _digest.cache_clear()
    assert compose(words).hash != config.hash  # what is asked is part of who judges
    assert re.search(r"tasks=\w{16}", identity["settings"])


def test_without_the_files_a_line_says_what_to_fetch(tmp_path: Path) -> None:
    node = compose(["reward=geneval", "reward.path=none.pth", "reward.metadata=none.jsonl"]).config["reward"]
    with pytest.raises(MissingAsset, match=r"reward\.path=none\.pth: not there; fetch mask2former_swin-s.*c9d0c4f2\.pth"):
        made(node)
    (tmp_path / "there.pth").write_bytes(b"weights")
    with pytest.raises(MissingAsset, match=r"reward\.metadata=none\.jsonl: not there; name a file as evaluation_metadata\.jsonl"):
        made(node | {"path": str(tmp_path / "there.pth")})
    assert set(ClipScore.backbones) < set(Geneval.backbones)
