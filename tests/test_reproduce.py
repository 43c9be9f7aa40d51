"""`alignbench reproduce` on runs that nobody trained: what is run once and written, that no number is invented, what is refused."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from paper_runs import make_run
from recompute import grid, interval, load, mean

from alignbench import reproduce as verb
from alignbench import reproduction
from alignbench.__main__ import main
from alignbench.compose import Composed, compose, reseeded
from alignbench.machine import Row
from alignbench.papers import Printed, read
from alignbench.report.comparison import brief
from alignbench.report.reproduced import latex
from alignbench.sweep import Job

SMALL = [
    *("model=gaussian", "reward=brightness", "eval=plain", "eval.judges=[{_target_: alignbench.rewards.jpeg.JpegCompressibility}]"),
    *("eval.prompts=6", "eval.images=2", "eval.replicates=100", "sampler.steps=3", "method.images=8", "method.batch=4", "epochs=4"),
]
GAINS = {"reference": 0.0, "ddpo": 2.0, "kl_rlhf": 0.5}
MADE = ("table.md", "table.tex", "table.csv", "table.json", "report.html")
COLUMNS = "row,metric,value,unit,tolerance,paper,arxiv,table,benchmark,tag,note"


def words(method: str, *more: str) -> list[str]:
    return [f"method={method}", *(SMALL if method != "reference" else SMALL[:-3]), *more]


def plan() -> dict[str, Any]:
    return {
        "title": "A made-up paper, Table 7",
        "arxiv": "0000.00001",
        "seeds": [0, 1, 2],
        "sandbox": {
            "rows": {
                "start": {"words": words("reference"), "seeds": [0]},
                "ours": words("ddpo"),
                "theirs, strong": words("kl_rlhf"),
                "theirs, weak": words("kl_rlhf", "method.reward_weight=7"),
            },
            "claims": [
                {"says": "ours raises it more", "source": "0000.00001, section 3", "kind": "difference", "direction": "higher"}
                | {"metric": "jpeg_compressibility", "a": "ours", "b": "theirs, strong"},
                {"kind": "difference", "direction": "lower", "metric": "jpeg_compressibility", "a": "ours", "b": "reference"},
                {"kind": "locality", "direction": "higher", "inside": "brightness", "outside": "jpeg_compressibility", "a": "ours"}
                | {"b": "theirs, strong"},
                {"kind": "matched", "direction": "higher", "at": "brightness", "metric": "jpeg_compressibility", "a": ["ours"]}
                | {"b": ["theirs, strong", "theirs, weak"]},
            ],
        },
        "paper": {
            "gpu_hours": 12.5,
            "gpu_hours_source": "its appendix B",
            "words": ["trainer=default"],
            "metrics": {"Light": {"name": "brightness", "scale": 100}, "FID": {"name": "frechet"}, "People": None},
            "rows": {
                "base": {"words": words("reference"), "seeds": [0]},
                "ours (1k)": {"words": words("ddpo")},
                "guidance": {"words": None, "why": "not a method here"},
            },
        },
    }


EXPECTED = f"""{COLUMNS}
base,Light,1.5,%,0.2,Made Up,0000.00001,Table 7,all,V,
ours (1k),Light,200,%,20,Made Up,0000.00001,Table 7,all,V,
ours (1k),FID,12.25,,0.5,Made Up,0000.00001,Table 7,all,S,read off
ours (1k),People,55.5,%,3,Made Up,0000.00001,Table 7,all,V,
guidance,Light,31.5,%,0.2,Made Up,0000.00001,Table 7,all,V,
guidance,FID,,,,Made Up,0000.00001,Table 7,all,,
"""


def write(folder: Path, said: dict[str, Any], expected: str = EXPECTED) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    (folder / "expected.csv").write_text(expected)


@dataclass
class Launches:
    """What the launcher was asked for, in place of trainings. fails: cells whose seed 1 fails; stops: after so many runs."""

    jobs: list[Job]
    launchers: list[dict[str, Any]]
    fails: tuple[str, ...] = ()
    stops: int = 1000

    def run_jobs(self, jobs: list[Job], launcher: dict[str, Any], *, retry: bool = False) -> dict[str, str]:
        self.launchers.append(launcher)
        states = {}
        assert composed(tuple(jobs[-1].words)).hash == jobs[-1].composed.hash
        for job in jobs:
            method, seed = job.composed.choices["method"], job.composed.config["seed"]
            if (job.composed.folder / "report.html").is_file():
                states[job.composed.hash] = "done"
            elif self.stops <= 0:
                states[job.composed.hash] = "interrupted"
            elif method in self.fails and seed == 1:
                states[job.composed.hash] = "failed"
            else:
                self.jobs.append(job)
                self.stops -= 1
                weak = job.composed.config["method"].get("reward_weight") == 7
                gain = GAINS[method] / (1 + weak)
                make_run(job.composed, {"brightness": gain, "jpeg_compressibility": 0.6 * gain, "kl": 1.0}, {"frechet": 11.0})
                states[job.composed.hash] = "done"
        return states


@cache
def composed(words: tuple[str, ...]) -> Composed:
    return compose(words)


@pytest.fixture
def launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launches:
    return launching(monkeypatch, tmp_path)


def launching(patch: pytest.MonkeyPatch, root: Path) -> Launches:
    """Fewer replicates, too: the statistics have tests of their own. The same words are composed once in all tests."""
    found = Launches([], [])
    patch.setattr(verb, "compose", lambda words: composed(tuple(words)))
    patch.setattr(verb, "run_jobs", found.run_jobs)
    patch.setattr(reproduction, "HOW", replace(reproduction.HOW, replicates=200))
    patch.chdir(root)
    return found


def made(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "table.json").read_text())


def contents(root: Path) -> dict[str, tuple[bytes, int]]:
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(root.rglob("*")) if file.is_file()}


# --- what is run, what is written


def test_what_tables_share_runs_once_and_a_second_call_makes_nothing(
    launches: Launches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = plan() | {"title": "Another"}
    other["sandbox"] = {"rows": {"it": words("ddpo"), "best": words("ddpo", "method.clip=0.5")}}
    write(tmp_path / "experiments" / "first", plan())
    write(tmp_path / "experiments" / "second", other)
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(verb, "compose", lambda words: [asked.append(tuple(words)), composed(tuple(words))][1])
    assert main(["reproduce", "launcher=local", "launcher.jobs=2"]) == 0
    assert len(asked) == 5 + 1  # once for all seeds of a row and all tables that have it, and once for the launcher
    hashes = [job.composed.hash for job in launches.jobs]
    assert len(hashes) == len(set(hashes)) == 1 + 3 + 3 + 3 + 3
    assert [launcher["jobs"] for launcher in launches.launchers] == [2]
    said = capsys.readouterr().out
    assert "sandbox tier, 2 tables (first, second): 13 runs, 3 of them needed by more than one table; 0 done already" in said
    for name in ("first", "second"):
        assert {file.name for file in (tmp_path / "experiments" / name).iterdir()} == {*MADE, "runs.yaml", "expected.csv"}
    before = contents(tmp_path)
    monkeypatch.setattr(verb, "reproduced", lambda *_: pytest.fail("a table was made again"))
    assert main(["reproduce"]) == 0
    assert contents(tmp_path) == before
    assert len(launches.launchers) == 1  # no launcher is asked where all is done
    assert "13 done already; nothing to run" in capsys.readouterr().out


def test_a_table_is_made_again_where_an_input_changed(launches: Launches, tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "first"
    write(folder, plan())
    assert main(["reproduce", "first"]) == 0
    start = made(folder)
    (folder / "expected.csv").write_text(EXPECTED.replace("200,%", "201,%"))
    assert main(["reproduce"]) == 0
    assert made(folder)["paper"][1]["value"] == "201"
    assert made(folder)["inputs"] != start["inputs"]
    (folder / "report.html").unlink()
    assert main(["reproduce"]) == 0
    assert (folder / "report.html").is_file()
    make_run(launches.jobs[1].composed, {"jpeg_compressibility": 9.0})
    assert main(["reproduce"]) == 0
    assert made(folder)["claims"][0]["difference"] != start["claims"][0]["difference"]


def test_seeds_and_folders_of_ones_own(launches: Launches, tmp_path: Path) -> None:
    write(tmp_path / "experiments" / "first", plan())
    assert main(["reproduce", "seeds=4,5", "output=elsewhere", "to=there"]) == 0
    seeds = {name: row["seeds"] for name, row in made(tmp_path / "there" / "first")["rows"].items()}
    assert seeds == {"start": [0], "ours": [4, 5], "theirs, strong": [4, 5], "theirs, weak": [4, 5]}
    assert not (tmp_path / "experiments" / "first" / "table.md").exists()
    assert len(list((tmp_path / "elsewhere").iterdir())) == 7


def test_interrupted_and_continued(launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "experiments" / "first"
    write(folder, plan())
    launches.stops = 4
    assert main(["reproduce"]) == 1
    assert "4 of 10 runs are done; the same command continues" in capsys.readouterr().err
    assert not (folder / "table.md").exists()
    launches.stops = 1000
    assert main(["reproduce"]) == 0
    assert len(launches.jobs) == 10
    assert (folder / "table.md").is_file()


def test_a_failed_seed_counts_as_the_reference_and_is_named(launches: Launches, tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "first"
    write(folder, plan())
    launches.fails = ("ddpo",)
    assert main(["reproduce"]) == 1
    table = made(folder)
    files = [tmp_path / "outputs" / "reproduce" / name / "samples.parquet" for name in table["rows"]["ours"]["runs"]]
    moved = [table_of(file, "jpeg_compressibility").mean() for file in files if file.is_file()]
    assert len(moved) == 2
    assert table["claims"][1]["difference"]["value"] == pytest.approx(sum(moved) / 3)
    assert table["claims"][1]["seeds"] == [[3], []]
    assert "ours (seed 1)" in (folder / "table.md").read_text()
    (one,) = table["comparison"]["comparisons"]
    assert next(row for row in one["rows"] if row["label"] == "ours")["failed"] == [1]


def test_a_row_without_a_run_leaves_its_claims_untold(launches: Launches, tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "first"
    said = plan()
    write(folder, said)
    launches.fails = ("ddpo",)
    assert main(["reproduce", "seeds=1"]) == 1
    assert [claim["verdict"] for claim in made(folder)["claims"]] == ["not told"] * 4
    assert made(folder)["claims"][0]["why"] == "no seed of ours finished"
    assert "not told (no seed of ours finished)" in (folder / "report.html").read_text()
    audit(folder)


def test_images_that_are_gone(launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "experiments" / "first", plan())
    write(tmp_path / "experiments" / "second", plan() | {"sandbox": {"rows": {"start": {"words": words("reference"), "seeds": [0]}}}})
    assert main(["reproduce", "first"]) == 0
    (launches.jobs[1].composed.folder / "samples.parquet").unlink()
    assert main(["reproduce"]) == 2
    assert "samples.parquet is missing; move that folder away, and the same command makes the run again" in capsys.readouterr().err
    assert made(tmp_path / "experiments" / "second")["comparison"] is None  # the reference alone; this table is made all the same


@pytest.mark.slow
def test_a_table_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained, by real processes."""
    folder = tmp_path / "experiments" / "tiny"
    said = plan() | {"seeds": [0]}
    tiny = ["model=sandbox", "epochs=1", "eval=quick", "trainer.threads=1"]
    said["sandbox"] = {
        "rows": {"one": ["method=ddpo", *tiny], "other": ["method=kl_rlhf", *tiny]},
        "claims": [{"kind": "difference", "direction": "higher", "metric": "exact_judge", "a": "one", "b": "other"}],
    }
    write(folder, said)
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "tiny", "launcher=local", "launcher.jobs=2"]) == 0
    assert main(["reproduce", "tiny"]) == 0
    assert "2 done already; nothing to run" in capsys.readouterr().out
    audit(folder)
    assert made(folder)["claims"][0]["verdict"] in ("holds", "contradicted", "not shown")
    assert [row["seeds"] for row in made(folder)["rows"].values()] == [[0], [0]]


