"""The page and the grid: made of artefacts alone, byte for byte the same, harmless whatever the prompts hold."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from alignbench.report.page import grid_picture, number, render
from alignbench.report.record import Record, read_metrics, read_result, read_samples

HOSTILE = [
    "a small red circle at the left on a blue background",
    "<script>alert('script')</script>",
    "\"><img src=x onerror=alert(1)> ' onmouseover='alert(2)",
    "</style></details></svg><iframe src=//example.org></iframe><!--",
    "دائرة حمراء صغيرة على خلفية زرقاء \u202e txet desrever",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; &#60;i&#62;",
    "a very long prompt, " * 99 + "with an end <b>",
    "NUL \x00, escape \x1b[31m, \ud7ff, a newline\nand a\ttab",
    "x" * 155,
]
COLOURS = ["#c0392b", "#2468c0", "#2f9e54", "#d9a514", "#8e44ad", "#e67e22", "#16a085", "#444444", "#d04080"]


def drawn(colour: str, shift: int) -> np.ndarray:
    picture = Image.new("RGB", (32, 32), "#dfe7f2")
    ImageDraw.Draw(picture).ellipse((8 + shift, 9, 20 + shift, 21), fill=colour)
    return np.asarray(picture)


def fake_run(folder: Path, prompts: list[str] = HOSTILE, k: int = 1) -> Record:
    rng = np.random.Generator(np.random.PCG64(0))
    record = Record(folder)
    record.open(
        {"seed": 0, "epochs": 25, "method": {"_target_": "alignbench.methods.ddpo.DDPO", "clip": 1e-2, "learning_rate": 3e-5}}, {"seed": 0}
    )
    rows: list[dict[str, Any]] = []
    for n, prompt in enumerate(prompts):
        for image in range(k):
            for who in ("reference", "policy"):
                name = f"{n}-{image}-{who}.png"
                record.picture(name, drawn(COLOURS[n % len(COLOURS)] if who == "policy" else COLOURS[(n * 5 + 1) % 9], n - 4))
                score, colour, kl = rng.uniform(0.4, 1.0), rng.uniform(0.2, 0.9), rng.uniform(2, 9) * (who == "policy")
                rows.append(
                    {"who": who, "split": "test", "prompt_id": n, "prompt": prompt, "k": image, "image": name}
                    | {"scene_judge": score, "scene_judge_exact": float(score > 0.7), "colour": colour, "kl": kl}
                )
    record.samples(rows, {})
    history = [
        {"epoch": e, "split": split, "reward_queries": 64 * e, "network_evaluations": 1920 * e, "kl": 0.05 * e**1.5, "reward": reward}
        for e in range(26)
        for split, reward in (("train", 0.79 + 0.004 * e + rng.normal(0, 0.01)), ("validation", 0.81 + 0.0036 * e))
        if split == "train" or e % 5 == 0
    ]
    record.metrics(history)
    record.result(
        {
            "format": 1,
            "choices": {"method": "ddpo", "model": "sandbox", "reward": "scene_judge", "dataset": "scenes", "sampler": "ddim"},
            "seed": 0,
            "hash": "0123456789abcdef" * 4,
            "results_version": 1,
            "track": "multi_step",
            "sampler": {"name": "ddim", "steps": 10, "eta": 1.0, "guidance": 3.0},
            "adapter": "full",
            "trainable_parameters": 2_345_678,
            "epochs": 25,
            "metrics": [
                metric("scene_judge", "trained", 0.8123456, 0.9012345, [0.0487, 0.1295], note="share of the five attributes"),
                metric("scene_judge_exact", "gold", 0.59375, 0.671875, [0.0052, 0.1511], note="all five attributes right"),
                metric("colour", "held out", 0.5518, 0.5499, [-0.0131, 0.0094], note="closeness to the prompt's colours"),
                metric("kl", "divergence", 0.0, 6.2519, [5.9113, 6.5924], unit="nats", larger=False, note="sum of the step KLs"),
                metric("pixel_diversity", "diversity", 0.1519, 0.1174, [-0.0441, -0.0249], note="mean distance within a prompt"),
            ],
            "sets": [
                {"name": name, "value": value, "space": "readings", "against": "reference", "who": "policy"}
                | {"images": 192, "images_against": 190}
                for name, value in (("frechet", 0.012345), ("kid", -0.00021), ("coverage", None))
            ],
            "meters": {"reward_queries": 1600, "network_evaluations": {"policy": 96_000, "reference": 16_000}},
            "weights": {"reference": "fedcba9876543210" * 4, "policy": "00112233445566778899aabbccddeeff" * 2},
        }
    )
    return record


def metric(name: str, label: str, a: float, b: float, interval: list[float] | None, **facts: Any) -> dict[str, Any]:
    return {"name": name, "label": label, "reference": a, "policy": b, "difference": b - a, "interval": interval} | {
        "unit": facts.get("unit", "0 to 1"),
        "larger_is_better": facts.get("larger", True),
        "note": facts.get("note", ""),
        "prompts": 48,
        "images": 192,
    }


class Page(HTMLParser):
    """What a parser makes of the page: its tags with attributes, its visible text, and its `data` elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data: list[tuple[str, str]] = []
        self._value: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "data":
            self._value = dict(attrs)["value"]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._value is not None:
            self.data.append((self._value, data))
            self._value = None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fake_run(folder, k=2)
    render(folder)
    return folder


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def edited(run: Path, folder: Path, **changes: Any) -> str:
    """The page of a copy of the run, with some keys of result.json changed."""
    shutil.copytree(run, folder)
    Record(folder).result(read_result(folder) | changes)
    render(folder)
    return (folder / "report.html").read_text(encoding="utf-8")


