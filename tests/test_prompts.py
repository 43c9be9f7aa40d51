"""Prompts: splits that depend on a prompt alone, shipped lists that are what they say, the Hub's files, and draws."""

import hashlib
import json
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import hub_datasets
import pytest
import torch
import yaml
from conftest import MORE, yaml_of
from hatchling.builders.wheel import WheelBuilder

from alignbench import compose as compose_module
from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.config import ConfigError, MissingAsset, choices, conf_folder, located
from alignbench.datasets.base import Prompts, draw, spread
from alignbench.datasets.hub import HubPrompts
from alignbench.datasets.prompts import PromptFile, PromptFiles
from alignbench.datasets.splits import SPLITS, key, place
from alignbench.experiment import Experiment, made
from alignbench.rng import Draws

LISTS = Path(located("package://datasets/lists"))
DOCS = Path(__file__).parents[1] / "docs" / "datasets.md"
PARTS = {"train": 0.6, "validation": 0.1, "test": 0.3}
NAMES = choices("dataset", conf_folder())


def node(choice: str) -> dict[str, Any]:
    """A choice's YAML, with words for what has no value in it."""
    given = (word.removeprefix("dataset.").split("=", 1) for word in MORE.get(choice, []))
    return yaml_of("dataset", choice) | {name: yaml.safe_load(value) for name, value in given}


@cache
def of(choice: str) -> Prompts:
    return made(node(choice))


def from_file(path: Path, **given: Any) -> PromptFile:
    usual = {"column": "prompt", "group": None, "keep": [], "split": None, "shares": PARTS, "repeated": "refuse"}
    return PromptFile(path=str(path), **(usual | given))


def splits(prompts: Prompts) -> dict[str, str]:
    return {prompt: split for split in SPLITS for prompt in getattr(prompts, split)}


def some(count: int) -> list[str]:
    return [f"thing {number} of {count}" for number in range(count)]


# --- near-duplicates


@pytest.mark.parametrize(
    "prompts",
    [
        ["A cat and a dog.", "a dog and a cat", "The dog, and the cat!", "cat AND dog", "a  cat\tand\na dog"],
        ["ﬁve ﬁsh", "five fish", "FIVE FISH", "ｆｉｖｅ ｆｉｓｈ"],
        ["Straße", "STRASSE", "strasse"],
        ["café", "cafe\u0301", "CAFÉ"],
        ["the dog's bone", "the dogs bone", "the dog’s bone"],
        ["a red-haired woman", "red haired woman", "a red\u2014haired woman"],
        ["zero\u200bwidth", "zerowidth", "\ufeffzerowidth"],
        ["an old cat", "the old cat", "a cat, old", "old cat"],
        ["a", "A", " a "],
    ],
    ids=lambda prompts: prompts[0],
)
def test_near_duplicates_have_one_key(prompts: list[str]) -> None:
    assert {key(prompt) for prompt in prompts} == {key(prompts[0])}
    assert len({place(prompt, PARTS) for prompt in prompts}) == 1


def test_other_prompts_have_other_keys() -> None:
    others = [
        "a cat",
        "a cats",
        "two cats",
        "a cat and a cat",
        "cat on a mat",
        "mat on a cat under",
        "猫",
        "犬",
        "🐈",
        "🐕",
        "1 cat",
        "2 cats",
    ]
    others += ["a", "the", "", "c++", "c"]
    assert len({key(prompt) for prompt in others}) == len(others)


# --- by hash


def test_the_place_of_a_prompt_is_written_out_once_more_and_is_pinned() -> None:
    for prompt, words in (("A cat and a dog.", "and cat dog"), ("the Four wolves in a park", "four in park wolves")):
        at = int(hashlib.sha256(b"alignbench split\0" + words.encode()).hexdigest()[:16], 16) / 16**16
        assert place(prompt, PARTS) == ("test" if at < 0.3 else "validation" if at < 0.4 else "train")
    assert [place(prompt, PARTS) for prompt in some(12)] == PINNED


PINNED = ["test", "train", "test", "train", "test", "test", "train", "train", "train", "train", "train", "train"]