# --- no number is invented


def table_of(file: Path, metric: str) -> np.ndarray:
    rows = load(file)[1]
    return grid(rows, "policy", metric) - grid(rows, "reference", metric)


NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?(?![\w])")


def numbers(text: str) -> list[str]:
    return NUMBER.findall(text.replace("**", ""))


def stands_for(token: str, values: list[float]) -> bool:
    """Whether the token is one of the values, rounded to the digits that it shows."""
    plain = token.replace(",", "")
    half = 0.5 * 10.0 ** -len(plain.partition(".")[2])
    return any(abs(float(plain) - value) <= half * (1 + 1e-9) for value in values)


def section(text: str, title: str) -> list[list[str]]:
    """The cells of the body of the table under a heading."""
    own = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in own.splitlines() if line.startswith("| ")]
    return [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in lines[2:]]


def audit(folder: Path) -> None:
    """Every number of table.md's claims and numbers is of table.json or of expected.csv, at its place; table.csv has the same."""
    table, text = made(folder), (folder / "table.md").read_text()
    printed = list(csv.DictReader((folder / "expected.csv").read_text().splitlines()))
    for claim, line in zip(table["claims"], section(text, "Claims"), strict=True):
        free = " ".join([claim["says"], claim["source"], claim["why"], claim["metric"], *claim["a"], *claim["b"], claim["at"]])
        found = list((claim["difference"] or {}).values()) + [claim["gain"]] + [n for side in claim["seeds"] for n in side]
        known(line, free, found)
    for said, ours, line in zip(printed, table["paper"], section(text, "The paper's numbers"), strict=True):
        assert {key: ours[key] for key in said} == said
        known(line, " ".join([*said.values(), ours["verdict"]]), [*(ours["ours"] or {}).values(), ours["n"]])
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    for row, one in zip(rows, [*table["claims"], *table["paper"]], strict=True):
        found = one["difference" if row["block"] == "claim" else "ours"] or {}
        assert {"ours": found.get("value"), **{key: found.get(key) for key in ("low", "high", "p")}} == {
            key: float(row[key]) if row[key] else None for key in ("ours", "low", "high", "p")
        }
        assert row["verdict"] == one["verdict"]
        if row["block"] == "number":
            assert [row[key] for key in ("row", "metric", "value", "tolerance")] == [
                one[key] for key in ("row", "metric", "value", "tolerance")
            ]
    if table["comparison"]:
        assert brief(table["comparison"], depth=3) in text


