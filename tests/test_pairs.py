"""Preference pairs: five layouts that hold the same, what is a tie, and what is wrong ends in one line that names it."""

import io
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from picture_files import NAMES, TINY, bomb, images, pixels, png
from PIL import Image
from torch import Tensor

from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.config import ConfigError
from alignbench.datasets.hpdv2 import HPDv2
from alignbench.datasets.labelled_pairs import LabelledPairs
from alignbench.datasets.pair_table import PairTable
from alignbench.datasets.pairs import GivenPairs, Pairs
from alignbench.datasets.pick_a_pic import PickAPic
from alignbench.datasets.scenes import ScenePairs
from alignbench.datasets.scored_pairs import ScoredPairs
from alignbench.rng import Draws, generator
from alignbench.worlds import scenes

# of each pair the first image, the second, what the prompt is, and which of the two is preferred
ROWS: list[tuple[int, int, str, str]] = [(0, 1, "a cat", "a"), (2, 3, "größer ⬛", "b"), (1, 3, "a dog, wet", "b"), (0, 2, "a hat", "tie")]
DECIDED = {(0, 1, "a cat"), (3, 2, "größer ⬛"), (3, 1, "a dog, wet")}
TIED = (0, 2, "a hat")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- the layouts


def jpg(index: int) -> bytes:
    return png(index)  # the column's name says jpg; a decoder reads what is there


def table(rows: list[tuple[Any, ...]] = ROWS, ending: str = ".csv") -> str:
    names = ("image_a", "image_b", "prompt", "preferred")
    own = [(a if isinstance(a, str) else NAMES[a], b if isinstance(b, str) else NAMES[b], *rest) for a, b, *rest in rows]
    path = images(Path("data")) / f"pairs{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table(dict(zip(names, map(list, zip(*own, strict=True)), strict=True))), path)
    elif ending == ".csv":
        lines = [",".join(names), *(",".join(f'"{cell}"' for cell in row) for row in own)]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in own), encoding="utf-8")
    return str(path)


LABELS = {"a": (1.0, 0.0), "b": (0.0, 1.0), "tie": (0.5, 0.5)}


def pick(rows: list[tuple[Any, ...]] = ROWS, path: str = "pick/0.parquet", **columns: list[Any]) -> str:
    """Row groups of two rows; images by index, or as the bytes themselves."""
    Path(path).parent.mkdir(exist_ok=True)
    bytes_of = [[jpg(each) if isinstance(each, int) else each for each in (a, b)] for a, b, *_ in rows]
    labels = [LABELS[preferred] for *_, preferred in rows]
    made = {
        "jpg_0": pyarrow.array([each[0] for each in bytes_of], pyarrow.binary()),
        "jpg_1": pyarrow.array([each[1] for each in bytes_of], pyarrow.binary()),
        "label_0": [each[0] for each in labels],
        "label_1": [each[1] for each in labels],
        "caption": [row[2] for row in rows],
        "has_label": [True] * len(rows),
    } | columns
    pyarrow.parquet.write_table(pyarrow.table({key: value for key, value in made.items() if value is not None}), path, row_group_size=2)
    return path


def two_picks() -> str:
    pick(ROWS[:1], "pick/a.parquet")
    pick(ROWS[1:], "pick/b.parquet")
    return "pick"


def hpd(rows: list[dict[str, Any]] | None = None) -> str:
    images(Path("data"))
    preferences = {"a": [1, 0], "b": [0, 1], "tie": [0, 0]}
    own = [{"prompt": p, "file_path": [NAMES[a], NAMES[b]], "human_preference": preferences[w], "user_hash": "x"} for a, b, p, w in ROWS]
    Path("train.json").write_text(json.dumps(own if rows is None else rows), encoding="utf-8")
    return "train.json"


