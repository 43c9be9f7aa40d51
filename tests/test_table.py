"""`alignbench table`: every number again by an independent script, failed seeds, and what may not stand side by side."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recompute import recompute

from alignbench.__main__ import main
from alignbench.evaluation.compared import Cell, Run
from alignbench.report.comparison import shown
from alignbench.report.record import Record, read_about, read_samples
from alignbench.table import labels

JUDGE = "eval.judges=[{_target_: alignbench.rewards.jpeg.JpegCompressibility}]"
SMALL = [
    *("model=gaussian", "reward=brightness", "eval=plain", "eval.peak=held_out", JUDGE, "eval.prompts=6", "eval.images=2", "eval.grid=2"),
    *("eval.validation_prompts=3", "eval.every=1", "eval.replicates=100", "epochs=4", "method.images=8", "method.batch=4"),
    *("sampler.steps=3", "method.optimizer.lr=0.03", "method.clip=0.5"),
]
HOW = ["replicates=300", "level=0.9"]


def run(output: Path, method: str, seed: int, *more: str) -> Path:
    words = {word.partition("=")[0]: word for word in [f"method={method}", f"seed={seed}", *SMALL, f"output={output}", *more]}
    before = set(output.glob("*/run.json"))
    assert main(list(words.values())) == 0
    (made,) = set(output.glob("*/run.json")) - before
    return made.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods of three and two seeds: the second of one setting only."""
    output = tmp_path_factory.mktemp("runs")
    for method, seeds in (("ddpo", range(3)), ("kl_rlhf", range(2))):
        for seed in seeds:
            run(output, method, seed)
    return output


def made(folder: Path, *words: str) -> dict[str, Any]:
    assert main(["table", str(folder), *HOW, *words]) == 0
    return json.loads((folder / "table" / "table.json").read_text())


def test_an_independent_script_finds_every_number(runs: Path) -> None:
    table = made(runs)
    (one,) = table["comparisons"]
    by = one["ranked_by"]
    assert by == "jpeg_compressibility"
    folders = {
        row["label"]: [next(runs.glob(f"{row['method']}-*-s{seed}-*")) / "samples.parquet" for seed in row["seeds"]] for row in one["rows"]
    }
    with np.errstate(invalid="ignore"), pytest.warns(RuntimeWarning, match="empty slice"):  # there is no gold here
        told = recompute(folders, by, table)
    seen = 0

    def same(ours: Any, theirs: Any) -> None:
        nonlocal seen
        for end in ("value", "low", "high", "p") if isinstance(ours, dict) else ("",):
            a, b = (each[end] if end else each for each in (ours, theirs))
            assert a == pytest.approx(b, rel=1e-9, abs=1e-9), end
            seen += 1

    for row in one["rows"]:
        name = row["label"]
        for metric, found in row["metrics"].items():
            for part in ("mean", "change", "change_iqm"):
                same(found[part], told[name, metric, part])
            same(found["detectable"], told[name, metric, "change", "detectable"])
            same(found["reference"], told[name, metric, "reference"])
            for part in ("change", "gained"):
                same(row["peak"]["metrics"][metric][part], told[name, metric, f"peak {part}"])
            for point, gain in zip(row["along"]["points"], told[name, metric, "along"], strict=True):
                same(point[metric], gain)
        for metric, fit in row["along"]["fits"].items():
            same(fit["alpha"], told[name, metric, "fit"][0])
            same(fit["beta"], told[name, metric, "fit"][1])
        same(row["gap"], told[name, "held out"])
        assert row["gold_gap"] is None
    for each in one["contrasts"]:
        difference, detectable = told[each["a"], each["b"]]
        same(each["difference"], difference)
        same(each["detectable"], detectable)
        same(each["holm"], told["holm", difference["p"]])
    for each in one["wins"]:
        if (each["a"], each["b"], "wins") not in told:
            there = next(other for other in one["wins"] if (other["a"], other["b"]) == (each["b"], each["a"]))
            assert [each[key] for key in ("win", "tie", "loss")] == [there[key] for key in ("loss", "tie", "win")]
            assert each["probability"]["low"] == pytest.approx(1 - there["probability"]["high"], abs=1e-12)
            continue
        shares, probability = told[each["a"], each["b"], "wins"]
        for key, share in zip(("win", "tie", "loss"), shares, strict=True):
            same(each[key], share)
        same(each["probability"], probability)
    for front in one["fronts"]:
        names = [front["method"]] if front["method"] != "all" else list(folders)
        same(front["area"], told["front", *sorted(names)])
    assert seen > 300
    text = (runs / "table" / "table.md").read_text()
    for row in one["rows"]:
        change = row["metrics"][by]["change"]
        assert f"{row['metrics'][by]['mean']['value']:.4g} ({shown(change, bold=True)})" in text
    assert len(Path(__file__).with_name("recompute.py").read_text().splitlines()) <= 60