def known(line: list[str], free: str, found: list[Any]) -> None:
    values = [float(each) for each in found if isinstance(each, int | float)]
    for cell in line:
        for token in numbers(cell):
            assert token in numbers(free) or stands_for(token, values), f"{token}: invented? in {cell}"


def sampled(root: Path, run: str) -> Path:
    return root / "outputs" / "reproduce" / run / "samples.parquet"


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        launching(patch, root)
        patch.setattr(verb, "shortages", lambda runs: [])
        write(root / "experiments" / "first", plan())
        assert main(["reproduce"]) == 0
        assert main(["reproduce", "tier=paper", "to=paper"]) == 0
        shutil.copy(root / "experiments" / "first" / "expected.csv", root / "paper" / "first")
    return root


def test_an_independent_script_finds_the_claims(reproduced: Path) -> None:
    table = made(reproduced / "experiments" / "first")
    how = {key: table[key] for key in ("level", "replicates", "seed")} | {"power": 0.8}

    def moved(row: str, metric: str) -> np.ndarray:
        return np.stack([table_of(sampled(reproduced, run), metric) for run in table["rows"][row]["runs"]]).mean(2)

    both = ("ours", "theirs, strong")
    ours, theirs = ({name: moved(row, name) for name in ("jpeg_compressibility", "brightness")} for row in both)
    name = "jpeg_compressibility"
    leans = [each["brightness"] - each[name] for each in (ours, theirs)]
    told = [
        interval(lambda s, w: mean(ours[name])(s, w) - mean(theirs[name])(s[1:], w), [3, 3], 6, how)[0],
        interval(mean(ours[name]), [3], 6, how)[0],
        interval(lambda s, w: mean(leans[0])(s, w) - mean(leans[1])(s[1:], w), [3, 3], 6, how)[0],
    ]
    for claim, found in zip(table["claims"], told, strict=False):
        assert {key: claim["difference"][key] for key in found} == pytest.approx(found, rel=1e-9, abs=1e-12)
    assert [claim["verdict"] for claim in table["claims"]][:2] == ["holds", "contradicted"]
    gain = min(ours["brightness"].mean(), theirs["brightness"].mean())
    assert table["claims"][3]["gain"] == pytest.approx(gain)
    assert table["claims"][3]["difference"]["value"] == pytest.approx(
        gain * ours[name].mean() / ours["brightness"].mean() - theirs[name].mean()
    )