def labels(best: list[tuple[int, int | None]] | None = None) -> str:
    images(Path("labels/images"))
    groups = [{"prompt": prompt, "images": [NAMES[a], NAMES[b]]} for a, b, prompt, _ in ROWS]
    Path("labels/items.json").write_text(json.dumps({"format": 1, "run": "a run", "groups": groups}), encoding="utf-8")
    chosen = [(index, {"a": 0, "b": 1, "tie": None}[row[3]]) for index, row in enumerate(ROWS)] if best is None else best
    Path("labels/preferences.jsonl").write_text("".join(json.dumps({"group": g, "best": b}) + "\n" for g, b in chosen))
    return "labels"


def scored(rows: list[tuple[Any, ...]] | None = None, **columns: Any) -> str:
    """As `alignbench score` writes it: an image's score beside each prompt that it is an image of."""
    images(Path("data"))
    if rows is None:
        rows = []
        for a, b, prompt, preferred in ROWS:
            rows += [
                (NAMES[a], prompt, {"a": 1.0, "b": 0.2, "tie": 0.5}[preferred]),
                (NAMES[b], prompt, {"a": 0.2, "b": 1.0, "tie": 0.5}[preferred]),
            ]
    made = {"image": [row[0] for row in rows], "prompt": [row[1] for row in rows], "colour": [row[2] for row in rows]} | columns
    pyarrow.parquet.write_table(pyarrow.table(made), "scores.parquet")
    return "scores.parquet"


Kind = Callable[..., GivenPairs]
SCORED = partial(ScoredPairs, folder="data", pairs="all", margin=0.1)
LAYOUTS: dict[str, tuple[Kind, Callable[[], str]]] = {
    "csv": (PairTable, table),
    "jsonl": (PairTable, partial(table, ending=".jsonl")),
    "parquet": (PairTable, partial(table, ending=".parquet")),
    "Pick-a-Pic": (PickAPic, pick),
    "Pick-a-Pic in two files": (PickAPic, two_picks),
    "HPDv2": (partial(HPDv2, folder="data"), hpd),
    "labels": (LabelledPairs, labels),
    "scores, all pairs": (SCORED, scored),
    "scores, best and worst": (partial(SCORED, pairs="best_worst"), scored),
}


def expected(index: int, size: int = 24) -> Tensor:
    """The square around the centre of an image that has 24 pixels in its shorter side."""
    height, width = pixels(index).shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    return pixels(index)[top : top + size, left : left + size].permute(2, 0, 1).float() / 255


def seen(pairs: Pairs, count: int = 60) -> Counter[tuple[int, int, str, float]]:
    """What is drawn, images by index."""
    win, lose, prompts, weight = pairs.draw(count, generator(0, "pairs"))
    assert win.shape == lose.shape == (count, 3, 24, 24) and weight.shape == (count,)
    known = [(index, squares(index)) for index in range(4)]
    sides = [[next(index for index, one in known if torch.equal(image, one)) for image in side] for side in (win, lose)]
    return Counter(zip(*sides, prompts, weight.tolist(), strict=True))


def squares(index: int) -> Tensor:
    """As the fourth has to be resized, by Pillow itself."""
    import numpy
    from PIL import ImageOps

    if index < 3:
        return expected(index)
    with Image.open(io.BytesIO(png(index))) as image:
        return torch.from_numpy(numpy.array(ImageOps.fit(image, (24, 24)))).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same(layout: str) -> None:
    kind, write = LAYOUTS[layout]
    path = write()
    out, kept = (kind(path=path, size=24, ties=ties) for ties in ("left_out", "weigh_nothing"))
    assert out.decided == kept.decided == 3 / 4
    assert {row[:3] for row in seen(out)} == DECIDED
    assert all(weight == 1 for *_, weight in seen(out))
    drawn = seen(kept)
    assert {row[:3] for row in drawn if row[3] == 1} == DECIDED
    assert {(*sorted(row[:2]), row[2]) for row in drawn if row[3] == 0} == {TIED}
    assert min(drawn.values()) >= 6  # each as often as the others


