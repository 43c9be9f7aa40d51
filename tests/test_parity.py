"""The parity command's verdicts and what it makes up, with stand-ins for both judges; `make parity` runs the real ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import clip_files
import imagereward_file as published
import pytest
import torch
from test_hpsv2 import NAMES, Small
from test_hpsv2 import HPSv2 as Native
from test_imagereward import made as small_image_reward
from torch import Tensor

from alignbench import parity
from alignbench.__main__ import main
from alignbench.rewards import made_up
from alignbench.rewards.hpsv2 import VIT_H_14
from alignbench.rewards.imagereward import PUBLISHED

ROW = parity.Row(
    "hpsv2",
    "512x512",
    torch.tensor([0.1, 0.2, 0.3]),
    torch.tensor([0.1, 0.2, 0.3]),
    torch.tensor([0.11, 0.2]),
    "one number",
    ("ours 1", "theirs 2"),
)


class Mean:
    """A judge by mean brightness and the prompt's length, `off` by a little."""

    def __init__(self, off: float = 0.0):
        self.off, self.closed = off, False

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.mean((1, 2, 3)) + torch.tensor([len(each) / 100 for each in prompts]) + self.off

    def identity(self) -> dict[str, str]:
        return {"version": "official 1.2.3"}

    def close(self) -> None:
        self.closed = True


def asked(monkeypatch: pytest.MonkeyPatch, off: float, spoiled: float = 1.0) -> list[tuple[str, dict[str, Any], Mean]]:
    """Stand-ins for both judges of `imagereward`; what was built, with which settings."""
    built: list[tuple[str, dict[str, Any], Mean]] = []

    def judge(choice: str, **given: str) -> Mean:
        assert Path(given["path"]).is_file()
        assert (Path(given["tokenizer"]) / "vocab.txt").is_file()
        built.append((choice, given, Mean(off if "official" in choice else 0.0)))
        return built[-1][2]

    def spoil(judge: Mean) -> str:
        judge.off = spoiled
        return "an offset"

    monkeypatch.setattr(parity, "judge", judge)
    monkeypatch.setattr(parity, "PAIRS", {"imagereward": parity.Pair("ImageReward.pt", dict, spoil, ("torch",))})
    return built