def test_ours_of_the_paper_tier_are_levels_in_its_unit(reproduced: Path) -> None:
    table = made(reproduced / "paper" / "first")
    base, light, fid, people, guidance, nothing = table["paper"]
    how = {key: table[key] for key in ("level", "replicates", "seed")} | {"power": 0.8}
    files = [sampled(reproduced, run) for run in table["rows"]["ours (1k)"]["runs"]]
    scores = np.stack([100 * grid(load(file)[1], "policy", "brightness") for file in files]).mean(2)
    found = interval(mean(scores), [3], 6, how)[0]
    for key in ("value", "low", "high"):
        assert light["ours"][key] == pytest.approx(found[key])
    assert (light["n"], base["n"]) == (3, 1)
    assert light["verdict"] == ("within tolerance" if abs(found["value"] - 200) <= 20 else "outside")
    assert (fid["ours"]["value"], fid["verdict"]) == (pytest.approx(12.0), "within tolerance")  # 11, 12, 13: of three seeds
    assert fid["ours"]["high"] - 12 == pytest.approx(4.302652729 / 3**0.5)
    assert people["verdict"] == "paper-only: nothing here measures People"
    assert guidance["verdict"] == "paper-only: not a method here"
    assert nothing["verdict"] == "not published here"
    assert people["ours"] is guidance["ours"] is nothing["ours"] is None