@pytest.mark.parametrize("layout", LAYOUTS)
def test_draws_are_the_keys_alone(layout: str) -> None:
    kind, write = LAYOUTS[layout]
    pairs = kind(path=write(), size=8, ties="left_out")
    first, other, again = (pairs.draw(20, Draws(0, epoch).one("pairs")) for epoch in (0, 1, 0))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and first[2] == again[2] != other[2]
    assert torch.equal(first[0], pairs.draw(20, Draws(0, 0).one("pairs"))[0])


def test_the_table_s_columns_and_folder_may_have_other_names() -> None:
    images(Path("data"))
    Path("pairs.csv").write_text("left,right,text,better\n0.png,1.png,a cat,B\n")
    names = {"image_a": "left", "image_b": "right", "prompt": "text", "preferred": "better"}
    pairs = PairTable(path="pairs.csv", folder="data", size=24, ties="left_out", **names)
    assert set(seen(pairs)) == {(1, 0, "a cat", 1.0)}


def test_of_a_row_of_hpdv2_every_two_images_are_a_pair() -> None:
    """By preference more is better, by rank less."""
    row = {"prompt": "a cat", "file_path": NAMES, "human_preference": [2, 0, 1, 0]}
    ranked = {"prompt": "a cat", "image_path": NAMES, "rank": [1, 3, 2, 3], "raw_annotations": []}
    for each in (row, ranked):
        pairs = HPDv2(path=hpd([each]), folder="data", size=24, ties="weigh_nothing")
        assert pairs.decided == 5 / 6
        assert {found[:2] for found in seen(pairs, 100) if found[3]} == {(0, 1), (0, 2), (0, 3), (2, 1), (2, 3)}


def test_a_group_of_labels_pairs_the_chosen_image_with_each_other_and_no_unlabelled_one() -> None:
    labels([])
    group = {"prompt": "a cat", "images": NAMES}
    Path("labels/items.json").write_text(json.dumps({"format": 1, "run": "a run", "groups": [group, group, group]}))
    Path("labels/preferences.jsonl").write_text('{"group": 0, "best": 2}\n{"group": 1, "best": null}\n')
    pairs = LabelledPairs(path="labels", size=24, ties="left_out")
    assert pairs.decided == 0.5
    assert {found[:2] for found in seen(pairs)} == {(2, 0), (2, 1), (2, 3)}


def test_scores_within_the_margin_tie_and_an_image_without_one_is_in_no_pair() -> None:
    rows = list(zip(NAMES, ["a cat"] * 4, [0.5, 0.9, 0.6, None], strict=True))
    every = partial(ScoredPairs, path=scored(rows), folder="data", size=24, ties="left_out")
    assert {found[:2] for found in seen(every(pairs="all", margin=0.2))} == {(1, 0), (1, 2)}
    assert every(pairs="all", margin=0.2).decided == 2 / 3
    assert {found[:2] for found in seen(every(pairs="all", margin=0.0))} == {(1, 0), (1, 2), (2, 0)}
    assert {found[:2] for found in seen(every(pairs="best_worst", margin=0.2))} == {(1, 0)}
    with pytest.raises(ConfigError, match="none of its 1 pairs is decided"):
        every(pairs="best_worst", margin=0.4)


def test_what_alignbench_score_wrote_makes_pairs(capsys: Any) -> None:
    """The darker and the brighter of two, in the judge's own order."""
    folder = images(Path("data"))
    for name, level in (("dark.png", 60), ("bright.png", 200)):
        Image.new("RGB", (16, 16), (level,) * 3).save(folder / name)
    (folder / "metadata.csv").write_text("file_name,text\ndark.png,a wall\nbright.png,a wall\n")
    assert main(["score", "reward=brightness", "images=data", "prompts=data/metadata.csv", "to=scores.parquet"]) == 0
    pairs = ScoredPairs(path="scores.parquet", folder="data", size=8, ties="left_out", pairs="best_worst", margin=0.0)
    win, lose, prompts, _ = pairs.draw(3, generator(0, "pairs"))
    assert (win * 255).eq(200).all() and (lose * 255).eq(60).all() and set(prompts) == {"a wall"}