def test_the_exit_code_and_the_table_say_who_agrees(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    built = asked(monkeypatch, off=0.5e-4)
    assert main(["parity", "imagereward", "images=4"]) == 0
    out = capsys.readouterr().out
    for said in (
        "5.0e-05",
        "ok",
        "512x512 451x300",
        "official 1.2.3",
        f"torch {torch.__version__.partition('+')[0]}",
        "(an offset): 1.0e+00 apart",
    ):
        assert said in out
    assert [(choice, given.get("device")) for choice, given, _ in built] == [("imagereward_official", "cpu"), ("imagereward", None)]
    assert built[0][2].closed
    assert not Path(built[0][1]["path"]).exists()  # made up, and removed
    asked(monkeypatch, off=1.5e-4)
    assert main(["parity", "imagereward", "images=2"]) == 1
    assert "apart" in capsys.readouterr().out
    asked(monkeypatch, off=0.0, spoiled=0.0)
    assert main(["parity", "imagereward", "images=2"]) == 1
    assert "blind" in capsys.readouterr().out


def test_files_that_are_given_are_used_and_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built = asked(monkeypatch, off=0.0)
    (tmp_path / "weights.pt").write_bytes(b"")
    (tmp_path / "vocab.txt").write_text("word\n")
    assert main(["parity", "imagereward", f"path={tmp_path}/weights.pt", f"tokenizer={tmp_path}", "images=2"]) == 0
    assert {given["path"] for _, given, _ in built} == {str(tmp_path / "weights.pt")}
    assert {given["tokenizer"] for _, given, _ in built} == {str(tmp_path)}
    assert (tmp_path / "weights.pt").exists()


@pytest.mark.parametrize(
    "change, verdict",
    [
        ({}, "ok"),
        ({"ours": torch.tensor([0.1, 0.2, 0.30012])}, "apart"),
        ({"ours": torch.tensor([0.1, 0.2, float("nan")])}, "apart"),
        ({"spoiled": torch.tensor([0.1, 0.20005])}, "blind"),
        ({"ours": torch.full((3,), 0.2), "theirs": torch.tensor([0.2, 0.20005, 0.2])}, "blind"),
    ],
)
def test_a_verdict_needs_agreement_that_means_something(change: dict[str, Tensor], verdict: str) -> None:
    assert replace(ROW, **change).verdict == verdict


@pytest.mark.parametrize(
    "words, said",
    [
        (["imagerewards"], "imagerewards: no judge with an official package; did you mean imagereward?"),
        (["size=small"], "size: no such setting; alignbench parity ["),
        (["path=x"], "path=x: is one judge's file; name that judge"),
        (["imagereward", "hpsv2", "path=x"], "path=x: is one judge's file"),
        (["images=1"], "images=1: a number from 2 is wanted"),
        (["images=many"], "images=many: a number from 2 is wanted"),
    ],
)
def test_a_slip_ends_in_a_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_no_names_are_the_two_networks_and_a_name_twice_is_once() -> None:
    assert parity.ordered([]).judges == ["imagereward", "hpsv2"]
    assert parity.ordered(["hpsv2_1", "hpsv2_1"]).judges == ["hpsv2_1"]
    assert set(parity.FIRST) <= set(parity.PAIRS)


def test_made_up_files_have_the_published_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[dict[str, Any]] = []

    def drawn(wanted: dict[str, Any]) -> dict[str, Tensor]:
        shapes.append({key: tuple(each) for key, each in wanted.items()})
        return {"logit_scale": torch.zeros(())}

    monkeypatch.setattr(made_up, "drawn", drawn)
    positions = "blip.text_encoder.embeddings.position_ids"
    assert made_up.image_reward()[positions].tolist() == [list(range(512))]
    expected = published.shapes(PUBLISHED.vision, PUBLISHED.text, PUBLISHED.head) | published.unused(PUBLISHED.vision, PUBLISHED.text)
    assert shapes[0] | {positions: (1, 512)} == expected
    assert made_up.hpsv2()["state_dict"]["logit_scale"].dtype == torch.float16
    assert shapes[1] == {"logit_scale": ()} | clip_files.open_clip_shapes(VIT_H_14)


def test_made_up_weights_keep_the_size_of_what_they_are_applied_to() -> None:
    shapes = {"a.weight": (300, 400), "norm1.weight": (4000,), "norm1.bias": (4000,), "text_projection": (500, 30)}
    made = made_up.drawn({key: torch.Size(each) for key, each in shapes.items()})
    assert (torch.randn(50, 400) @ made["a.weight"].T).std().item() == pytest.approx(1, abs=0.05)
    assert (torch.randn(50, 500) @ made["text_projection"]).std().item() == pytest.approx(1, abs=0.1)
    assert made["norm1.weight"].mean().item() == pytest.approx(1, abs=0.02)
    assert made["norm1.bias"].mean().item() == pytest.approx(0, abs=0.02)


def test_the_made_up_vocabulary_is_as_long_as_bert_s_and_knows_the_prompts(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    (tmp_path / "vocab.txt").write_text(made_up.vocabulary(parity.PROMPTS))
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 30522
    assert (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (101, 102, 0, 100)
    ids = [tokenizer(prompt).input_ids for prompt in [*parity.PROMPTS, "Zebra~42"]]
    assert not any(100 in each for each in ids)
    assert len({tuple(each) for each in ids}) == 5


def test_the_pictures_are_of_8_bits_of_three_sizes_and_differ() -> None:
    pictures = made_up.pictures(12)
    assert {tuple(each.shape) for each in pictures} == {(1, 3, *size) for size in made_up.SIZES}
    for each in pictures:
        assert torch.equal(each, (each * 255).round() / 255)
        assert each.std() > 0.1
    assert not any(torch.equal(a, b) for at, a in enumerate(pictures) for b in pictures[at + 1 :] if a.shape == b.shape)


def test_a_spoiled_judge_gives_other_scores(image_reward: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": clip_files.weights(clip_files.open_clip_shapes(clip_files.SMALL))}, tmp_path / NAMES[Native])
    hpsv2 = Small(path=str(tmp_path / NAMES[Native]), revision=None, antialias=True)
    for name, judge in (("imagereward", small_image_reward(image_reward)), ("hpsv2", hpsv2)):
        pictures = made_up.pictures(2)
        before = parity.scored(judge, pictures, parity.PROMPTS)
        assert torch.equal(parity.scored(judge, pictures, parity.PROMPTS), before)
        assert parity.PAIRS[name].spoil(judge)
        assert (parity.scored(judge, pictures, parity.PROMPTS) - before).abs().max() > 1e-4
