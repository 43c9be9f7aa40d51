"""LAION's aesthetic predictor, on a small network with random weights in the published layouts, against open_clip and plain torch."""

from pathlib import Path
from typing import Any

import clip_files as files
import judges
import open_clip
import pytest
import torch
from pictures import checks, noise, photograph, tensor
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from alignbench.__main__ import main
from alignbench.rewards.aesthetic import Aesthetic
from alignbench.rewards.clip import L14, backbone_of
from alignbench.rewards.framing import CLIP_MEAN, CLIP_STD
from alignbench.rewards.head import PUBLISHED_HEAD, linear_head

NAME = "sac+logos+ava1-l14-linearMSE.pth"
SIZES = files.small(len(files.vocabulary()))
PROMPTS = ["", "anything", "red"]
PREPROCESS = Compose(  # OpenAI's, which the predictor's code takes
    [Resize(224, interpolation=InterpolationMode.BICUBIC), CenterCrop(224), ToTensor(), Normalize(CLIP_MEAN, CLIP_STD)]
)


class Small(Aesthetic):
    sizes = files.for_transformers(SIZES, L14["vision_config"]["hidden_act"])
    widths = files.HEAD


def head_weights() -> dict[str, Tensor]:
    return files.weights(files.head_shapes(files.HEAD))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Of CLIP, under open_clip's names."""
    return files.weights(files.open_clip_shapes(SIZES))