def words(text: str) -> str:
    return " ".join(Page(text[text.index("<body>") :]).text.split())


def test_prompts_are_text_and_nothing_else(text: str) -> None:
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "embed", "link", "base", "form", "b", "i"})
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "<script" not in text.lower()
    assert "&lt;script&gt;alert(&#39;script&#39;)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in page.text
    for prompt in HOSTILE[:7]:
        assert prompt in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)


def test_the_page_reaches_for_nothing_outside_itself(text: str) -> None:
    page = Page(text)
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    addresses = [value for _, attrs in page.tags for name, value in attrs.items() if name.split(":")[-1] in ("href", "src", "srcset")]
    assert addresses
    assert all(value and value.startswith(("data:image/png;base64,", "#")) for value in addresses)
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_names_and_command_are_escaped_too(run: Path, tmp_path: Path) -> None:
    hostile = "<img src=x>$a_b$"
    choices = read_result(run)["choices"] | {"reward": hostile, "method": hostile}
    metrics = [metric(hostile, "trained", 0.1, 0.2, [0.05, 0.15], note=hostile, unit=hostile)]
    page = edited(
        run, tmp_path / "run", choices=choices, metrics=metrics, command=f"python -m alignbench {hostile}", weights={hostile: hostile}
    )
    assert {attrs["src"][:5] for tag, attrs in Page(page).tags if tag == "img" and attrs["src"]} == {"data:"}
    assert page.count("<img src=x>") == 0
    assert words(page).count(hostile) > 8