def test_scene_pairs_differ_in_one_attribute() -> None:
    win, lose, prompts, weight = ScenePairs().draw(200, generator(0, "pairs"))
    right, wrong = scenes.correct(win, prompts), scenes.correct(lose, prompts)
    assert right.all() and weight.eq(1).all()
    assert (wrong.sum(1) == 4).float().mean() > 0.97  # a wrong shape is at times read as another size too
    assert (~wrong).float().mean(0).gt(0.1).all()  # each attribute in its turn
    recoloured = ~wrong[:, 1] | ~wrong[:, 4]
    moved = scenes.Reading.of(win).offset - scenes.Reading.of(lose).offset
    assert moved[recoloured].abs().max() < 0.1  # pixels: the place is jittered alike
    assert {scenes.Scene.parse(prompt).split for prompt in prompts} == {"train"}
    assert all(not torch.equal(one, other) for one, other in zip(win, lose, strict=True))


def test_other_images_are_another_run() -> None:
    from alignbench.compose import _digest

    words = words_for("pair_table.PairTable", table(), folder="data")
    before = compose(words).hash
    Path("data/0.png").write_bytes(png(1))
    _digest.cache_clear()
    assert compose(words).hash != before


# --- what is wrong, and what the one line names


def words_for(kind: str, path: str, **more: str) -> list[str]:
    node = ", ".join([f"_target_: alignbench.datasets.{kind}", f"path: '{path}'", "size: 2", "ties: left_out"])
    node = ", ".join([node, *(f"{key}: {value}" for key, value in more.items())])
    return ["method=diffusion_dpo", *TINY, "method.batch=8", "method.steps=2", "method.beta=10", f"method.pairs={{{node}}}"]


def one_table(*row: Any) -> Callable[[], str]:
    """A good row, then this one."""
    return partial(table, [ROWS[0], row])