def test_shares_are_what_a_split_gets() -> None:
    count = Counter(place(prompt, PARTS) for prompt in some(20_000))
    for split, share in PARTS.items():
        assert abs(count[split] - 20_000 * share) < 4.5 * (20_000 * share * (1 - share)) ** 0.5  # of a binomial's deviation
    assert {place(prompt, {"test": 1.0}) for prompt in some(99)} == {"test"}
    assert {place(prompt, {"train": 0.5, "validation": 0.5, "test": 0.0}) for prompt in some(99)} == {"train", "validation"}


def test_a_larger_share_takes_from_its_neighbour_only() -> None:
    before, after = ({p: place(p, {"train": 0.6 - d, "validation": 0.1 + d, "test": 0.3}) for p in some(2000)} for d in (0, 0.2))
    assert {(before[each], after[each]) for each in before if before[each] != after[each]} == {("train", "validation")}


def test_neither_order_nor_other_prompts_nor_a_seed_moves_a_prompt(tmp_path: Path) -> None:
    prompts, file = some(400), tmp_path / "p.txt"
    file.write_text("\n".join(prompts[:300]))
    before = splits(from_file(file))
    assert list(before) == [each for split in SPLITS for each in prompts[:300] if before[each] == split]  # the file's order in each
    for name, lines in {
        "more": [*prompts[300:], *prompts[:300]],
        "fewer": prompts[100:300],
        "shuffled": random.Random(0).sample(prompts[:300], 300),
    }.items():
        file.write_text("\n".join(lines))
        torch.manual_seed(len(name))
        random.seed(len(name))
        after = splits(from_file(file))
        assert {each: after[each] for each in after if each in before} == {each: before[each] for each in before if each in after}
        assert [each for each in lines if after[each] == "test"] == from_file(file).test


def test_near_duplicates_fall_in_one_split_whatever_the_file_says_first(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join([*some(60), *(f"The THING of {number}, a 60" for number in range(60))]))
    found = splits(from_file(tmp_path / "p.txt"))
    assert set(found.values()) == set(SPLITS)
    assert all(found[f"thing {number} of 60"] == found[f"The THING of {number}, a 60"] for number in range(60))