def test_same_files_same_bytes(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(run, copy)
    Record(copy).timing({"started": "2001-01-01T00:00:00", "host": "other"})
    for folder in (run, copy):
        render(folder)
        grid_picture(folder)
    for name in ("report.html", "samples/grid.png"):
        assert (run / name).read_bytes() == (copy / name).read_bytes()


def test_a_plotting_style_of_the_machine_changes_nothing(run: Path, text: str) -> None:
    import matplotlib

    with matplotlib.rc_context({"axes.linewidth": 9, "svg.fonttype": "path", "axes.grid": False, "lines.markeredgewidth": 5}):
        render(run)
    assert (run / "report.html").read_text(encoding="utf-8") == text


def test_numbers_are_those_of_the_record(run: Path, text: str) -> None:
    data = Page(text).data
    recorded = {float(value) for value, _ in data}
    for row in read_result(run)["metrics"]:
        assert {row["reference"], row["policy"], row["difference"], *row["interval"]} <= recorded
    for row in read_samples(run):
        assert {row["scene_judge"], row["scene_judge_exact"], row["colour"]} <= recorded
    for value, seen in data:
        digits = seen.replace("\N{MINUS SIGN}", "-").replace(",", "")
        assert float(digits) == pytest.approx(float(value), abs=0.51 * 10 ** -len(digits.partition(".")[2]))
    for count in ("1,600", "96,000", "16,000", "2,345,678"):
        assert count in text


def test_sets_stand_with_their_numbers_of_images(run: Path, tmp_path: Path, text: str) -> None:
    assert "policy against reference readings; 192 and 190 images0.0123\N{MINUS SIGN}0.0002–" in words(text)
    assert {"0.012345", "-0.00021"} <= {value for value, _ in Page(text).data}
    assert "As sets" not in edited(run, tmp_path / "run", sets=[])


def test_first_sentence(text: str) -> None:
    start = words(text)
    assert "scene_judge, the reward it was trained on, rose on 48 unseen test prompts from 0.812 to 0.901: +0.089 [0.049, 0.130]." in start
    assert "colour, held out from training, is undecided" in start
    assert "this one run: another training seed may land outside" in start


@pytest.mark.parametrize(
    "interval, larger, label, sentence, verdict",
    [
        ([0.05, 0.15], True, "held out", "rose on", "▲ better"),
        ([0.05, 0.15], False, "held out", "rose on", "▲ worse"),
        ([-0.15, -0.05], True, "gold", "fell on", "▼ worse"),
        ([-0.15, -0.05], True, "trained", "fell on", "▼ fell trained on: no verdict"),
        ([0.0, 0.15], True, "gold", "is undecided on", "undecided"),
        ([0.05, 0.15], None, "diversity", "No reward of this run has an interval.", "▲ rose"),
        ([0.05, 0.15], False, "divergence", "No reward of this run has an interval.", "▲ rose a cost: no verdict"),
        (None, True, "gold", "No reward of this run has an interval.", "no interval"),
    ],
)
def test_verdicts(
    run: Path, tmp_path: Path, interval: list[float] | None, larger: bool | None, label: str, sentence: str, verdict: str
) -> None:
    sign = -1 if interval and interval[0] < 0 else 1
    page = words(edited(run, tmp_path / "run", metrics=[metric("m", label, 0.5, 0.5 + 0.1 * sign, interval, larger=larger)]))
    assert sentence in page
    assert f"images {verdict} As sets of images" in page


def test_decimals_keep_an_interval_off_zero(run: Path, tmp_path: Path) -> None:
    page = words(edited(run, tmp_path / "run", metrics=[metric("m", "trained", 0.5, 0.55, [0.0003, 0.0997])]))
    assert "+0.0500 [0.0003, 0.0997]" in page


def test_number() -> None:
    assert number(1234.5, 1) == "1,234.5"
    assert number(-0.004, 2, signed=True) == "0.00"
    assert number(-0.5, 1) == "\N{MINUS SIGN}0.5"


def test_pictures_are_named_and_enlarged_sharp(text: str) -> None:
    pictures = [attrs for tag, attrs in Page(text).tags if tag == "img"]
    assert len(pictures) == 2 * 2 * len(HOSTILE)
    assert all(picture["alt"] and picture["class"] == "tiny" and picture["width"] == "32" for picture in pictures)
    assert "img.tiny { image-rendering: pixelated; }" in text


def test_headings_of_tables_have_a_scope_and_ids_are_unique(text: str) -> None:
    page = Page(text)
    assert ("html", {"lang": "en"}) in page.tags
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in page.tags if tag == "th")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {str(value)[1:] for tag, attrs in page.tags for value in [attrs.get("href")] if tag == "use"}
    assert targets
    assert targets <= set(ids)


def contrast(a: str, b: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_in_light_and_dark(text: str) -> None:
    themes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{([^}]*)\}", text)]
    assert len(themes) == 2
    for theme in themes:
        for ground in ("paper", "card", "tint"):
            for ink in ("ink", "muted", "accent", "good", "bad"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)


def test_without_validation_or_pictures(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    Record(folder).metrics([row for row in read_metrics(folder) if row["split"] == "train"])
    Record(folder).samples([row | {"image": ""} for row in read_samples(folder)], {})
    render(folder)
    grid_picture(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert "<img" not in page


def test_pictures_come_from_the_run_folder_alone(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.copy(run / "samples" / "0-0-policy.png", folder / "secret.png")
    Record(folder).samples([row | {"image": "../secret.png"} for row in read_samples(folder)], {})
    with pytest.raises(ValueError, match="picture name"):
        render(folder)
    with pytest.raises(ValueError, match="picture name"):
        grid_picture(folder)


def test_grid_picture_holds_every_prompt(run: Path) -> None:
    grid_picture(run)
    with Image.open(run / "samples" / "grid.png") as picture:
        grid = np.asarray(picture)
    rows = -(-len(HOSTILE) // 2)
    assert grid.shape[0] == 26 + rows * 210
    for n in (0, 3, 8):
        with Image.open(run / "samples" / f"{n}-0-policy.png") as picture:
            colour = np.asarray(picture)[15, 10 + n - 4 + 4]
        left, top = n % 2 * 352 + 16 + 164, n // 2 * 210 + 26 + 42
        assert (grid[top : top + 160, left : left + 160] == colour).all(-1).any()


def test_the_report_imports_no_torch() -> None:
    modules = ["torch", "lightning", "hydra", "omegaconf", "diffusers", "transformers"]
    code = f"import sys, json, alignbench.report.page; print(json.dumps([m for m in {modules} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.browser
def test_a_browser_agrees(run: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    command = [browser, *flags.split(), "--disable-sync", f"--user-data-dir={tmp_path}", "--dump-dom", (run / "report.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    tags = {tag for tag, _ in Page(dom).tags}
    assert "svg" in tags
    assert tags.isdisjoint({"script", "iframe", "b", "i"})
    assert dom.count("<li ") == len(HOSTILE)