def test_every_number_shown_is_one_that_is_there(reproduced: Path) -> None:
    audit(reproduced / "experiments" / "first")
    audit(reproduced / "paper" / "first")
    text = (reproduced / "experiments" / "first" / "table.md").read_text()
    assert "Sandbox tier: checks the direction of claims, not digits." in text
    assert "| ours | brightness |" in text  # a row has its name of runs.yaml
    assert [line[-3] for line in section(text, "The paper's numbers")][:2] == ["not run (paper tier)"] * 2
    html = (reproduced / "experiments" / "first" / "report.html").read_text()
    tex = (reproduced / "experiments" / "first" / "table.tex").read_text()
    for line in made(reproduced / "experiments" / "first")["paper"]:
        assert line["row"] in html
        assert line["value"] in html and line["value"] in tex
    assert "ours (1k) & Light & 200 \\% ($\\pm$ 20)" in tex


@pytest.mark.parametrize("block, column", [("Claims", 3), ("The paper's numbers", 2)])
def test_an_invented_number_is_found(reproduced: Path, tmp_path: Path, block: str, column: int) -> None:
    folder = tmp_path / "first"
    shutil.copytree(reproduced / "experiments" / "first", folder)
    file = folder / "table.md"
    cell = section(file.read_text(), block)[0][column]
    token = numbers(cell)[0]
    file.write_text(file.read_text().replace(cell, cell.replace(token, "7.77")))
    with pytest.raises(AssertionError, match=r"7\.77: invented"):
        audit(folder)


