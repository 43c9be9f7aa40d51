"""`alignbench score`: a folder of pictures through a judge, into parquet; and `ls rewards`, the table of judges."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import Tensor

from alignbench.__main__ import main
from alignbench.config import choices, conf_folder
from alignbench.rewards.colour import Colour
from alignbench.rewards.set_diversity import SceneDiversity
from alignbench.rng import generator

NAMES = ["a.png", "b.png", "c.jpg", "d.png"]
TEXTS = ["a red circle", "a blue square", "a blue square", "a green ring"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pictures of two sizes, one of them with an alpha channel, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "pictures"
    made.mkdir()
    for index, name in enumerate(NAMES):
        size, mode = ((24, 40, 3), "RGB") if index != 1 else ((32, 32, 4), "RGBA")
        pixels = (torch.rand(size, generator=generator(0, name)) * 255).byte().numpy()
        Image.fromarray(pixels, mode).save(made / name, quality=100)
    (made / "notes.txt").write_text("no picture")
    return made


def seen(folder: Path, name: str) -> Tensor:
    with Image.open(folder / name) as image:
        pixels = torch.tensor(list(image.convert("RGB").tobytes())).reshape(image.height, image.width, 3)
    return pixels.permute(2, 0, 1)[None] / 255


def scores(file: Path) -> dict[str, Any]:
    return pyarrow.parquet.read_table(file).to_pydict()


def csv(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["file_name,text", *(f"{name},{text}" for name, text in rows)])


PAIRS = list(zip(NAMES, TEXTS, strict=True))
WRITE: dict[str, Callable[[Path], Any]] = {
    "prompts.csv": lambda file: file.write_text(csv(PAIRS), encoding="utf-8-sig"),
    "prompts.jsonl": lambda file: file.write_text("\n".join(json.dumps({"file_name": n, "text": t}) for n, t in PAIRS) + "\n\n"),
    "prompts.txt": lambda file: file.write_text("\n".join(TEXTS)),
    "prompts.parquet": lambda file: pyarrow.parquet.write_table(
        pyarrow.table({"image": [*NAMES, ""], "prompt": [*TEXTS, "of a picture that was not kept"]}), file
    ),
}


@pytest.mark.parametrize("kind", WRITE)
def test_a_folder_is_scored_whatever_lists_its_prompts(kind: str, folder: Path, capsys: Any) -> None:
    WRITE[kind](folder.parent / kind)
    assert main(["score", "reward=colour", "images=pictures", f"prompts={kind}", "to=out/colour.parquet", "batch=2"]) == 0
    found = scores(folder.parent / "out" / "colour.parquet")
    assert found["image"] == NAMES
    assert found["prompt"] == TEXTS
    own = [Colour(width=0.35)(seen(folder, name), [text]).item() for name, text in PAIRS]
    assert found["colour"] == pytest.approx(own, abs=1e-6)
    metadata = pyarrow.parquet.read_schema(folder.parent / "out" / "colour.parquet").metadata
    assert json.loads(metadata[b"alignbench"])["settings"] == "width=0.35"
    said = capsys.readouterr().out
    assert "colour of 4 images" in said
    assert f"lowest {min(own):.4f}" in said.replace(f"{min(own):.6g}", f"{min(own):.4f}")


def test_the_folder_s_own_list_and_the_judge_s_own_settings_serve(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": n, "text": t}) for n, t in PAIRS))
    assert main(["score", "reward=colour", "images=pictures", "reward.width=0.9"]) == 0
    own = [Colour(width=0.9)(seen(folder, name), [text]).item() for name, text in PAIRS]
    assert scores(folder.parent / "scores-colour.parquet")["colour"] == pytest.approx(own, abs=1e-6)


def test_images_that_are_judged_together_are_asked_about_together(folder: Path) -> None:
    (folder.parent / "two.csv").write_text(csv([("a.png", "one"), ("c.jpg", "one"), ("d.png", "one")]))
    for name in ("a.png", "c.jpg", "d.png"):  # the judge reads 32x32 scenes
        with Image.open(folder / name) as image:
            image.resize((32, 32)).save(folder / name, quality=100)
    assert main(["score", "reward=scene_diversity", "images=pictures", "prompts=two.csv", "batch=1"]) == 0
    own = SceneDiversity()(torch.cat([seen(folder, name) for name in ("a.png", "c.jpg", "d.png")]), ["one"] * 3)
    assert scores(folder.parent / "scores-scene_diversity.parquet")["scene_diversity"] == pytest.approx(own.tolist(), abs=1e-6)


def test_an_image_without_a_score_is_empty_where_that_is_let_pass(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (folder.parent / "prompts.txt").write_text("\n".join(TEXTS))
    words = ["score", "reward=colour", "images=pictures", "prompts=prompts.txt"]
    usual = Colour.forward

    def blind(self: Colour, images: Tensor, prompts: list[str]) -> Tensor:
        return usual(self, images, prompts).masked_fill(torch.tensor(["green" in prompt for prompt in prompts]), torch.nan)

    monkeypatch.setattr(Colour, "forward", blind)
    assert main(words) == 2
    assert "not finite" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="have no score"):
        assert main([*words, "judging.on_error=skip"]) == 0
    found = scores(folder.parent / "scores-colour.parquet")["colour"]
    assert [each is None for each in found] == [False, False, False, True]
    assert "3 images, 1 have no score" in capsys.readouterr().out


WRONG: dict[str, tuple[list[str], str]] = {
    "no judge": (["images=pictures"], "which judge, and which images"),
    "no images": (["reward=colour"], "which judge, and which images"),
    "no folder": (["reward=colour", "images=elsewhere"], "images=elsewhere: there is no such folder"),
    "no list": (["reward=colour", "images=pictures"], "there is no such file; it is a .jsonl, .json, .csv or .parquet"),
    "another word": (["reward=colour", "images=pictures", "epochs=3"], "epochs=3"),
    "batch": (["reward=colour", "images=pictures", "batch=0"], "batch=0"),
    "unknown judge": (["reward=colur", "images=pictures", "prompts=good.csv"], "did you mean colour"),
    "missing image": (["reward=colour", "images=pictures", "prompts=missing.csv"], "row 2: there is no image 'e.png'"),
    "outside": (["reward=colour", "images=pictures", "prompts=outside.csv"], "row 1: there is no image '../secret.png'"),
    "absolute": (["reward=colour", "images=pictures", "prompts=absolute.csv"], "row 1: there is no image '/etc/hostname'"),
    "no picture": (["reward=colour", "images=pictures", "prompts=none.csv"], "notes.txt is no image"),
    "column": (["reward=colour", "images=pictures", "prompts=column.csv"], "file_name or image and text or prompt are wanted"),
    "lines": (["reward=colour", "images=pictures", "prompts=lines.txt"], "2 lines for 4 images"),
    "json": (["reward=colour", "images=pictures", "prompts=bad.jsonl"], "row 2: not JSON"),
    "numbers": (["reward=colour", "images=pictures", "prompts=numbers.jsonl"], "row 1: text must be words, not 3"),
    "bytes": (["reward=colour", "images=pictures", "prompts=bytes.csv"], "row 1: it holds what is not UTF-8"),
    "parquet": (["reward=colour", "images=pictures", "prompts=bad.parquet"], "no parquet, or cut short"),
    "empty": (["reward=colour", "images=pictures", "prompts=empty.csv"], "no rows in it"),
    "no colour": (["reward=colour", "images=pictures", "prompts=plain.csv"], "needs a colour in the prompt"),
    "sizes": (["reward=scene_diversity", "images=pictures", "prompts=sizes.csv"], "have different sizes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_with_its_row(case: str, folder: Path, capsys: Any) -> None:
    files = {
        "good.csv": csv(PAIRS),
        "missing.csv": csv([PAIRS[0], ("e.png", "x")]),
        "outside.csv": csv([("../secret.png", "x")]),
        "absolute.csv": csv([("/etc/hostname", "x")]),
        "none.csv": csv([("notes.txt", "x")]),
        "column.csv": "file,caption\na.png,red",
        "lines.txt": "one\ntwo",
        "bad.jsonl": '{"file_name": "a.png", "text": "red"}\n{"file_name": ',
        "numbers.jsonl": '{"file_name": "a.png", "text": 3}',
        "empty.csv": "file_name,text",
        "plain.csv": csv([("a.png", "nothing")]),
        "sizes.csv": csv([("a.png", "one"), ("b.png", "one")]),
        "bad.parquet": "PAR1 and no more",
    }
    for name, text in files.items():
        (folder.parent / name).write_text(text)
    (folder.parent / "secret.png").write_bytes((folder / "a.png").read_bytes())
    (folder.parent / "bytes.csv").write_bytes(b"file_name,text\na.png,\xff\xfe")
    words, why = WRONG[case]
    assert main(["score", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert why in line
    assert not list(folder.parent.glob("scores-*"))


def test_weights_that_are_not_here_are_exit_3(folder: Path, capsys: Any) -> None:
    (folder.parent / "prompts.csv").write_text(csv(PAIRS))
    assert main(["score", "reward=imagereward", "images=pictures", "prompts=prompts.csv"]) == 3
    assert "ImageReward.pt (about 1.8 GB)" in capsys.readouterr().err


def test_the_table_of_rewards_says_what_each_is_and_needs(capsys: Any) -> None:
    assert main(["ls", "rewards"]) == 0
    table, _, lines = capsys.readouterr().out.partition("\n\n")
    head, *rows = table.splitlines()[1:]
    assert head.split()[:6] == ["choice", "differentiable", "spatial", "grouped", "size", "backbone"]
    there = choices("reward", conf_folder())
    assert [row.split()[0] for row in rows] == list(there)
    cells = {row.split()[0]: " ".join(row.split()) for row in rows}
    for choice, facts in {  # differentiable, spatial, grouped, size, backbone, licence, training data
        "imagereward": "yes - - 1.8 GB BLIP ViT-L/16 + BERT Apache-2.0 ImageRewardDB, 137 k comparisons",
        "hpsv2_1": "yes - - 3.9 GB CLIP ViT-H/14 Apache-2.0 HPD v2 and more comparisons, not published",
        "pickscore": "yes - - 3.9 GB CLIP ViT-H/14 MIT Pick-a-Pic v1",
        "jpeg_incompressibility": "- - - - - Apache-2.0 -",  # from the class that it builds on
        "light_right": "yes yes - - - Apache-2.0 -",
        "scene_parity": "- - yes - - Apache-2.0 -",
    }.items():
        assert cells[choice] == f"{choice} {facts}"
    assert all(line in lines for line in there.values())
