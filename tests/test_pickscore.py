"""PickScore, on a small network with random weights in the published file's layout, against transformers and open_clip."""

import math
from pathlib import Path
from typing import Any

import clip_files as files
import judges
import open_clip
import pytest
import torch
from pictures import checks, drawn, noise, photograph, tensor
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from alignbench.__main__ import main
from alignbench.rewards.clip import H14, backbone_of
from alignbench.rewards.framing import clip_normalised, framed
from alignbench.rewards.hpsv2 import VIT_H_14
from alignbench.rewards.pickscore import PickScore

WORDS = len(files.vocabulary())
SIZES = files.small(WORDS)
PROMPTS = files.PROMPTS


class Small(PickScore):
    sizes = files.for_transformers(SIZES, H14["vision_config"]["hidden_act"])


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Under open_clip's names."""
    return files.weights(files.open_clip_shapes(SIZES))


@pytest.fixture(scope="module")
def folder(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pickscore")
    files.save_folder(made, files.as_transformers(state))
    files.tokenizer(made)
    return made


def made(path: Path, tokenizer: Path | None = None) -> PickScore:
    return Small(path=str(path), revision=None, tokenizer=str(tokenizer or path))


def test_it_is_what_it_says(folder: Path) -> None:
    judges.is_what_it_says(made(folder), PROMPTS, apart=0.01)


def test_the_gradient_is_that_of_the_score(folder: Path) -> None:
    judges.has_the_gradient_of_its_score(made(folder), PROMPTS[0])


@pytest.mark.parametrize("size", [(512, 512), (300, 451), (227, 224)], ids=str)
@pytest.mark.parametrize("draw", [photograph, checks, noise])
def test_the_score_is_the_official_one(draw: Any, size: tuple[int, int], folder: Path, tmp_path: Path) -> None:
    """transformers' own model, loaded in its own way, and its processor on a PIL image."""
    CLIPConfig(**Small.sizes).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    model = CLIPModel.from_pretrained(tmp_path).eval()
    processor = CLIPProcessor(CLIPImageProcessorPil(), CLIPTokenizer.from_pretrained(folder))
    picture = draw(*size)
    inputs = processor(text=PROMPTS, images=Image.fromarray(picture), padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits_per_image[0]
    ours = made(folder)(tensor(picture).expand(3, -1, -1, -1), PROMPTS)
    torch.testing.assert_close(ours * model.logit_scale.exp().detach(), logits, rtol=0, atol=2e-4)  # of about 20: a cosine to 2e-6


def test_the_network_is_open_clip_s(folder: Path, state: dict[str, Tensor]) -> None:
    """The published weights were trained in transformers from those of open_clip: one architecture, activation included."""
    network = open_clip.model.CLIP(**SIZES).eval()
    network.load_state_dict(state)
    reward, seen = made(folder), drawn(3, 3, 224, 224)
    ids = reward.clip.tokenizer(PROMPTS, padding="max_length", max_length=77).input_ids
    ids = torch.tensor([row[: row.index(WORDS - 1) + 1] + [0] * (76 - row.index(WORDS - 1)) for row in ids])  # padded as open_clip does
    with torch.no_grad():
        image = network.encode_image(clip_normalised(framed(seen, 224)), normalize=True)
        text = network.encode_text(ids, normalize=True)
    torch.testing.assert_close(reward(seen, PROMPTS), (image * text).sum(1), rtol=0, atol=2e-6)


def test_every_weight_is_the_file_s(folder: Path, state: dict[str, Tensor]) -> None:
    net, named = made(folder).clip.net.state_dict(), files.as_transformers(state)
    assert set(net) == set(named) == set(files.transformers_shapes(SIZES))
    assert all(torch.equal(each, named[key]) for key, each in net.items())


def test_the_published_network_has_the_published_size() -> None:
    config = CLIPConfig(**H14)
    with torch.device("meta"):
        net = CLIPModel(config)
    assert {key: tuple(each.shape) for key, each in net.state_dict().items()} == files.transformers_shapes(VIT_H_14)
    assert sum(each.numel() for each in net.parameters()) / 1e6 == pytest.approx(986.1, abs=0.05)
    heads = (config.vision_config.num_attention_heads, config.text_config.num_attention_heads)
    assert heads == (VIT_H_14["vision_cfg"]["width"] // VIT_H_14["vision_cfg"]["head_width"], VIT_H_14["text_cfg"]["heads"])
    assert (config.vision_config.hidden_act, config.text_config.hidden_act, config.vision_config.layer_norm_eps) == ("gelu", "gelu", 1e-5)
    assert (backbone_of(config.vision_config),) == PickScore.backbones


def test_a_network_built_to_like_red_does(folder: Path, tmp_path: Path) -> None:
    state = files.likes_red(files.weights(files.open_clip_shapes(SIZES)), files.vocabulary()["red</w>"])
    files.save_folder(tmp_path, files.as_transformers(state))
    judges.prefers_red(made(tmp_path, folder))


def test_preference_is_the_official_softmax(folder: Path) -> None:
    reward, seen = made(folder), drawn(1, 3, 96, 96)
    seen = torch.cat([seen, seen * 0.98 + 0.01])
    cosines = reward(seen, PROMPTS[:1] * 2)
    expected = (100 * cosines).softmax(0)[0].item()
    assert 0.01 < expected < 0.99
    assert abs(expected - 0.5) > 0.01
    assert reward.prefer(seen[:1], seen[1:], PROMPTS[:1]).item() == pytest.approx(expected, rel=1e-3)
    assert reward.prefer(seen[:1], seen[:1], PROMPTS[:1]).item() == 0.5
    assert math.isclose(reward.clip.net.logit_scale.exp().item(), 100, rel_tol=1e-5)


def test_long_prompts_are_cut_and_padding_is_not_read(folder: Path) -> None:
    reward, seen = made(folder), drawn(1, 3, 64, 64)
    long = "a red circle " * 40
    assert torch.equal(reward(seen, [long]), reward(seen, [long + "on the left"]))
    short = reward(seen, PROMPTS[1:2])
    torch.testing.assert_close(reward(seen.expand(2, -1, -1, -1), [PROMPTS[1], long])[:1], short, rtol=0, atol=1e-6)


FAULTS = {
    "missing": "No such file",
    "truncated": "model.safetensors is truncated, or no safetensors file of weights alone",
    "empty": "model.safetensors is truncated, or no safetensors file of weights alone",
    "text": "model.safetensors is truncated, or no safetensors file of weights alone",
    "key": "1 missing, first visual_projection.weight",
    "more": "1 unexpected, first visual_projection.bias",
    "other": "of another shape, first ",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_the_published_one_is_refused_in_a_line(
    fault: str, folder: Path, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    file, named = tmp_path / "model.safetensors", files.as_transformers(state)
    file.write_bytes((folder / "model.safetensors").read_bytes())
    if fault in ("missing", "truncated", "empty", "text"):
        files.damaged(fault, file)
    else:
        wider = {**SIZES, "vision_cfg": {**SIZES["vision_cfg"], "width": 40}}
        less = {key: each for key, each in named.items() if key != "visual_projection.weight"}
        more = {**named, "visual_projection.bias": torch.zeros(2)}
        save_file({"key": less, "more": more, "other": files.weights(files.transformers_shapes(wider))}[fault], file)
    line = judges.refused(lambda: made(tmp_path, folder))
    assert line.startswith(f"reward.path={tmp_path}: ")
    assert FAULTS[fault] in line
    assert "fetch model.safetensors (3.9 GB) with `hf download yuvalkirstain/PickScore_v1 model.safetensors`" in line


def test_the_tokenizer_is_clip_s_or_it_is_named(folder: Path, tmp_path: Path) -> None:
    for tokenizer in ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", tmp_path):  # neither is here
        line = judges.refused(lambda where=tokenizer: Small(path=str(folder), revision=None, tokenizer=str(where)))
        assert line.startswith(f"reward.tokenizer={tokenizer}: CLIP's vocabulary is not there (")
        assert "hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K" in line
    more = {**files.vocabulary(), "more</w>": WORDS}
    CLIPTokenizer(vocab=more, merges=files.MERGES, model_max_length=77).save_pretrained(tmp_path)
    assert f"{WORDS + 1} words where the weights know {WORDS}" in judges.refused(lambda: made(folder, tmp_path))


def test_a_run_learns_from_its_preferences_and_one_without_the_file_ends_with_3(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PickScore, "sizes", Small.sizes)
    words = ["method=d3po", "reward=pickscore", "eval=quick", "eval.prompts=2", "eval.images=2", "eval.grid=2", "eval.every=0"]
    words += ["epochs=1", "method.images=8", "method.batch=4", "sampler.steps=3", f"reward.tokenizer={folder}", f"output={tmp_path}"]
    assert main([*words, f"reward.path={folder}"]) == 0
    capsys.readouterr()
    assert main(words) == 3  # the published file is not here
    said = capsys.readouterr().err
    assert "reward.path=yuvalkirstain/PickScore_v1: " in said
    assert "fetch model.safetensors (3.9 GB)" in said