def test_the_same_runs_give_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    made(runs)
    made(runs, f"to={tmp_path / 'again'}")
    for name in ("table.json", "table.csv", "table.md", "table.tex", "table.png"):
        assert (runs / "table" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_failed_seed_counts_as_the_reference(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    (lost,) = folder.glob("ddpo-*-s2-*")
    before = {row["label"]: row for row in made(folder)["comparisons"][0]["rows"]}["ddpo"]
    (lost / "samples.parquet").unlink()
    after = {row["label"]: row for row in made(folder)["comparisons"][0]["rows"]}["ddpo"]
    assert after["failed"] == [2]
    assert after["seeds"] == [0, 1, 2]
    rows = [
        {who: [row["brightness"] for row in read_samples(each) if row["who"] == who] for who in ("reference", "policy")}
        for each in sorted(folder.glob("ddpo-*"))
        if each != lost
    ]
    gains = [sum(each["policy"]) / 12 - sum(each["reference"]) / 12 for each in rows]
    assert after["metrics"]["brightness"]["change"]["value"] == pytest.approx(sum(gains) / 3, abs=1e-12)
    assert after["metrics"]["brightness"]["change"]["value"] != pytest.approx(before["metrics"]["brightness"]["change"]["value"])
    assert "3, 1 failed" in (folder / "table" / "table.md").read_text()
    for other in folder.glob("kl_rlhf-*"):
        (other / "samples.parquet").unlink()
    table = made(folder)
    assert sorted(table["without_a_row"]) == sorted(each.name for each in folder.glob("kl_rlhf-*"))
    assert "No seed of these finished" in (folder / "table" / "table.md").read_text()


def test_a_failed_seed_is_missing_from_evaluations_of_its_method_too(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    kept = [next(folder.glob(f"ddpo-*-s{seed}-*")) for seed in (0, 1)]
    for each in kept:
        for scale in ("0.5", "0.25"):
            assert main(["evaluate", f"run={each}", f"scale={scale}", f"to={folder}/ev-{each.name}-{scale}"]) == 0
    (next(folder.glob("ddpo-*-s2-*")) / "samples.parquet").unlink()
    (one,) = made(folder)["comparisons"]
    rows = {row["label"]: row for row in one["rows"]}
    halves = next(row for label, row in rows.items() if "scale=0.5" in label)
    assert (halves["seeds"], halves["failed"]) == ([0, 1, 2], [2])
    assert (rows["ddpo"]["seeds"], rows["ddpo"]["failed"]) == ([0, 1, 2], [2])
    front = next(each for each in one["fronts"] if each["method"] == "ddpo")
    assert len(front["points"]) == 3
    cells = [Cell(f"{n}", [Run(read_about(each), read_samples(each)) for each in own], [], None) for n, own in enumerate((kept, [
        folder / f"ev-{each.name}-0.5" for each in kept
    ]))]  # fmt: skip
    assert cells[0].trainings == cells[1].trainings  # so their seeds are drawn together


def test_settings_of_one_method_are_rows_of_their_own(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    run(folder, "kl_rlhf", 0, "method.kl=5.0")
    labels = [row["label"] for row in made(folder)["comparisons"][0]["rows"]]
    (other,) = [label for label in labels if label == "kl_rlhf, kl=5.0"]
    assert {label.partition(",")[0] for label in labels} == {"ddpo", "kl_rlhf"}
    (front,) = [each for each in made(folder)["comparisons"][0]["fronts"] if each["method"] == "kl_rlhf"]
    assert other in [point["label"] for point in front["points"]]
    assert len(front["points"]) == 2


def test_rows_that_no_setting_tells_apart_keep_names_of_their_own() -> None:
    config = {"method": {"lr": 1.0}, "reward": {"noise": 0.1}, "seed": 0}
    one = {"choices": {"method": "ddpo", "reward": "scene_panel"}, "cell": "a" * 64, "config": config}
    other = one | {"config": config | {"reward": {"noise": 0.5}}, "cell": "b" * 64}
    assert labels([one, other]) == ["ddpo, reward.noise=0.1", "ddpo, reward.noise=0.5"]
    colour = other | {"choices": {"method": "ddpo", "reward": "colour"}}
    assert labels([one, colour]) == ["ddpo, reward=scene_panel", "ddpo, reward=colour"]
    edited = one | {"cell": "c" * 64}  # a file with another content
    assert labels([one, edited]) == ["ddpo, aaaaaa", "ddpo, cccccc"]


def test_prompts_without_a_score_are_left_out_of_all_rows(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    lost = next(folder.glob("ddpo-*-s1-*"))
    rows = read_samples(lost) + read_samples(lost, "validation")
    prompt = rows[0]["prompt_id"]
    for row in rows:
        if row["split"] == "test" and row["prompt_id"] == prompt and row["who"] == "policy":
            row["brightness"] = None
        if row["split"] == "validation" and row["epoch"] == 2:
            row["jpeg_compressibility"] = None
    Record(lost).samples(rows, read_about(lost))
    (one,) = made(folder)["comparisons"]
    assert one["left_out"] == 1
    assert "1 prompts are left out of all rows" in (folder / "table" / "table.md").read_text()
    row = next(row for row in one["rows"] if row["method"] == "kl_rlhf")
    own = [
        each for run in folder.glob("kl_rlhf-*") for each in read_samples(run) if each["prompt_id"] != prompt and each["who"] == "policy"
    ]
    assert row["metrics"]["kl"]["mean"]["value"] == pytest.approx(sum(each["kl"] for each in own) / len(own), abs=1e-9)
    points = {point["epoch"]: point for row in one["rows"] if row["method"] == "ddpo" for point in row["along"]["points"]}
    assert points[2]["jpeg_compressibility"] is None
    assert points[1]["jpeg_compressibility"] is not None


def test_change_at_a_divergence_that_a_method_has_is_its_own(runs: Path) -> None:
    (one,) = made(runs)["comparisons"]
    fronts = {front["method"]: front for front in one["fronts"]}
    least = min((front for name, front in fronts.items() if name != "all"), key=lambda front: front["points"][-1]["x"])
    assert least["at"] == least["points"][-1]["x"]
    assert least["matched"]["value"] == pytest.approx(least["points"][-1]["y"], abs=1e-12)


def test_other_noise_is_another_comparison(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    run(folder, "ddpo", 0, "eval.noise=1")
    assert [len(each["rows"]) for each in made(folder)["comparisons"]] in ([1, 2], [2, 1])


@pytest.mark.parametrize(
    "words, said",
    [
        (["metric=brightness"], "brightness was trained on, and is no evidence; choose jpeg_compressibility"),
        (["metric=jpeg_comp"], "did you mean jpeg_compressibility?"),
        (["metric=kl"], "no judge that every row has"),
        (["level=1.5"], "level 1.5 must lie in"),
        (["replicates=10"], "replicates 10 be 100 or more"),
        (["power=0.2"], "power 0.2 must lie in"),
        (["replicates=many"], "many"),
        (["colour=red"], "alignbench table"),
        (["to="], "no value"),
        (["nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(runs: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["table", str(runs), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_two_judges_of_one_name_never_stand_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, width in enumerate((0.35, 0.5)):
        run(tmp_path, "ddpo", seed, f"eval.judges=[{{_target_: alignbench.rewards.colour.Colour, width: {width}}}]")
    cells = [each / "samples.parquet" for each in tmp_path.glob("ddpo-*")]
    assert read_about(cells[0].parent)["judges"]["colour"] != read_about(cells[1].parent)["judges"]["colour"]
    assert main(["table", str(tmp_path)]) == 2
    assert "two judges under the name colour" in capsys.readouterr().err


def test_an_empty_folder_and_one_without_results(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(tmp_path)]) == 2
    assert "no runs in it" in capsys.readouterr().err
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    for each in folder.glob("*/samples.parquet"):
        each.unlink()
    assert main(["table", str(folder)]) == 2
    assert "none of the 5 runs is finished" in capsys.readouterr().err


def test_torch_is_not_needed_for_a_table(runs: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'lightning', 'diffusers', 'transformers'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from alignbench.__main__ import main\n"
        f"sys.exit(main(['table', {str(runs)!r}, 'replicates=100']))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert read_about(next(runs.glob("ddpo-*")))["seed"] in (0, 1, 2)
