"""The CLIP score, on a small network with random weights in a folder as transformers writes it."""

import json
from pathlib import Path
from typing import Any

import clip_files as files
import judges
import pytest
import torch
from pictures import checks, drawn, noise, photograph, tensor
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from alignbench.__main__ import main
from alignbench.rewards.clip import backbone_of
from alignbench.rewards.clip_score import ClipScore

WORDS = len(files.vocabulary())
SIZES = files.small(WORDS)
PROMPTS = files.PROMPTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As OpenAI's on the Hub: quick_gelu, and an id of the last token that is wrong, which transformers knows of."""
    made = tmp_path_factory.mktemp("clip")
    filled(made, files.weights(files.open_clip_shapes(SIZES)))
    return made


def filled(folder: Path, state: dict[str, Tensor]) -> Path:
    sizes = files.for_transformers(SIZES, "quick_gelu")
    sizes["text_config"] |= {"eos_token_id": 2, "bos_token_id": 0}
    CLIPConfig(**sizes).save_pretrained(folder)
    files.save_folder(folder, files.as_transformers(state))
    files.tokenizer(folder)
    return folder


def made(folder: Path, scale: float = 100) -> ClipScore:
    return ClipScore(path=str(folder), revision=None, scale=scale)


def test_it_is_what_it_says(folder: Path) -> None:
    judges.is_what_it_says(made(folder), PROMPTS, apart=1)


def test_the_gradient_is_that_of_the_score_below_0_too(folder: Path) -> None:
    reward = made(folder)
    judges.has_the_gradient_of_its_score(reward, PROMPTS[0])
    with torch.no_grad():
        reward.clip.net.visual_projection.weight *= -1
    judges.has_the_gradient_of_its_score(reward, PROMPTS[0])
    scores = reward(drawn(1, 3, 40, 56).double(), PROMPTS[:1]), made(folder)(drawn(1, 3, 40, 56), PROMPTS[:1])
    assert scores[0].item() * scores[1].item() < 0


@pytest.mark.parametrize("size", [(512, 512), (300, 451), (227, 224)], ids=str)
@pytest.mark.parametrize("draw", [photograph, checks, noise])
def test_the_score_is_the_official_one(draw: Any, size: tuple[int, int], folder: Path) -> None:
    """transformers' own model and its processor on a PIL image; torchmetrics' 100 x cosine, without its cut at 0."""
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor(CLIPImageProcessorPil(), CLIPTokenizer.from_pretrained(folder))
    picture = draw(*size)
    inputs = processor(text=PROMPTS, images=Image.fromarray(picture), padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs)
    ours = made(folder)(tensor(picture).expand(3, -1, -1, -1), PROMPTS)
    torch.testing.assert_close(ours, 100 * (out.image_embeds @ out.text_embeds.T)[0], rtol=0, atol=2e-4)


def test_the_scale_is_a_number_of_the_config(folder: Path) -> None:
    seen = drawn(3, 3, 64, 64)
    hessel = made(folder, 2.5)
    torch.testing.assert_close(hessel(seen, PROMPTS) * 40, made(folder)(seen, PROMPTS))
    assert (hessel.unit, hessel.range) == ("2.5 x cosine", (-2.5, 2.5))
    assert (ClipScore.unit, ClipScore.range) == (made(folder).unit, made(folder).range)


def test_the_result_names_the_backbone(folder: Path) -> None:
    settings = made(folder).identity()["settings"]
    assert (made(folder).backbones, made(folder).datasets) == (("CLIP ViT-32x2/56",), ("unknown",))
    assert "backbones" not in settings  # no score depends on what is said of it
    assert "scale=100" in settings
    for hidden_size, layers, patch_size, image_size, name in (
        (1024, 24, 14, 224, "CLIP ViT-L/14"),
        (1024, 24, 14, 336, "CLIP ViT-L/14@336"),
        (768, 12, 32, 224, "CLIP ViT-B/32"),
        (768, 12, 16, 224, "CLIP ViT-B/16"),
        (1280, 32, 14, 224, "CLIP ViT-H/14"),
        (1664, 48, 14, 224, "CLIP ViT-bigG/14"),
    ):
        config = CLIPVisionConfig(
            hidden_size=hidden_size, num_hidden_layers=layers, num_attention_heads=16, patch_size=patch_size, image_size=image_size
        )
        assert backbone_of(config) == name


def test_a_network_built_to_like_red_does(tmp_path: Path) -> None:
    state = files.likes_red(files.weights(files.open_clip_shapes(SIZES)), files.vocabulary()["red</w>"])
    judges.prefers_red(made(filled(tmp_path, state)))


FAULTS = {
    "missing": "No such file",
    "truncated": "model.safetensors is truncated, or no safetensors file of weights alone",
    "empty": "model.safetensors is truncated, or no safetensors file of weights alone",
    "text": "model.safetensors is truncated, or no safetensors file of weights alone",
    "config": "no CLIP there (",
    "other": "of another shape, first ",
    "heads": "no CLIP there (",
    "words": "words where the weights know",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_holds_no_clip_is_refused_in_a_line(fault: str, tmp_path: Path) -> None:
    filled(tmp_path, files.weights(files.open_clip_shapes(SIZES)))
    config = tmp_path / "config.json"
    if fault == "config":
        config.unlink()
    elif fault in ("other", "heads", "words"):
        held = json.loads(config.read_text())
        held["text_config"] |= {"other": {"hidden_size": 48}, "heads": {"num_attention_heads": 5}, "words": {}}[fault]
        config.write_text(json.dumps(held))
        if fault == "words":
            more = {**files.vocabulary(), "more</w>": WORDS}
            CLIPTokenizer(vocab=more, merges=files.MERGES, model_max_length=77).save_pretrained(tmp_path)
    else:
        files.damaged(fault, tmp_path / "model.safetensors")
    line = judges.refused(lambda: made(tmp_path))
    assert line.startswith(f"reward.path={tmp_path}: no CLIP there (")
    assert FAULTS[fault] in line
    assert "model.safetensors (1.7 GB) and the tokenizer with `hf download openai/clip-vit-large-patch14`" in line


def test_a_run_learns_from_it_and_one_without_the_files_ends_with_3(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["method=ddpo", "reward=clip_score", "eval=quick", "eval.prompts=2", "eval.images=2", "eval.grid=2", "eval.every=0"]
    words += ["epochs=1", "method.images=8", "method.batch=4", "sampler.steps=3", f"output={tmp_path}"]
    assert main([*words, f"reward.path={folder}"]) == 0
    capsys.readouterr()
    assert main(words) == 3  # OpenAI's is not here
    said = capsys.readouterr().err
    assert "reward.path=openai/clip-vit-large-patch14: no CLIP there (" in said
    assert "`hf download openai/clip-vit-large-patch14`" in said