def cells(text: str) -> Callable[[], str]:
    def write() -> str:
        (images(Path("data")) / "pairs.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
        return "data/pairs.csv"

    return write


def linked() -> str:
    images(Path("data"))
    Path("secret.png").write_bytes(png(0))
    Path("data/link.png").symlink_to(Path("secret.png").resolve())
    return table([ROWS[0], ("link.png", 1, "a", "a")])


def hpd_row(**changes: Any) -> Callable[[], str]:
    row = {"prompt": "a cat", "file_path": NAMES[:2], "human_preference": [1, 0]}
    changed = {key: value for key, value in (row | changes).items() if value is not ...}
    return lambda: hpd([row, changed])


def torn_parquet() -> str:
    path = Path(pick())
    path.write_bytes(path.read_bytes()[:-40])
    return str(path)


def no_journal() -> str:
    labels()
    Path("labels/preferences.jsonl").write_text('{"group": 0, "best": 9}\n')
    return "labels"


HEAD = "image_a,image_b,prompt,preferred\n0.png,1.png,a,a\n"
TABLE, PICK, HPD, LABELLED, SCORES = (
    "pair_table.PairTable",
    "pick_a_pic.PickAPic",
    "hpdv2.HPDv2",
    "labelled_pairs.LabelledPairs",
    "scored_pairs.ScoredPairs",
)
MORE = {HPD: {"folder": "data"}, SCORES: {"folder": "data", "pairs": "all", "margin": "0.1"}}
WRONG: dict[str, tuple[str, Callable[[], str], list[str]]] = {
    "no file": (TABLE, lambda: "nowhere.csv", ["nowhere.csv", "no such file"]),
    "no such column": (TABLE, cells("image_a,image_b,prompt,better\n0.png,1.png,a,a"), ["no column preferred"]),
    "no row": (TABLE, cells("image_a,image_b,prompt,preferred\n"), ["no rows"]),
    "an answer that is none": (TABLE, one_table(0, 1, "a", "c"), ["row 2", "preferred is c", "a, b, tie"]),
    "no image": (TABLE, one_table(0, "9.png", "a", "a"), ["row 2", "9.png"]),
    "out by ..": (TABLE, one_table(0, "../0.png", "a", "a"), ["row 2", "leads out"]),
    "out by a root": (TABLE, one_table("/etc/passwd", 1, "a", "a"), ["row 2", "leads out"]),
    "out by a link": (TABLE, linked, ["row 2", "link.png", "leads out"]),
    "no prompt": (TABLE, cells(f"{HEAD}0.png,1.png,,a"), ["row 2", "prompt is blank"]),
    "not UTF-8": (TABLE, cells(f"{HEAD}0.png,1.png,\udcff,a"), ["row 2", "UTF-8"]),
    "NUL": (TABLE, cells(f"{HEAD}0.png,1.png,\0,a"), ["row 2", "NUL"]),
    "a row that is short": (TABLE, cells(f"{HEAD}0.png,1.png,a"), ["row 2", "3 cells for 4 columns"]),
    "an image with itself": (TABLE, one_table(1, 1, "a", "a"), ["row 2", "1.png is both"]),
    "ties alone": (TABLE, partial(table, [(0, 1, "a", "tie")]), ["none of its 1 pairs is decided"]),
    "labels that are none": (PICK, partial(pick, label_0=[1.0, 0.3, 0.0, 0.5]), ["0.parquet, row 2", "0.3 and 1.0"]),
    "labels that disagree": (PICK, partial(pick, label_0=[1.0, 1.0, 0.0, 0.5]), ["0.parquet, row 2", "1.0 and 1.0"]),
    "no label": (PICK, partial(pick, label_1=None), ["0.parquet", "label_1"]),
    "no column of images": (PICK, partial(pick, jpg_1=None), ["0.parquet", "jpg_1"]),
    "no caption": (PICK, partial(pick, caption=["a", "b", None, "c"]), ["0.parquet, row 3", "caption"]),
    "no parquet": (PICK, torn_parquet, ["0.parquet", "cut short"]),
    "no list": (HPD, lambda: hpd({"prompt": "a"}), ["train.json", "no list"]),  # type: ignore[arg-type]
    "no images": (HPD, hpd_row(file_path=...), ["row 2", "file_path and image_path"]),
    "one image": (HPD, hpd_row(file_path=["0.png"]), ["row 2", "two or more"]),
    "an image that is a number": (HPD, hpd_row(file_path=["0.png", 1]), ["row 2", "two or more"]),
    "an image too many": (HPD, hpd_row(file_path=NAMES[:3]), ["row 2", "each of the 3 images"]),
    "words for preferences": (HPD, hpd_row(human_preference=["1", "0"]), ["row 2", "human_preference"]),
    "two opinions": (HPD, hpd_row(rank=[1, 2]), ["row 2", "human_preference and rank"]),
    "no prompt in a row": (HPD, hpd_row(prompt=...), ["row 2", "prompt"]),
    "the same image twice": (HPD, hpd_row(file_path=["0.png", "./0.png"]), ["row 2", "0.png is both"]),
    "a NUL in a name": (HPD, hpd_row(file_path=["0.png", "1\0.png"]), ["row 2", "NUL"]),
    "out of the folder": (HPD, hpd_row(file_path=["0.png", "../0.png"]), ["row 2", "leads out"]),
    "no labels folder": (LABELLED, lambda: "nowhere", ["nowhere/items.json is missing"]),
    "a label of no image": (LABELLED, no_journal, ["preferences.jsonl, line 1"]),
    "nothing labelled": (LABELLED, partial(labels, []), ["labels", "none of its 0 pairs"]),
    "no score": (SCORES, partial(scored, colour=["x"] * 8), ["row 1", "colour is a number"]),
    "two scores": (SCORES, partial(scored, brightness=[0.0] * 8), ["colour, brightness", "method.pairs.score"]),
    "no scored image": (SCORES, partial(scored, [("9.png", "a", 1.0)]), ["row 1", "9.png"]),
    "an infinite score": (SCORES, partial(scored, [("0.png", "a", 1.0), ("1.png", "a", float("inf"))]), ["row 2", "is inf"]),
    "an image of a prompt twice": (SCORES, partial(scored, [("0.png", "a", 1.0), ("0.png", "a", 0.0)]), ["rows 1 and 2", "0.png is both"]),
    "one image a prompt": (SCORES, partial(scored, [("0.png", "a", 1.0), ("1.png", "b", 0.0)]), ["none of its 0 pairs"]),
}


KINDS: dict[str, Kind] = {
    TABLE: PairTable,
    PICK: PickAPic,
    HPD: partial(HPDv2, folder="data"),
    LABELLED: LabelledPairs,
    SCORES: SCORED,
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str) -> None:
    kind, write, said = WRONG[case]
    with pytest.raises(ConfigError) as error:
        KINDS[kind](path=write(), size=2, ties="left_out")
    assert [each for each in said if each not in str(error.value)] == [], error.value


@pytest.mark.parametrize("case", list(WRONG)[::3])
def test_what_is_wrong_ends_in_one_line_at_the_front_door(case: str, capsys: Any) -> None:
    kind, write, said = WRONG[case]
    assert main(words_for(kind, write(), **MORE.get(kind, {}))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [each for each in said if each not in line] == [], line
    assert not Path("outputs").exists()


BROKEN = {
    "cut short": (png(1)[:900], "damaged or cut short"),
    "text": (b"no picture", "not an image"),
    "a bomb": (bomb(20_000), "decompression bomb"),
    "what may be one": (bomb(10_000), "decompression bomb"),
    "its own double": (png(0), "the same image"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("layout", ["csv", "Pick-a-Pic"])
def test_a_broken_image_is_named_when_it_is_drawn(layout: str, case: str) -> None:
    data, said = BROKEN[case]
    rows = [ROWS[1], ROWS[0]]
    if layout == "csv":
        path = table(rows)
        Path("data/1.png").write_bytes(data)
    else:
        path = pick([ROWS[1], (0, data, "a cat", "a")])
    pairs = LAYOUTS[layout][0](path=path, size=8, ties="left_out")
    with pytest.raises(ConfigError, match=rf"row 2: (0\.png and 1\.png|1\.png:|jpg_0 and jpg_1|jpg_1:) .*{said}") as error:
        pairs.draw(20, generator(0, "pairs"))
    assert "\n" not in str(error.value)


def test_a_cell_without_bytes_is_named() -> None:
    for missing in (None, b""):
        pairs = PickAPic(path=pick([ROWS[0], (0, missing, "a", "a")], f"pick/{missing is None}.parquet"), size=8, ties="left_out")
        with pytest.raises(ConfigError, match="row 2: jpg_1: no bytes"):
            pairs.draw(20, generator(0, "pairs"))


def test_a_broken_image_ends_a_run_in_one_line(capsys: Any) -> None:
    path = table()
    Path("data/1.png").write_bytes(png(1)[:900])
    assert main(words_for(TABLE, path)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alignbench: ")]
    assert "data/pairs.csv, row" in line and "1.png: damaged or cut short" in line


def test_a_run_learns_from_each_layout_alike(capsys: Any) -> None:
    rows = set()
    for kind, write in ((TABLE, table), (PICK, pick), (LABELLED, labels)):
        assert main(words_for(kind, write())) == 0
        path = Path(next(line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("results: ")))
        rows.add((path / "metrics.jsonl").read_text())
    (row,) = rows
    assert json.loads(row.splitlines()[-2])["decided"] == 0.75


def test_images_that_do_not_fit_the_model_are_refused(capsys: Any) -> None:
    words = [word.replace("size: 2", "size: 4") for word in words_for(TABLE, table())]
    assert main(words) == 2
    assert "pairs of 4x4 pixels do not fit the model, which makes 2x2; set method.pairs" in capsys.readouterr().err
