"""The shipped sandbox: its size, its card, and (slow) its figures and the command that makes it."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignbench.config import located
from alignbench.worlds import sandbox

FOLDER = Path(located("package://models/sandbox"))
CARD = (FOLDER / "README.md").read_text()


def card(name: str) -> float:
    (value,) = re.findall(rf"\| {re.escape(name)} \| ([0-9.]+) \|", CARD)
    return float(value)


def test_it_fits_in_the_package() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 12_000_000
    assert json.loads((FOLDER / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"


def test_the_card_names_the_files_that_are_here() -> None:
    hashes = dict(re.findall(r"\| `(\S+\.safetensors)` \| `([0-9a-f]{64})` \|", CARD))
    assert len(hashes) == 3
    for name, digest in hashes.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest


def test_every_word_of_a_caption_is_one_token() -> None:
    words = sandbox.tokenizer()
    for scene in sandbox.all_scenes()[::300]:
        assert len(words(scene.caption).input_ids) == len(scene.caption.split()) + 2
    assert len(words("a green coloured rabbit").input_ids) > 6  # other text is spelled out


@pytest.mark.slow
def test_the_card_s_figures_hold() -> None:
    from diffusers import StableDiffusionPipeline

    found = sandbox.figures(StableDiffusionPipeline.from_pretrained(FOLDER), seed=0)
    assert found["vae_psnr_db"] >= 27
    assert 0.5 <= found["all_five"] <= 0.85
    for name, value in found.items():
        assert value == pytest.approx(card(name), abs=0.02), name  # the last bits depend on the machine


@pytest.mark.slow
def test_it_is_made_by_its_command_and_continued_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "figures", lambda pipeline, seed: {"all_five": 0.0})  # minutes, and tested above
    words = ["--vae-steps", "3", "--unet-steps", "2", "1"]
    made = []
    for name in ("straight", "continued"):
        if name == "continued":  # stops after the VAE
            (tmp_path / f"{name}.work").mkdir()
            (tmp_path / f"{name}.work" / "vae.pt").write_bytes((tmp_path / "straight.work" / "vae.pt").read_bytes())
        sandbox.main([str(tmp_path / name), *words])
        made.append({part: load_file(tmp_path / name / part / "diffusion_pytorch_model.safetensors") for part in ("vae", "unet")})
    for key, value in made[0]["vae"].items():
        assert torch.equal(value, made[1]["vae"][key]), key  # taken from its checkpoint, not trained again
    gaps = torch.cat([(value - made[1]["unet"][key]).abs().flatten() for key, value in made[0]["unet"].items()])
    assert gaps.median() < 1e-6  # where a gradient is nearly 0 Adam's step hangs on its sign, and so on rounding; elsewhere nothing differs
    assert "all_five" in capsys.readouterr().out