@pytest.mark.parametrize(
    "shares, said",
    [
        ({"train": 0.5, "validation": 0.1, "test": 0.1}, "add up to 0.7, not to 1"),
        ({"train": 1, "validation": 1, "test": 1}, "add up to 3"),
        ({"train": 0.98, "validation": 0.01, "test": 0.01}, r"none falls in (validation|test); make its share more than 0\.01"),
        (None, "name a column of splits, or give shares"),
    ],
    ids=str,
)
def test_shares_that_cannot_be(shares: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog\na cow")
    with pytest.raises(ConfigError, match=r"^dataset\.shares: .*" + said):
        from_file(tmp_path / "p.txt", shares=shares)


def test_a_share_outside_0_and_1_or_of_another_split_is_refused_before_the_file_is_read(capsys: Any) -> None:
    for shares in ("{train: -1, validation: 1, test: 1}", "{training: 0.5}"):
        assert main(["dataset=prompts", "dataset.path=nowhere.txt", "epochs=1", f"dataset.shares={shares}"]) == 2
        assert "dataset.shares" in capsys.readouterr().err


# --- by column, by file, repeated, and what is kept


def test_a_column_says_the_split_and_others_are_kept_by_prompt(tmp_path: Path) -> None:
    rows = [
        ("a cat", "train", "pets", 1),
        ("a dog", "test", "pets", None),
        ("an ox", "train", "farm", 3),
        ("a hen", "validation", "farm", 0),
    ]
    names = ("prompt", "part", "style", "n")
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    found = from_file(tmp_path / "p.jsonl", split="part", group="style", keep=["n"], shares=None)
    assert (found.train, found.validation, found.test) == (["a cat", "an ox"], ["a hen"], ["a dog"])
    assert found.about["a cat"] == {"n": 1, "group": "pets"}
    assert found.about["a dog"] == {"group": "pets"}  # null is nothing to keep
    assert splits(from_file(tmp_path / "p.jsonl", split="part")) == splits(found)  # shares do not count beside a column
    assert from_file(tmp_path / "p.jsonl", split="part").about == {}
    with pytest.raises(ConfigError, match="a column called group is to be kept"):
        from_file(tmp_path / "p.jsonl", group="style", keep=["group"])


def test_a_file_a_split_is_as_a_column_of_splits(tmp_path: Path) -> None:
    for split, prompts in {"train": ["b", "c", "d"], "test": ["e", "f"]}.items():
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,kind", *(f"{each},k{each}" for each in prompts)]))
    at = {"train": f"{tmp_path}/train.csv", "validation": None, "test": f"{tmp_path}/test.csv"}
    found = PromptFiles(**at, column="text", group="kind", keep=[], repeated="refuse")
    assert (found.train, found.validation, found.test) == (["b", "c", "d"], [], ["e", "f"])
    assert found.about["e"] == {"group": "ke"}


def test_repeated_rows_are_counted_where_they_are_let_pass(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,style\n" + "\n".join(f"thing {number % 40},s{number}" for number in range(100)))
    with pytest.raises(ConfigError, match=r"row 41: the prompt of row 1 again"):
        from_file(tmp_path / "p.csv")
    with pytest.warns(UserWarning, match=r"60 of 100 rows repeat an earlier prompt and were left out"):
        found = from_file(tmp_path / "p.csv", repeated="once", group="style")
    assert len(splits(found)) == 40
    assert found.about["thing 7"] == {"group": "s7"}


# --- the shipped lists

SHIPPED = {  # prompts in train, validation and test, and the sha256 of the three lists
    "animals": (45, 16, 48, "2a663cc1f00e067e"),
    "animals_activities": (135, 48, 144, "181130a5f2f07ac9"),
    "dpok": (4, 16, 48, "51b138717b0dac91"),
    "geneval": (326, 59, 168, "bd36f91759e76bee"),
    "partiprompts": (961, 164, 507, "25e9b9634ecdfa0a"),
    "scenes": (2520, 420, 420, "34eb961db779f3f7"),
}


@pytest.mark.parametrize("choice", SHIPPED)
def test_a_shipped_list_is_parted_as_it_was(choice: str) -> None:
    prompts = of(choice)
    lists = [getattr(prompts, split) for split in SPLITS]
    *counts, digest = SHIPPED[choice]
    assert [len(each) for each in lists] == counts
    assert hashlib.sha256(json.dumps(lists).encode()).hexdigest()[:16] == digest
    assert set(prompts.about) <= {prompt for each in lists for prompt in each}


@pytest.mark.parametrize("choice", [each for each in SHIPPED if each != "scenes"])  # whose words in another order are other scenes
def test_no_two_splits_share_a_prompt_or_nearly(choice: str) -> None:
    """With the key made another way: these lists are plain English."""
    prompts, words = of(choice), []
    for split in SPLITS:
        said = [re.findall(r"\w+", re.sub("['’]", "", each.lower())) for each in getattr(prompts, split)]
        words.append({tuple(sorted(word for word in each if word not in ("a", "an", "the"))) for each in said})
    assert not words[0] & words[1] and not words[0] & words[2] and not words[1] & words[2]


def test_every_shipped_list_is_one_of_a_choice_and_has_its_terms() -> None:
    there = {path.name for path in LISTS.iterdir() if path.suffix != ".md"}
    named = {Path(node(choice)["path"]).name for choice in SHIPPED if choice != "scenes"}
    assert there == named
    card = (LISTS / "README.md").read_text(encoding="utf-8")
    rows = {row[0]: row for row in (line.split(" | ") for line in re.findall(r"^\| `(.*) \|$", card, re.MULTILINE)) if len(row) > 3}
    for file in there:
        cells = rows[f"{file}`"]
        data = (LISTS / file).read_text(encoding="utf-8")
        assert int(cells[1]) == len(data.splitlines()) - (1 if file.endswith(".csv") else 0)
        assert any(licence in cells[3] for licence in ("MIT", "Apache-2.0"))
    assert card.count("Permission is hereby granted") == 1  # the terms of MIT go with the lists
    assert "Copyright (c) 2023 Kevin Black" in card
    assert "Copyright (c) 2023 Dhruba Ghosh" in card


def test_the_wheel_has_the_lists_and_their_terms() -> None:
    builder = WheelBuilder(str(DOCS.parents[1]))
    packed = {each.distribution_path for each in builder.recurse_included_files()}
    assert {f"alignbench/datasets/lists/{path.name}" for path in LISTS.iterdir()} <= packed
    assert {f"alignbench/conf/dataset/{choice}.yaml" for choice in NAMES} <= packed


def test_animals_are_ddpo_s_and_the_grid_is_all_of_them_with_each_activity() -> None:
    animals, grid = of("animals"), of("animals_activities")
    assert animals.train[:3] == ["cat", "dog", "horse"] and animals.train[-1] == "kangaroo"
    for split in SPLITS:
        wanted = [
            f"{'an' if animal[0] in 'aeiou' else 'a'} {animal} {activity}"
            for animal in getattr(animals, split)
            for activity in ("washing the dishes", "riding a bike", "playing chess")
        ]
        assert getattr(grid, split) == wanted
        assert [grid.about[each]["animal"] for each in wanted[::3]] == getattr(animals, split)
    assert "an ant playing chess" in grid.train and "a dolphin riding a bike" in grid.train
    assert Counter(each["group"] for each in grid.about.values()) == dict.fromkeys(
        ("washing the dishes", "riding a bike", "playing chess"), 109
    )


def test_dpok_has_its_four_prompts_and_as_many_unseen_ones_of_each_kind() -> None:
    prompts = of("dpok")
    assert prompts.train == ["A green colored rabbit.", "A cat and a dog.", "Four wolves in the park.", "A dog on the moon."]
    for split, each in (("train", 1), ("validation", 4), ("test", 12)):
        kinds = Counter(prompts.about[prompt]["group"] for prompt in getattr(prompts, split))
        assert kinds == dict.fromkeys(("color", "composition", "count", "location"), each)
    shapes = {"color": r"An? \w+ colored \w+\.", "composition": r"An? \w+ and an? \w+\.", "count": r"[A-Z]\w+ \w+ (in|on) the \w+\."}
    shapes["location"] = r"An? \w+ (in|on|under) the \w+\."
    assert all(re.fullmatch(shapes[prompts.about[each]["group"]], each) for each in splits(prompts))


def test_the_benchmarks_are_whole_and_say_their_groups() -> None:
    parti, geneval = of("partiprompts"), of("geneval")
    assert len(splits(parti)) == 1632 and len({each["group"] for each in parti.about.values()}) == 12
    assert Counter(each["group"] for each in geneval.about.values()) == {
        "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100
    }  # fmt: skip
    assert geneval.about["a photo of two clocks"]["include"] == [{"class": "clock", "count": 2}]
    whole = node("geneval") | {"shares": {"train": 0, "validation": 0, "test": 1}}
    with (LISTS / "geneval.jsonl").open() as lines:
        assert made(whole).test == [json.loads(line)["prompt"] for line in lines]  # in its own order


# --- the Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


FROM_HUB = [each for each in NAMES if node(each)["_target_"].endswith("HubPrompts")]


def test_there_are_choices_from_the_hub() -> None:
    assert set(FROM_HUB) >= {"hub_prompts", "hpdv2", "drawbench", "coco_captions", "pickapic"}


@pytest.mark.parametrize("choice", FROM_HUB)
def test_what_is_not_here_is_one_line_with_what_to_type(choice: str, hub: Path, tmp_path: Path, capsys: Any) -> None:
    words = [f"dataset={choice}", "epochs=1", *MORE.get(choice, [])]
    facts = node(choice)
    revision = [f"--revision {facts['revision']}"] if facts["revision"] else []
    typed = " ".join(["hf download --repo-type dataset", facts["repository"], *facts["files"], *revision])
    assert main([*words, f"output={tmp_path / 'runs'}"]) == 3
    assert f"`{typed}`" in capsys.readouterr().err.splitlines()[-1]
    assert main(["doctor", *words, f"output={tmp_path / 'runs'}"]) == 3
    assert typed in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    hub_datasets.stand_in(hub, facts)
    assert len(splits(made(facts))) == 4000 * len(facts["files"])
    main(["doctor", *words, f"output={tmp_path / 'runs'}"])
    assert typed not in capsys.readouterr().out


def test_the_files_of_the_hub_s_cache_are_one_list_with_the_file_as_group(hub: Path) -> None:
    found = "0" * 39 + "1"
    files = {f"benchmark/{style}.json": json.dumps([f"{style} {each}" for each in some(50)]).encode() for style in ("anime", "photo")}
    hub_datasets.put(hub, "someone/prompts", found, files)
    hub_datasets.put(hub, "someone/prompts", "2" * 40, {"benchmark/anime.json": b'["of another commit"]'})
    given: dict[str, Any] = {"repository": "someone/prompts", "files": [*files], "column": "prompt", "keep": [], "split": None}
    prompts = HubPrompts(**given, revision=found, group="file", shares=PARTS, repeated="refuse")
    assert {prompt.split()[0] == about["group"] for prompt, about in prompts.about.items()} == {True}
    assert len(prompts.about) == 100
    assert prompts.test == [each for name in files for each in json.loads(files[name]) if place(each, PARTS) == "test"]
    with pytest.raises(MissingAsset, match=r"photo\.json is not here"):
        HubPrompts(**given, revision="2" * 40, group="file", shares=PARTS, repeated="refuse")


@pytest.mark.parametrize(
    "files, data, code, said",
    [
        ("p.txt", b"a cat\n\na dog", 2, "dataset.files[p.txt] of someone/prompts, row 2: a blank line"),
        ("p.txt", b"a cat\na dog", 2, "dataset.shares: of 2 prompts none falls in"),
        ("p.tsv", b"prompt\na cat", 2, "files that end in '.tsv' are not read"),
        ("p.txt,q.txt", b"a cat", 3, "`hf download --repo-type dataset someone/prompts p.txt q.txt`"),
        ("../p.txt", b"a cat", 3, "../p.txt is not here"),
        ("", b"a cat", 2, "dataset.files"),
    ],
)
def test_what_is_wrong_with_a_dataset_of_the_hub(files: str, data: bytes, code: int, said: str, hub: Path, capsys: Any) -> None:
    hub_datasets.put(hub, "someone/prompts", None, {files.partition(",")[0].lstrip("./") or "p.txt": data})
    assert main(["dataset=hub_prompts", "dataset.repository=someone/prompts", f"dataset.files=[{files}]", "epochs=1"]) == code
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_name_that_no_repository_can_have(hub: Path, capsys: Any) -> None:
    for verb in ([], ["doctor"]):
        assert main([*verb, "dataset=hub_prompts", "dataset.repository=no name", "dataset.files=[p.txt]", "epochs=1"]) in (2, 3)
        said = capsys.readouterr()
        assert "epo id must" in said.out + said.err or "no name of a repository" in said.err


# --- in an experiment


@pytest.mark.parametrize(
    "words, said",
    [
        (["dataset.shares={train: 0, validation: 0, test: 1}"], "the train split is empty and the method trains"),
        (["eval.prompts=169"], "eval.prompts=169: the test split has 168 prompts"),
        (["eval.validation_prompts=60"], "eval.validation_prompts=60: the validation split has 59 prompts"),
        (["dataset.shares={train: 0.5, validation: 0, test: 0.5}"], "eval.validation_prompts=16: the validation split has 0 prompts"),
        (["method=reference", "eval.prompts=554", "dataset.shares={train: 0, validation: 0, test: 1}"], "the test split has 553 prompts"),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_splits_that_are_too_small_are_refused_before_anything_runs(words: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    trained = [] if "method=reference" in words else ["epochs=1"]
    given = ["model=gaussian", "reward=jpeg_compressibility", "dataset=geneval", "eval=plain", *trained, *words]
    assert main([*given, f"output={tmp_path / 'runs'}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert not (tmp_path / "runs").exists()
    assert main(["doctor", *given, f"output={tmp_path / 'runs'}"]) == 3
    assert "missing" in capsys.readouterr().out


def test_a_whole_benchmark_is_evaluated_where_nothing_is_trained() -> None:
    words = ["method=reference", "model=gaussian", "reward=jpeg_compressibility", "eval=plain", "dataset=geneval", "eval.prompts=553"]
    built = Experiment.build(compose([*words, "dataset.shares={train: 0, validation: 0, test: 1}"]).config)
    assert (len(built.prompts.train), len(built.prompts.validation), len(built.prompts.test)) == (0, 0, 553)


def test_what_a_file_holds_is_part_of_a_run_s_identity(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.txt" for name in ("path", *SPLITS)}
    for file in files.values():
        file.write_text("a cat\n")

    def hashes() -> tuple[str, str]:
        compose_module._digest.cache_clear()
        three = [f"dataset.{split}={files[split]}" for split in SPLITS]
        return tuple(
            compose([*words, "epochs=1"]).hash
            for words in (["dataset=prompts", f"dataset.path={files['path']}"], ["dataset=prompt_files", *three])
        )

    before = hashes()
    assert hashes() == before
    for name, file in files.items():
        file.write_text("a dog\n")
        after = hashes()
        assert [one != other for one, other in zip(before, after, strict=True)] == [name == "path", name != "path"]
        before = after


# --- draws


def test_draws_are_a_function_of_seed_epoch_and_index() -> None:
    prompts = some(50)
    first = draw(prompts, 64, 1, Draws(3, 5).one("prompts"))
    torch.manual_seed(1)
    torch.rand(7)
    assert draw(prompts, 64, 1, Draws(3, 5).one("prompts")) == first
    assert draw(prompts, 16, 1, Draws(3, 5).one("prompts")) == first[:16]  # the i-th is the i-th, however many are drawn
    assert draw(prompts, 64, 3, Draws(3, 5).one("prompts")) == [each for each in first for _ in range(3)]
    others = [draw(prompts, 64, 1, Draws(seed, epoch).one("prompts")) for seed, epoch in ((3, 6), (4, 5), (5, 3))]
    assert all(other != first for other in others)
    renamed = [f"other {each}" for each in prompts]
    assert draw(renamed, 64, 1, Draws(3, 5).one("prompts")) == [f"other {each}" for each in first]  # which index, whatever is there
    with pytest.raises(ValueError, match="no prompts"):
        draw([], 4, 1, Draws(0, 0).one("prompts"))


def test_the_evaluation_s_prompts_are_the_same_for_every_run() -> None:
    prompts = some(50)
    chosen = spread(prompts, 20)
    torch.manual_seed(1)
    assert spread(prompts, 20) == chosen
    assert spread(prompts, 10) == chosen[:10]
    assert len(set(spread(prompts, 50))) == 50
    assert chosen != sorted(chosen)
    with pytest.raises(ValueError, match="51 prompts are wanted but the split has 50"):
        spread(prompts, 51)


def test_two_seeds_of_an_experiment_have_the_same_splits_and_other_draws() -> None:
    words = ["model=gaussian", "reward=jpeg_compressibility", "eval=plain", "dataset=partiprompts", "epochs=1"]
    one, other = (Experiment.build(compose([*words, f"seed={seed}"]).config).prompts for seed in (0, 1))
    assert splits(one) == splits(other)
    assert list(splits(one)) == list(splits(other))


# --- the page


def test_the_page_of_datasets_has_every_choice_with_its_counts() -> None:
    text = DOCS.read_text(encoding="utf-8")
    rows = {name: rest.split(" | ") for name, rest in re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)}
    assert set(rows) == set(NAMES)
    for choice, cells in rows.items():
        if choice in SHIPPED:
            prompts = of(choice)
            assert cells[1] == " / ".join(str(len(getattr(prompts, split))) for split in SPLITS)
        elif choice in FROM_HUB and choice != "hub_prompts":
            assert f"`{node(choice)['repository']}`" in cells[0]
        group = node(choice).get("group")
        assert cells[2] == (f"`{group}`" if group else "none")
        if choice not in SHIPPED and choice != "prompt_files":
            assert cells[1] == " / ".join(f"{node(choice)['shares'][split]:g}" for split in SPLITS)
