"""The page of many runs: its numbers are the table's, prompts are text, a picture stands in it once, nothing is fetched, the same bytes."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import fail, make_run
from test_report import HOSTILE, Page, contrast

from alignbench.__main__ import main
from alignbench.evaluation.crossed import Bootstrap
from alignbench.report.charts import SHADES, shape
from alignbench.report.comparison_page import page
from alignbench.report.pictures import BOUND, Album
from alignbench.report.record import Record, read_about, read_samples
from alignbench.reporting import write
from alignbench.table import Found, compared, found_in

HOW = Bootstrap(replicates=100, level=0.95, seed=0)
CLAIMS = [
    {"says": "DDPO <b>beats</b> all", "source": "paper & table", "verdict": "undecided", "value": 0.02, "low": -0.01, "high": 0.05},
    {"says": "nothing is measured", "source": "", "verdict": "not tried", "value": None, "low": None, "high": None},
]


def computed(folder: Path, metric: str = "") -> tuple[list[Found], dict[str, Any]]:
    found = list(found_in([folder]))
    return found, compared(found, metric, HOW, 0.8)


def written(folder: Path, **more: Any) -> str:
    found, made = computed(folder)
    return page(made, [each.folder for each in found], **more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods of three seeds, one of which failed."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("ddpo", "d3po", "pxpo"):
        for seed in range(3):
            run = make_run(folder, method, seed, HOSTILE)
    fail(run, "RuntimeError: <b>the loss</b> is not a number")
    return folder


@pytest.fixture(scope="module")
def text(runs: Path) -> str:
    return written(runs, title="Three <i>methods</i>", intro="One paragraph & more.\n\nAnother <script>.", claims=CLAIMS)


def words(text: str) -> str:
    return " ".join(Page(text[text.index("<body>") :]).text.split())


def test_numbers_are_those_of_the_table_at_the_digits_shown(runs: Path, text: str) -> None:
    _, made = computed(runs)
    (one,) = made["comparisons"]
    table = Page(text[text.index('<table class="table">') : text.index("</table>", text.index('<table class="table">'))])
    shown = {float(value) for value, _ in table.data}
    wanted = set()
    for row in one["rows"]:
        for found in row["metrics"].values():
            if found["label"] in ("trained", "gold", "held out"):
                wanted |= {found["reference"], found["mean"]["value"], *(found["change"][end] for end in ("value", "low", "high"))}
    assert shown == wanted
    everywhere = {*numbers(made), *numbers(CLAIMS), *(100 * each[key] for each in one["wins"] for key in ("win", "tie", "loss"))}
    everywhere |= {sum(each["values"]) / len(each["values"]) for row in one["rows"] for each in row["sets"]}  # means over seeds
    data = Page(text).data
    assert len(data) > 150
    for value, seen in data:
        assert float(value) in everywhere
        mantissa, _, power = seen.replace("\N{MINUS SIGN}", "-").replace(",", "").partition("e")
        digits = int(power or 0) - len(mantissa.partition(".")[2])
        assert float(f"{mantissa}e{power or 0}") == pytest.approx(float(value), abs=0.51 * 10.0**digits)


def numbers(said: Any) -> Iterator[float]:
    if isinstance(said, dict | list):
        for each in said.values() if isinstance(said, dict) else said:
            yield from numbers(each)
    elif isinstance(said, int | float):
        yield float(said)


def test_what_people_wrote_is_text(text: str) -> None:
    parsed = Page(text)
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"iframe", "object", "embed", "link", "base", "form", "b", "i"})
    assert not [name for _, attrs in parsed.tags for name in attrs if name.startswith("on") or name == "style"]
    for prompt in HOSTILE[:7]:
        assert prompt in parsed.text
    for said in ("Three <i>methods</i>", "Another <script>.", "DDPO <b>beats</b> all", "paper & table", "<b>the loss</b> is not a number"):
        assert said in parsed.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)


def test_nothing_is_fetched_and_only_its_own_script_and_style_run(text: str) -> None:
    parsed = Page(text)
    assert not re.search(r"https?:|@import|url\(", text)
    addresses = {name: str(value) for _, attrs in parsed.tags for name, value in attrs.items() if name in ("href", "src", "srcset")}
    assert all(address.startswith(("data:image/", "#")) for address in addresses.values())
    policy = next(str(attrs["content"]) for tag, attrs in parsed.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_links_lead_somewhere_and_ids_are_unique(text: str) -> None:
    parsed = Page(text)
    ids = [str(attrs["id"]) for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {str(attrs["href"])[1:] for tag, attrs in parsed.tags if tag == "a"}
    assert len(links) >= 9
    assert links <= set(ids)


def test_a_picture_stands_in_the_page_once(runs: Path, text: str) -> None:
    addresses = re.findall(r"data:image/png;base64,[A-Za-z0-9+/=]+", text)
    kept = {
        base64.b64encode((run / "samples" / row["image"]).read_bytes()).decode()
        for run in runs.iterdir()
        if (run / "samples.parquet").is_file()
        for row in read_samples(run)
        if row["image"]
    }
    assert len(addresses) == len(set(addresses))
    assert {each.partition(",")[2] for each in addresses} == kept
    assert len(kept) > 40


def test_the_same_files_give_the_same_bytes(runs: Path, text: str, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(runs, copy)
    found, made = computed(runs)
    folders = [each.folder for each in found]
    assert page(made, folders) == page(made, folders[::-1])
    assert written(copy, title="Three <i>methods</i>", intro="One paragraph & more.\n\nAnother <script>.", claims=CLAIMS) == text
    alone = written(runs, machine=False)
    for run in copy.iterdir():
        Record(run).timing({"device": "an <i>H100</i>", "seconds": {"training": 1e6}, "versions": {"torch": "9"}})
    assert written(copy, machine=False) == alone
    assert "an <i>H100</i> (9 runs)" in words(written(copy))
    assert "cpu x86_64" in words(text)
    assert "cpu x86_64" not in alone


def test_the_summary_comes_first_and_says_who_who_not_and_why(text: str) -> None:
    start = words(text)[:1500]
    assert re.search(r"(d3po|ddpo)( and ddpo)? raises? exact_judge", start)
    assert "8 finished of 3 methods, seeds 0, 1, 2; 1 failed, and each counts as the reference." in start
    assert "scene_judge by all. That is no evidence of quality by itself" in start
    assert "Equal budget: reward queries 256 each (not equal: network evaluations" in start
    assert text.index('id="summary"') < text.index('id="claims"') < text.index('id="c1-table"') < text.index('id="c1-curves"')
    order = [text.index(f'id="c1-{name}"') for name in ("curves", "front", "over", "wins", "cost", "grid")]
    assert order == sorted(order)
    assert order[-1] < text.index('id="failed"')


def test_a_sentence_for_each_outcome(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path, "ddpo", seed, HOSTILE)
    _, made = computed(tmp_path)
    (one,) = made["comparisons"]
    change = one["rows"][0]["metrics"]["exact_judge"]["change"]
    for ends, said in (
        ((0.01, 0.03), "ddpo raises exact_judge, by"),
        ((-0.03, -0.01), "lowers exact_judge, by"),
        ((-1, 1), "is undecided"),
    ):
        change["low"], change["high"] = ends
        change["value"] = sum(ends) / 2
        assert said in words(page(made, list(tmp_path.iterdir())))
    one["ranked_by"] = None
    for key in ("wins", "fronts", "contrasts"):
        one[key] = []
    assert "Methods are not ranked" in words(page(made, list(tmp_path.iterdir())))


def test_a_line_for_each_seed_and_the_mean(runs: Path, text: str) -> None:
    charts = re.findall(r'<svg class="chart".*?</svg>', text, re.DOTALL)
    curves = [each for each in charts if 'class="thin' in each]
    assert len(curves) == 6  # two judges over divergence and over two budgets
    for each in curves:
        assert each.count('class="thin') == 3 + 3 + 2
        assert each.count('class="line') == 3
    history = [json.loads(line) for line in next(runs.glob("ddpo-*-s0-*/metrics.jsonl")).read_text().splitlines()]
    assert "network evaluations" in curves[2]
    ends = [json.loads(each.read_text().splitlines()[-1])["scene_judge"] for each in runs.glob("ddpo-*/metrics.jsonl")]
    assert f"{sum(ends) / 3:.4g} at {history[-1]['reward_queries']}" in curves[1]


def test_the_mean_is_over_epochs_that_every_seed_validated(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    history = next((tmp_path / "runs").glob("ddpo-*-s1-*/metrics.jsonl"))
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:-1]))
    whole, less = (re.findall(r'<svg class="chart".*?</svg>', written(each), re.DOTALL)[1] for each in (runs, tmp_path / "runs"))
    assert (whole.count('class="mark'), less.count('class="mark')) == (15, 14)
    assert less.count('class="thin') == whole.count('class="thin')


def test_marks_differ_where_colours_do_not() -> None:
    assert len({shape(n, 3.0) for n in range(4)}) == 4
    assert shape(0, 3.0) != shape(SHADES, 3.0)


def test_contrast_in_light_and_dark(text: str) -> None:
    blocks = re.findall(r":root[^{]*\{([^}]*--paper[^}]*)\}", text)
    themes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in blocks]
    assert len(themes) == 3
    assert themes[1] == themes[2]
    for theme in themes:
        for ground in ("paper", "card", "tint"):
            assert all(contrast(theme[ink], theme[ground]) >= 4.5 for ink in ("ink", "muted", "accent"))
        assert all(contrast(theme[f"c{n}"], theme["paper"]) >= 4.5 for n in range(SHADES))


def test_other_seeds_failed_runs_and_settings(runs: Path, text: str) -> None:
    seeds = [json.loads(str(attrs["data-seeds"])) for tag, attrs in Page(text).tags if tag == "figure" and "data-seeds" in attrs]
    assert {len(each) for each in seeds} == {1, 2, 3}
    assert [each["seed"] for each in seeds[1]] == [0, 1, 2]
    (lost,) = [run for run in runs.iterdir() if not (run / "samples.parquet").is_file()]
    assert f"{lost.name}pxpo2RuntimeError: <b>the loss</b> is not a number" in words(text)
    (lost / "error.txt").rename(lost / "kept")
    assert "not finished; the command that began it continues it" in words(written(runs))
    (lost / "kept").rename(lost / "error.txt")
    assert "clip: 0.01" in words(text)
    assert "python -m alignbench method=ddpo seed=1" in words(text)


def noise(prompt: int, state: int) -> np.ndarray:
    return np.random.default_rng([prompt, state]).integers(0, 256, (512, 512, 3), np.uint8)


@pytest.mark.slow
def test_six_methods_and_five_seeds_of_noise_stay_under_8_megabytes(tmp_path: Path) -> None:
    for method in ("ddpo", "d3po", "pxpo", "kl_rlhf", "rwr", "pso"):
        for seed in range(5):
            make_run(tmp_path, method, seed, HOSTILE, paint=noise)
    text = written(tmp_path)
    assert len(text.encode()) < 8e6
    assert len(set(re.findall(r"data:image/webp;base64,[A-Za-z0-9+/=]+", text))) == 8 + 6 * 5 * 8


def test_large_pictures_share_one_size_within_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    album = Album()
    for n in range(3):
        Image.fromarray(noise(n, 0)).save(tmp_path / f"{n}.png")
        assert album.add(tmp_path / f"{n}.png") == n
    assert album.add(tmp_path / "1.png") == 1
    assert album.add(tmp_path / "none.png") is None
    whole, side = album.addresses()
    assert side == 512
    assert BOUND > sum(map(len, whole)) > 200_000
    monkeypatch.setattr("alignbench.report.pictures.BOUND", 100_000)
    small, side = album.addresses()
    assert 64 < side < 512
    assert sum(map(len, small)) <= 100_000
    monkeypatch.setattr("alignbench.report.pictures.BOUND", 100)
    with pytest.raises(ValueError, match="3 pictures do not fit"):
        album.addresses()


def test_two_comparisons_stand_on_one_page(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    other = next(folder.glob("ddpo-*-s0-*"))
    about = read_about(other) | {"hash": "f" * 64}
    about["config"]["eval"]["noise"] = 1
    Record(folder / "other").open(about["config"], about)
    shutil.copytree(other / "samples", folder / "other" / "samples", dirs_exist_ok=True)
    Record(folder / "other").samples(read_samples(other) + read_samples(other, "validation"), about)
    text = written(folder)
    assert {'id="c1"', 'id="c2"'} <= set(re.findall(r'id="c\d"', text))
    test_links_lead_somewhere_and_ids_are_unique(text)


# --- the verb


def test_the_verb_writes_the_page_and_the_table_without_torch(runs: Path, tmp_path: Path) -> None:
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in ("torch", "lightning", "diffusers", "transformers"))
    words = ["report", str(runs), f"to={tmp_path}", "replicates=100", "level=0.9"]
    code = f"import sys; {blocked}; from alignbench.__main__ import main; sys.exit(main({words!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'report.html'}\n"
    assert {each.name for each in tmp_path.iterdir()} == {"report.html", *(f"table.{kind}" for kind in ("md", "tex", "csv", "json", "png"))}
    assert "Change, 90 % interval" in (tmp_path / "report.html").read_text(encoding="utf-8")
    made = json.loads((tmp_path / "table.json").read_text())
    assert made["level"] == 0.9
    assert main(["table", str(runs), f"to={tmp_path / 'table'}", "replicates=100", "level=0.9"]) == 0
    for each in (tmp_path / "table").iterdir():
        assert each.read_bytes() == (tmp_path / each.name).read_bytes()


def test_the_page_lies_beside_the_runs_and_is_no_run(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    for _ in range(2):
        assert main(["report", str(tmp_path / "runs"), "replicates=100"]) == 0
    assert (tmp_path / "runs" / "report" / "report.html").is_file()


def test_a_single_run_gets_its_own_page_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_report import fake_run

    fake_run(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'report.html'}\n"
    assert (tmp_path / "run" / "report.html").is_file()
    assert main(["report", str(tmp_path / "run"), "level=0.9"]) == 2
    assert "level=0.9" in capsys.readouterr().err
    (tmp_path / "run" / "result.json").unlink()
    assert main(["report", str(tmp_path / "run")]) == 2
    assert "result.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [(["nowhere"], "report: nowhere: no such folder"), (["clour=1"], "alignbench report"), (["level=2"], "report: bootstrap")],
)
def test_what_is_wrong_is_said_in_one_line(runs: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_sweep_calls_write(runs: Path, tmp_path: Path) -> None:
    found, made = computed(runs)
    write(found, made, tmp_path / "to", title="A sweep", intro="Why.", claims=CLAIMS, machine=False)
    assert "<title>A sweep: alignbench</title>" in (tmp_path / "to" / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "to" / "table.json").read_text()) == json.loads(json.dumps(made))