def test_a_row_in_brackets_is_no_argument_of_a_line_break(reproduced: Path) -> None:
    table = made(reproduced / "experiments" / "first")
    table["paper"][0]["row"] = "[50 steps] *"
    assert "{[}50 steps{]} {*} & Light" in latex(table)


def test_committed_tables_show_no_number_that_is_not_there() -> None:
    for file in sorted((Path(__file__).parents[1] / "experiments").glob("*/expected.csv")):
        if (file.parent / "table.json").is_file():
            audit(file.parent)


# --- verdicts, seeds, missing things


@pytest.mark.parametrize(
    "value, tolerance, ours, within",
    [
        ("0.3", "0.1", 0.4, True),  # 0.4 - 0.3 is a little more than 0.1 in binary fractions
        ("0.3", "0.1", 0.2, True),
        ("0.3", "0.1", 0.4001, False),
        ("0.3", "0.1", 0.1999, False),
        ("32.72", "0", 32.72, True),
        ("32.72", "0", 32.721, False),
    ],
)
def test_the_edge_of_a_tolerance(value: str, tolerance: str, ours: float, within: bool) -> None:
    line = dict.fromkeys(COLUMNS.split(","), "") | {"value": value, "tolerance": tolerance}
    assert Printed(**line).within(ours) is within


@pytest.mark.parametrize("more", [[], ["trainer.threads=1", "output=a b", "method.clip=0.25"]])
def test_another_seed_is_as_composed(more: list[str]) -> None:
    first = compose([*words("ddpo"), *more, "seed=0"])
    assert reseeded(first, 12) == compose([*words("ddpo"), *more, "seed=12"])
    with pytest.raises(ValueError, match="compose it anew"):
        reseeded(compose(words("ddpo")), 1)


def test_no_config_reads_its_seed() -> None:
    """As `reseeded` takes for granted."""
    for file in (Path(__file__).parents[1] / "conf").rglob("*.yaml"):
        assert "${seed" not in file.read_text()


