"""HPSv2 and HPSv2.1, on a small network with random weights in the published files' layout, against open_clip and torchvision."""

import math
from pathlib import Path

import clip_files as files
import judges
import open_clip
import pytest
import torch
from pictures import checks, drawn, noise, photograph, tensor
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as official

from alignbench.__main__ import main
from alignbench.rewards.hpsv2 import VIT_H_14, HPSv2, HPSv21, loaded

NAMES = {HPSv2: "HPS_v2_compressed.pt", HPSv21: "HPS_v2.1_compressed.pt"}
PROMPTS = files.PROMPTS


class Small(HPSv2):
    sizes = files.SMALL


class Small21(HPSv21):
    sizes = files.SMALL


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return files.weights(files.open_clip_shapes(files.SMALL))


@pytest.fixture(scope="module")
def folder(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both files, with the same weights: only their names differ."""
    made = tmp_path_factory.mktemp("hpsv2")
    for name in NAMES.values():
        torch.save({"state_dict": state}, made / name)
    return made


def made(folder: Path, antialias: bool = True) -> HPSv2:
    return Small(path=str(folder / NAMES[HPSv2]), revision=None, antialias=antialias)


def test_it_is_what_it_says(folder: Path) -> None:
    judges.is_what_it_says(made(folder), PROMPTS, apart=0.01)


@pytest.mark.parametrize("antialias", [True, False])
def test_the_gradient_is_that_of_the_score(folder: Path, antialias: bool) -> None:
    judges.has_the_gradient_of_its_score(made(folder, antialias), PROMPTS[0])


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(512, 512), (300, 451), (640, 384)], ids=str)
@pytest.mark.parametrize("draw", [photograph, checks, noise])
def test_the_score_is_the_official_one(
    draw: object, size: tuple[int, int], antialias: bool, folder: Path, state: dict[str, Tensor]
) -> None:
    """open_clip's network and tokenizer, torchvision's transforms in the official order: on tensors, black bars, then normalised."""
    network = open_clip.model.CLIP(**files.SMALL).eval()
    network.load_state_dict(state)
    seen = tensor(draw(*size))  # type: ignore[operator]
    scale = 224 / max(size)
    tall, wide = (round(side * scale) for side in size)
    framed = official.resize(seen, [tall, wide], InterpolationMode.BICUBIC, antialias=antialias)
    down, across = 224 - tall, 224 - wide
    framed = official.pad(framed, [across // 2, down // 2, across - across // 2, down - down // 2])
    pixels = official.normalize(framed, list(open_clip.OPENAI_DATASET_MEAN), list(open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        image = network.encode_image(pixels.expand(3, -1, -1, -1), normalize=True)
        text = network.encode_text(open_clip.get_tokenizer("ViT-H-14")(PROMPTS), normalize=True)
    ours = made(folder, antialias)(seen.expand(3, -1, -1, -1), PROMPTS)
    torch.testing.assert_close(ours, (image @ text.T).diagonal(), rtol=0, atol=2e-6)


def test_antialiasing_changes_the_score_and_is_part_of_the_identity(folder: Path) -> None:
    seen, on, off = tensor(noise(512, 512)), made(folder), made(folder, antialias=False)
    assert (on(seen, PROMPTS[:1]) - off(seen, PROMPTS[:1])).abs() > 1e-3
    assert (on.identity()["settings"], off.identity()["settings"]) == ("antialias=True", "antialias=False")


def test_every_weight_is_the_file_s(folder: Path, state: dict[str, Tensor]) -> None:
    net = made(folder).net.state_dict()
    assert set(net) == set(state)
    assert all(torch.equal(each, state[key]) for key, each in net.items())


def test_the_published_network_has_the_published_size() -> None:
    assert open_clip.get_model_config("ViT-H-14") == VIT_H_14
    with torch.device("meta"):
        net = open_clip.model.CLIP(**VIT_H_14)
    assert {key: tuple(each.shape) for key, each in net.state_dict().items()} == files.open_clip_shapes(VIT_H_14)
    assert sum(each.numel() for each in net.parameters()) / 1e6 == pytest.approx(986.1, abs=0.05)


def test_a_full_size_file_loads(tmp_path: Path) -> None:
    """ViT-H-14 whole, its numbers one repeated: nothing of it is computed."""
    state = {key: torch.zeros(()).expand(shape) for key, shape in files.open_clip_shapes(VIT_H_14).items()}
    torch.save({"state_dict": state}, tmp_path / "HPS_v2_compressed.pt")
    net = loaded(VIT_H_14, tmp_path / "HPS_v2_compressed.pt")
    assert sum(each.numel() for each in net.parameters()) == 986_109_441
    assert net.attn_mask.shape == (77, 77)


def test_a_network_built_to_like_red_does(tmp_path: Path) -> None:
    (red,) = open_clip.get_tokenizer("ViT-H-14").encode("red")
    torch.save({"state_dict": files.likes_red(files.weights(files.open_clip_shapes(files.SMALL)), red)}, tmp_path / NAMES[HPSv2])
    judges.prefers_red(made(tmp_path))


def test_preference_is_a_softmax_at_the_network_s_temperature(folder: Path) -> None:
    reward, seen = made(folder), drawn(2, 3, 96, 96)
    a, b = reward(seen[:1], PROMPTS[:1]).item(), reward(seen[1:], PROMPTS[:1]).item()
    assert reward.prefer(seen[:1], seen[1:], PROMPTS[:1]).item() == pytest.approx(1 / (1 + math.exp(-100 * (a - b))), rel=1e-3)


def test_long_prompts_are_cut_and_case_is_none(folder: Path) -> None:
    reward, seen = made(folder), drawn(1, 3, 64, 64)
    long = "a red circle " * 40
    assert torch.equal(reward(seen, [long]), reward(seen, [long + "on the left"]))
    assert torch.equal(reward(seen, ["A Red circle"]), reward(seen, ["a red circle"]))


def test_versions_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    two, one = (made_as(str(folder / name), None, True) for made_as, name in ((by_path21, NAMES[HPSv21]), (by_path, NAMES[HPSv2])))
    assert (two.name, one.name) == ("hpsv2_1", "hpsv2")
    assert two.identity()["name"] != one.identity()["name"]
    line = judges.refused(lambda: by_path21(str(folder / NAMES[HPSv2]), None, True))
    assert "HPS_v2_compressed.pt is not HPS_v2.1_compressed.pt, and only the name tells hpsv2_1 from other versions" in line
    assert "`hf download xswu/HPSv2 HPS_v2.1_compressed.pt`" in line
    assert "HPS_v2.1_compressed.pt is not HPS_v2_compressed.pt" in judges.refused(lambda: by_path(str(folder / NAMES[HPSv21]), None, True))
    state = files.weights(files.open_clip_shapes(files.SMALL))
    state["visual.proj"] += 1
    torch.save({"state_dict": state}, tmp_path / NAMES[HPSv2])
    assert by_path(str(tmp_path / NAMES[HPSv2]), None, True).identity()["weights"] != one.identity()["weights"]


def by_path(path: str, revision: str | None, antialias: bool) -> HPSv2:
    return Small(path=path, revision=revision, antialias=antialias)


def by_path21(path: str, revision: str | None, antialias: bool) -> HPSv2:
    return Small21(path=path, revision=revision, antialias=antialias)


FAULTS = {
    "missing": "No such file",
    "truncated": "HPS_v2_compressed.pt is truncated, or no torch file of weights alone",
    "empty": "HPS_v2_compressed.pt is truncated, or no torch file of weights alone",
    "text": "HPS_v2_compressed.pt is truncated, or no torch file of weights alone",
    "code": "HPS_v2_compressed.pt is truncated, or no torch file of weights alone",
    "bare": "missing, first positional_embedding",
    "list": "missing, first positional_embedding",
    "key": "1 missing, first visual.proj",
    "more": "1 unexpected, first visual.more",
    "other": "of another shape, first ",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_the_published_one_is_refused_in_a_line(
    fault: str, folder: Path, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    file = tmp_path / NAMES[HPSv2]
    file.write_bytes((folder / NAMES[HPSv2]).read_bytes())
    if fault in ("missing", "truncated", "empty", "text"):
        files.damaged(fault, file)
    else:
        other = {**files.SMALL, "vision_cfg": {**files.SMALL["vision_cfg"], "width": 40}}
        torch.save(
            {
                "code": {"state_dict": judges.refused},
                "bare": state,
                "list": list(state),
                "key": {"state_dict": {key: each for key, each in state.items() if key != "visual.proj"}},
                "more": {"state_dict": {**state, "visual.more": torch.zeros(2)}},
                "other": {"state_dict": files.weights(files.open_clip_shapes(other))},
            }[fault],
            file,
        )
    line = judges.refused(lambda: by_path(str(file), None, True))
    assert line.startswith(f"reward.path={file}: ")
    assert FAULTS[fault] in line
    assert (
        "fetch HPS_v2_compressed.pt (at most 3.9 GB) with `hf download xswu/HPSv2 HPS_v2_compressed.pt` and put the file's path in" in line
    )


@pytest.mark.parametrize("choice", ["hpsv2", "hpsv2_1"])
def test_a_run_trains_through_it_and_one_without_the_file_ends_with_3(
    choice: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(HPSv2, "sizes", files.SMALL)
    words = ["method=di_star", "model=sandbox_one_step", f"reward={choice}", "eval=quick", "eval.prompts=2", "eval.images=2", "eval.grid=2"]
    words += ["eval.every=0", "epochs=1", "method.turns=1", "method.batch=4", f"output={tmp_path}"]
    name = NAMES[{"hpsv2": HPSv2, "hpsv2_1": HPSv21}[choice]]
    if choice == "hpsv2":
        assert main([*words, f"reward.path={folder}/{name}"]) == 0
    capsys.readouterr()
    assert main(words) == 3  # the published file is not here
    said = capsys.readouterr().err
    assert f"reward.path=xswu/HPSv2:{name}: " in said
    assert f"`hf download xswu/HPSv2 {name}`" in said