@pytest.fixture(scope="module")
def folder(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("aesthetic")
    files.save_folder(made, files.as_transformers(state))
    torch.save(head_weights(), made / NAME)
    return made


def made(folder: Path, head: Path | None = None) -> Aesthetic:
    return Small(path=str(folder), revision=None, head=str(head or folder / NAME))


def test_it_is_what_it_says(folder: Path) -> None:
    judges.is_what_it_says(made(folder), PROMPTS, apart=0.1)


def test_the_gradient_is_that_of_the_score(folder: Path) -> None:
    judges.has_the_gradient_of_its_score(made(folder), "")


@pytest.mark.parametrize("size", [(512, 512), (300, 451), (227, 224)], ids=str)
@pytest.mark.parametrize("draw", [photograph, checks, noise])
def test_the_score_is_the_official_one(draw: Any, size: tuple[int, int], folder: Path, state: dict[str, Tensor]) -> None:
    """open_clip's network with OpenAI's activation, OpenAI's transforms, and the head in plain lines from the file's own keys."""
    network = open_clip.model.CLIP(**SIZES, quick_gelu=True).eval()
    network.load_state_dict(state)
    picture, head = draw(*size), torch.load(folder / NAME, weights_only=True)
    with torch.no_grad():
        score = network.encode_image(PREPROCESS(Image.fromarray(picture))[None])
    score = score / score.norm(dim=1, keepdim=True)
    for number in (0, 2, 4, 6, 7):
        score = score @ head[f"layers.{number}.weight"].T + head[f"layers.{number}.bias"]
    torch.testing.assert_close(made(folder)(tensor(picture), [""]), score[:, 0], rtol=0, atol=2e-5)


def test_every_weight_is_the_files(folder: Path, state: dict[str, Tensor]) -> None:
    reward, named, head = made(folder), files.as_transformers(state), head_weights()
    net = reward.sight.net.state_dict()
    assert set(net) == {key for key in named if key.startswith(("vision_model.", "visual_projection."))}
    assert all(torch.equal(each, named[key]) for key, each in net.items())
    assert {f"layers.{key}" for key in reward.head.state_dict()} == set(head)
    assert all(torch.equal(each, head[f"layers.{key}"]) for key, each in reward.head.state_dict().items())


def test_the_published_networks_have_the_published_sizes() -> None:
    config = CLIPVisionConfig(**L14["vision_config"], projection_dim=L14["projection_dim"])
    with torch.device("meta"):
        net, head = CLIPVisionModelWithProjection(config), linear_head(PUBLISHED_HEAD)
    theirs = files.transformers_shapes(open_clip.get_model_config("ViT-L-14"))
    assert {key: tuple(each.shape) for key, each in net.state_dict().items()} == {
        key: shape for key, shape in theirs.items() if key.startswith(("vision_model.", "visual_projection."))
    }
    assert sum(each.numel() for each in net.parameters()) / 1e6 == pytest.approx(304.0, abs=0.05)
    assert {f"layers.{key}": tuple(each.shape) for key, each in head.state_dict().items()} == files.head_shapes((768, 1024, 128, 64, 16, 1))
    assert (config.num_attention_heads, config.hidden_act, config.layer_norm_eps) == (16, "quick_gelu", 1e-5)
    assert (backbone_of(config),) == Aesthetic.backbones


def test_a_network_built_to_like_red_does_whatever_the_prompt(tmp_path: Path) -> None:
    files.save_folder(tmp_path, files.as_transformers(files.likes_red(files.weights(files.open_clip_shapes(SIZES)), 0)))
    head = {key: torch.zeros_like(each) for key, each in head_weights().items()}
    for number in (0, 2, 4, 6, 7):
        head[f"layers.{number}.weight"][0, 0] = 1
    torch.save(head, tmp_path / NAME)
    reward, picture = made(tmp_path), torch.zeros(6, 3, 48, 48)
    picture[:, 0] = torch.linspace(0, 1, 6)[:, None, None]
    assert (reward(picture, [""] * 6).diff() > 1e-4).all()
    assert torch.equal(reward(picture, [""] * 6), reward(picture, ["a red circle"] * 6))


FAULTS = {
    "missing": "No such file",
    "truncated": "is truncated, or no ",
    "empty": "is truncated, or no ",
    "text": "is truncated, or no ",
    "key": "1 missing, first ",
    "other": "of another shape, first ",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("which", ["path", "head"])
def test_files_that_are_not_the_published_ones_are_refused_in_a_line(fault: str, which: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / {"path": "model.safetensors", "head": NAME}[which]
    file.write_bytes((folder / file.name).read_bytes())
    if fault in ("missing", "truncated", "empty", "text"):
        files.damaged(fault, file)
    elif which == "head":
        head = head_weights()
        wide = head.pop("layers.7.bias")
        torch.save(head | ({"layers.7.bias": wide.repeat(2)} if fault == "other" else {}), file)
    else:
        state = files.as_transformers(files.weights(files.open_clip_shapes(SIZES)))
        wide = state.pop("vision_model.post_layernorm.bias")
        files.save_folder(tmp_path, state | ({"vision_model.post_layernorm.bias": wide.repeat(2)} if fault == "other" else {}))
    line = judges.refused(lambda: made(tmp_path if which == "path" else folder, file if which == "head" else folder / NAME))
    assert FAULTS[fault] in line
    if which == "path":
        assert line.startswith(f"reward.path={tmp_path}: ")
        assert "model.safetensors (1.7 GB) with `hf download openai/clip-vit-large-patch14 model.safetensors`" in line
    else:
        assert line.startswith(f"reward.head={file}: ")
        assert f"{NAME} (3.7 MB) from https://github.com/christophschuhmann/improved-aesthetic-predictor" in line


def test_code_in_the_head_is_not_run(folder: Path, tmp_path: Path) -> None:
    torch.save({"layers": judges.refused}, tmp_path / NAME)
    assert "no torch file of weights alone" in judges.refused(lambda: made(folder, tmp_path / NAME))


def test_a_run_trains_through_it_and_one_without_the_files_ends_with_3(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Aesthetic, "sizes", Small.sizes)
    monkeypatch.setattr(Aesthetic, "widths", files.HEAD)
    words = ["method=di_star", "model=sandbox_one_step", "reward=aesthetic", "eval=quick", "eval.prompts=2", "eval.images=2", "eval.grid=2"]
    words += ["eval.every=0", "epochs=1", "method.turns=1", "method.batch=4", f"output={tmp_path}"]
    head = f"reward.head={folder / NAME}"
    assert main([*words, f"reward.path={folder}", head]) == 0
    capsys.readouterr()
    assert main([*words, head]) == 3  # OpenAI's CLIP is not here
    assert "reward.path=openai/clip-vit-large-patch14: " in capsys.readouterr().err
    assert main(words) == 3
    said = capsys.readouterr().err
    assert f"reward.head={NAME}: " in said
    assert "https://github.com/christophschuhmann/improved-aesthetic-predictor" in said