def test_a_paper_tier_without_its_weights_says_what_is_missing_and_runs_nothing(
    launches: Launches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = plan()
    said["paper"]["words"] = ["trainer=gpu"]
    gone = ["model=sd15", "model.path=nobody/here", "reward=aesthetic"]
    said["paper"]["rows"]["ours (1k)"] = {"words": ["method=ddpo", *gone]}
    pictures = "eval.real={_target_: alignbench.datasets.pictures.ImageFolder, path: nowhere, size: 64}"
    said["paper"]["rows"]["base"] = {"words": [*words("reference"), pictures], "seeds": [0]}
    write(tmp_path / "experiments" / "first", said)
    write(tmp_path / "experiments" / "second", said)
    monkeypatch.setattr("alignbench.machine.gpus", lambda: 0)
    assert main(["reproduce", "tier=paper"]) == 3
    out, err = capsys.readouterr()
    assert "first: A made-up paper, Table 7, paper tier: 4 runs, 12.5 GPU-hours (its appendix B)" in out
    first = out.partition("second:")[0]
    assert first.count("nobody/here is not here (") == 1  # once for three seeds
    assert "hf download nobody/here" in first
    assert "missing  eval.real.path: nowhere: no such file or folder" in first
    assert "GB of weights to fetch" in first
    assert "missing  device: trainer.accelerator=gpu, but there is no GPU" in first
    assert err == "alignbench: reproduce: tier=paper: first, second: not all that is needed is here, as said above; nothing was run\n"
    assert not launches.launchers


def test_a_paper_tier_with_its_assets_runs_and_continues(launches: Launches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    fetched = Row("reward.path", "warning", "x/y is not here (0.4 GB of it are loaded); the run can fetch it", "hf download x/y")
    monkeypatch.setattr(verb, "shortages", lambda runs: [*(asked.append(len(runs)) or []), fetched])
    write(tmp_path / "experiments" / "first", plan())
    launches.stops = 2
    assert main(["reproduce", "tier=paper"]) == 1
    launches.stops = 1000
    assert main(["reproduce", "tier=paper"]) == 0
    assert (asked, len(launches.jobs)) == ([4, 4], 4)
    assert made(tmp_path / "experiments" / "first")["tier"] == "paper"
    assert main(["reproduce", "tier=paper", "seeds=0"]) == 0
    text = (tmp_path / "experiments" / "first" / "table.md").read_text()
    assert "| 11 (one seed, no interval) | 1 |" in text
    assert "over prompts alone | 1 |" in text
    audit(tmp_path / "experiments" / "first")


def test_torch_is_not_needed_where_all_is_done(reproduced: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from alignbench.__main__ import main\n"
        f"assert main(['reproduce', 'first', 'to={tmp_path}']) == 0\n"
        "sys.exit('torch' in sys.modules or 'lightning' in sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=reproduced)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "first" / "table.md").is_file()


# --- what is refused

Change = Callable[[dict[str, Any]], Any]
FIRST = "experiments/first/runs.yaml: "
BAD: list[tuple[Change, str]] = [
    (lambda p: p.pop("title"), "title: missing"),
    (lambda p: p.update(heading="x"), "heading: no such key"),
    (lambda p: p.update(arxiv=2305.13301), "arxiv: '2305.13301' is no value for it (input should be a valid string)"),
    (lambda p: p.update(seeds=[]), "seeds: '[]' is no value for it"),
    (lambda p: p["sandbox"]["rows"].update(ours="method=ddpo"), "sandbox.rows.ours: "),
    (lambda p: p["sandbox"]["rows"].update(ours=None), "sandbox.rows.ours: "),
    (lambda p: p["sandbox"]["claims"][0].update(kind="better"), "sandbox.claims.0.kind: 'better' is no value for it"),
    (lambda p: p["sandbox"]["claims"][0].pop("metric"), "sandbox.claims, claim 1: kind difference: no metric"),
    (lambda p: p["sandbox"]["claims"][0].update(at="x"), "sandbox.claims, claim 1: kind difference: at is not for it"),
    (lambda p: p["sandbox"]["claims"][0].update(a="our"), "sandbox.claims, claim 1: our: no such row in sandbox.rows; did you mean ours?"),
    (lambda p: p["sandbox"]["claims"][0].update(a=["ours", "start"]), "claim 1: kind difference compares one row with one"),
    (lambda p: p["sandbox"]["claims"][3].update(b="reference"), "claim 4: a and b name rows"),
    (lambda p: p["paper"]["rows"].pop("base"), "paper.rows: no base, which expected.csv has"),
    (lambda p: p["paper"]["rows"].update(guidance={"words": None}), "row guidance: words: null without why"),
    (lambda p: p["paper"]["metrics"].pop("FID"), "paper.metrics: no FID, which expected.csv has; add FID: {name: <ours>}"),
    (lambda p: p["sandbox"]["rows"]["ours"].append("seed=1"), "sandbox.rows.ours: seed=1: seeds and the output are not a row's to say"),
    (lambda p: p["sandbox"]["rows"]["ours"].append("colour=1"), "sandbox.rows.ours: colour"),
]


@pytest.mark.parametrize("change, said", BAD, ids=[said[:50] for _, said in BAD])
def test_a_wrong_plan_is_one_line(
    launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, said: str
) -> None:
    wrong = yaml.safe_load(yaml.safe_dump(plan()))
    change(wrong)
    write(tmp_path / "experiments" / "first", wrong)
    assert main(["reproduce"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("alignbench: " + FIRST)
    assert said in line
    assert not launches.launchers


@pytest.mark.parametrize(
    "expected, said",
    [
        ("", "line 1: its columns are none; write row,metric"),
        ("row,metric\n", "line 1: its columns are row,metric; write row,metric,value"),
        (COLUMNS + "\n", "no line; write one for each number"),
        (EXPECTED.replace("1.5,%,0.2", "1.5,%,0.2,5", 1), "line 2, row base: 12 values for 11 columns"),
        (EXPECTED.replace("1.5", ">1.5", 1), "line 2, row base: value '>1.5' is no number"),
        (EXPECTED.replace("200,%,20", "200,%,"), "line 3, row ours (1k): tolerance '' is no number"),
        (EXPECTED.replace("200,%,20", "200,%,-1"), "line 3, row ours (1k): tolerance -1 is below 0"),
        (EXPECTED.replace("all,V,", "all,W,", 1), "line 2, row base: tag 'W'; write V (verified in the paper) or S"),
        (EXPECTED + "base,Light,2,%,1,,,Table 7,all,V,\n", "line 8, row base: Light of it is there twice on all; keep one"),
        (EXPECTED.replace("base,Light", ",Light"), "line 2: no row; give it"),
    ],
)
def test_wrong_expectations_are_one_line(
    launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str], expected: str, said: str
) -> None:
    write(tmp_path / "experiments" / "first", plan(), expected)
    assert main(["reproduce"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("alignbench: experiments/first/expected.csv: ")
    assert said in line


def test_one_run_is_not_two_benchmarks(launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "experiments" / "first", plan(), EXPECTED + "base,Light,2,%,1,,,Table 7,other,V,\n")
    assert main(["reproduce"]) == 2
    assert "base is one run, and expected.csv has its Light on 2 benchmarks; write a row for each, as 'base, " in capsys.readouterr().err
    said = plan()
    rows = said["paper"]["rows"]
    rows |= {"base, other": rows["base"], "base, all": rows.pop("base")}
    write(tmp_path / "experiments" / "first", said, EXPECTED + "base,Light,2,%,1,,,Table 7,other,V,\n")
    assert main(["reproduce"]) == 0
    audit(tmp_path / "experiments" / "first")


@pytest.mark.parametrize(
    "typed, said",
    [
        (["firsts"], "firsts: no such table; did you mean first?"),
        (["tier=papr"], "tier=papr: no such tier; did you mean paper?"),
        (["seeds=a"], "seeds=a: write different whole numbers"),
        (["seeds=1,1"], "seeds=1,1: write different whole numbers"),
        (["seed=1"], "seed=1: did you mean seeds?"),
        (["to="], "to=: no value"),
        (["retry=yes"], "retry=yes: write true or false"),
        (["launcher.jobs=none"], "launcher.jobs"),
    ],
)
def test_wrong_words(launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str], typed: list[str], said: str) -> None:
    write(tmp_path / "experiments" / "first", plan())
    assert main(["reproduce", *typed]) == 2
    assert said in capsys.readouterr().err


def test_the_example_of_the_page_is_a_plan(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "reproduce.md").read_text()
    example = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])  # type: ignore[index]
    assert f"`{COLUMNS}`" in page
    write(tmp_path / "it", example, f"{COLUMNS}\nDDPO,Aesthetic,7.1,,0.3,DDPO,2305.13301,Table 1,,V,\n")
    table = read(tmp_path / "it")
    assert table.rows("sandbox") == {
        "ddpo": (["method=ddpo", "model=sandbox"], [0, 1, 2]),
        "rwr": (["method=rwr", "model=sandbox"], [0]),
    }
    assert table.rows("paper", [4])["DDPO"] == ([*example["paper"]["rows"]["DDPO"], "trainer=gpu"], [4])


def test_nowhere(launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 2
    assert "experiments: no such folder; go to the root of the repository" in capsys.readouterr().err
    (tmp_path / "experiments" / "notes").mkdir(parents=True)
    assert main(["reproduce"]) == 2
    assert "no folder in it has an expected.csv" in capsys.readouterr().err
