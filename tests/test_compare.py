"""`alignbench compare`: the paired difference of two runs by numbers of our own, and what may not be compared."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import fail, make_run
from scipy.stats import ttest_1samp

from alignbench.__main__ import main
from alignbench.report.record import Record, read_about, read_samples

PROMPTS = [f"prompt {n}" for n in range(12)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder, "ddpo", 0, PROMPTS), make_run(folder, "d3po", 1, PROMPTS)


def changed(run: Path, folder: Path, scores: dict[str, Any] | None = None, **about: Any) -> Path:
    """A copy of the run that says something else of itself, or whose policy has other scores in the first prompt."""
    shutil.copytree(run, folder)
    rows = [row for split in ("test", "validation") for row in read_samples(folder, split)]
    for row in rows:
        if row["who"] == "policy" and row["split"] == "test" and row["prompt_id"] == 0:
            row |= scores or {}
    Record(folder).samples(rows, read_about(folder) | about)
    return folder


def values(run: Path, metric: str) -> np.ndarray:
    rows = sorted((row for row in read_samples(run) if row["who"] == "policy"), key=lambda row: (row["prompt_id"], row["k"]))
    return np.array([row[metric] for row in rows]).reshape(len(PROMPTS), 2)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["compare", *words]) == 0
    return capsys.readouterr().out


def test_differences_are_paired_by_prompt_and_noise(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, *map(str, pair), "replicates=20000")
    for metric in ("scene_judge", "exact_judge", "colour", "diversity"):
        a, b = (values(run, metric) for run in pair)
        found = ttest_1samp((b - a).mean(1), 0)
        low, high = found.confidence_interval(0.95)
        line = next(line for line in out.splitlines() if line.startswith(f"{metric} ") and "[" in line)
        value, *ends = (float(each.strip("[],")) for each in line.split()[-5:-2])
        assert value == pytest.approx((b - a).mean(), abs=0.0006)
        assert ends == pytest.approx([low, high], abs=0.002)  # the bootstrap of a mean is Student's interval, but for its replicates
        assert f"{a.mean():.4g}" in line and f"{b.mean():.4g}" in line
        wins = [round(100 * share) for share in ((b > a).mean(), (b == a).mean(), (b < a).mean())]
        assert f"{metric:<24}{wins[0]} / {wins[1]} / {wins[2]} %" in out
    assert "24 images of 12 test prompts" in out
    assert "no evidence of other trainings" in out


def test_the_other_way_round_is_the_negative(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (printed(capsys, *map(str, way)) for way in (pair, pair[::-1]))
    line, mirrored = (next(line for line in out.splitlines() if line.startswith("colour")) for out in (one, other))
    value, low, high = (float(each.strip("[],")) for each in line.split()[-5:-2])
    assert [-float(each.strip("[],")) for each in mirrored.split()[-5:-2]] == [value, high, low]


def test_only_metrics_of_both_and_only_prompts_with_scores(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = [each for each in read_about(pair[1])["metrics"] if each["name"] != "colour"]
    other = changed(pair[1], tmp_path / "run", {"exact_judge": None}, metrics=metrics)
    out = printed(capsys, str(pair[0]), str(other))
    assert "colour" not in out
    line = next(line for line in out.splitlines() if line.startswith("exact_judge") and "%" in line)
    assert line.endswith("1 prompts without scores of both left out")
    a, b = (values(run, "exact_judge")[1:].astype(float) for run in (pair[0], pair[1]))
    assert f"{a.mean():.4g}" in out and f"{b.mean():.4g}" in out


def test_what_does_not_fit_is_refused_in_one_line(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = read_about(pair[1])["config"]
    noise = changed(pair[1], tmp_path / "noise", config=config | {"eval": config["eval"] | {"noise": 1}})
    judge = changed(
        pair[1], tmp_path / "judge", judges=read_about(pair[1])["judges"] | {"colour": {"name": "colour", "settings": "width=1"}}
    )
    prompts = make_run(tmp_path / "prompts", "d3po", 1, PROMPTS[:5])
    unfinished = make_run(tmp_path / "unfinished", "d3po", 1, PROMPTS)
    fail(unfinished, "ValueError: x")
    for words, said in (
        ([noise], "do not share their test images: noise differs (0 and 1)"),
        ([judge], "two judges under the name colour"),
        ([prompts], "prompts differs (12 and 5)"),
        ([unfinished], "samples.parquet is missing"),
        ([], "1 folders; alignbench compare"),
        ([pair[1], "levels=0.9"], "did you mean level?"),
        ([pair[1], "level=9"], "level 9.0 must lie in"),
    ):
        assert main(["compare", str(pair[0]), *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


def test_same_numbers_but_other_prompts_are_other_images(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_run(tmp_path, "d3po", 1, [f"something else {n}" for n in range(12)])
    assert main(["compare", str(pair[0]), str(other)]) == 2
    assert "other test prompts" in capsys.readouterr().err
