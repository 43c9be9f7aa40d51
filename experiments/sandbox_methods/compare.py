"""Runs the comparison of runs.yaml, then writes table.md and grids.png from the run folders alone: `make compare`."""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

from alignbench.compose import compose
from alignbench.evaluation.statistics import Interval, paired_difference
from alignbench.report.record import read_result, read_samples

HERE = Path(__file__).parent
REPLICATES = 2000


class Row:
    """One row of the table: the runs of one method over its seeds."""

    def __init__(self, name: str, words: list[str], seeds: list[int], output: Path):
        self.name, self.seeds = name, seeds
        self.jobs = [[*words, f"seed={seed}", f"output={output}"] for seed in seeds]
        self.folders = [compose(job).folder for job in self.jobs]

    def read(self) -> "Row":
        self.results = [read_result(folder) for folder in self.folders]
        self.samples = [read_samples(folder) for folder in self.folders]
        self.metrics = {metric["name"]: metric for metric in self.results[0]["metrics"]}
        self.seconds = [yaml.safe_load((folder / "timing.json").read_text())["seconds"]["training"] for folder in self.folders]
        return self

    def values(self, who: str, metric: str, seed: int) -> list[float]:
        return [row[metric] for row in self.samples[seed] if row["who"] == who]

    def prompts(self, seed: int) -> list[str]:
        return [row["prompt_id"] for row in self.samples[seed] if row["who"] == "policy"]

    def change(self, metric: str) -> Interval:
        """Policy less where it started, over all seeds; the interval is over prompts, given these seeds."""
        seeds = range(len(self.seeds))
        before, after = ([v for seed in seeds for v in self.values(who, metric, seed)] for who in ("reference", "policy"))
        return interval(before, after, [p for seed in seeds for p in self.prompts(seed)])

    def signs(self, metric: str) -> str:
        changes = [np.mean(self.values("policy", metric, s)) - np.mean(self.values("reference", metric, s)) for s in range(len(self.seeds))]
        return "".join("+" if change > 0 else "-" if change < 0 else "0" for change in changes)


def interval(before: list[float], after: list[float], groups: list[Any]) -> Interval:
    return paired_difference(before, after, groups, seed=0, replicates=REPLICATES, level=0.95)


def run(rows: list[Row], at_once: int, threads: int) -> int:
    """Every job in its own process, `at_once` together; the number that failed. What is done already is not run again."""
    jobs = [job for row in rows for job in row.jobs]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    started, done = time.monotonic(), 0

    def one(job: list[str]) -> int:
        nonlocal done
        finished = subprocess.run([sys.executable, "-m", "alignbench", *job], env=environment, capture_output=True, text=True, check=False)
        done += 1
        said = "done" if finished.returncode == 0 else f"failed: {finished.stderr.strip().splitlines()[-1]}"
        print(f"[{done}/{len(jobs)}] {time.monotonic() - started:5.0f} s  {' '.join(job[:-1])}: {said}", flush=True)
        return finished.returncode

    with ThreadPoolExecutor(at_once) as pool:
        return sum(code != 0 for code in pool.map(one, jobs))


def shown(value: Interval, digits: int = 3) -> str:
    return f"{value.mean:+.{digits}f} [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"


def table(rows: list[Row], halves: list[str]) -> str:
    lines = [
        "| method | model | trained on | change of it | seeds | exact judge | its change | path KL, nats | diversity | "
        "reward queries | network evaluations | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        choices, first = row.results[0]["choices"], row.results[0]
        trained = next((m["name"] for m in first["metrics"] if m["label"] == "trained"), None)
        gold = row.change("exact_judge")
        kl = f"{np.mean([v for s in range(len(row.seeds)) for v in row.values('policy', 'kl', s)]):,.1f}" if "kl" in row.metrics else "-"
        level = np.mean([v for s in range(len(row.seeds)) for v in row.values("policy", "exact_judge", s)])
        cells = [
            row.name,
            choices["model"],
            trained or "-",
            shown(row.change(trained)) if trained else "-",
            row.signs(trained) if trained else "-",
            f"{level:.3f}",
            shown(gold),
            kl,
            shown(row.change("diversity")),
            f"{first['meters']['reward_queries']:,}",
            f"{sum(first['meters']['network_evaluations'].values()):,}",
            f"{np.mean(row.seconds):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    by_name = {row.name: row for row in rows}
    left = [by_name[f"{name}, left"] for name in halves if f"{name}, left" in by_name]
    if len(left) == len(halves):
        lines += ["", *local(left)]
    return "\n".join(lines)


def local(rows: list[Row]) -> list[str]:
    """Where the gain of a reward on the left half is: left gain less right gain, and that difference between the two methods."""
    lines = ["| trained on the left half's light | left gain | right gain | left less right | signs |", "|---|---|---|---|---|"]
    leans = []
    for row in rows:
        seeds = range(len(row.seeds))
        gain = {}
        for side in ("left", "right"):
            name = f"light_{side}"
            gain[side] = [np.subtract(row.values("policy", name, s), row.values("reference", name, s)) for s in seeds]
        lean = [a - b for a, b in zip(gain["left"], gain["right"], strict=True)]
        groups = [p for s in seeds for p in row.prompts(s)]
        flat = np.concatenate(lean)
        leans.append((flat, groups, [each.mean() for each in lean]))
        signs = "".join("+" if each.mean() > 0 else "-" for each in lean)
        left, right = shown(row.change("light_left")), shown(row.change("light_right"))
        lines.append(f"| {row.name} | {left} | {right} | {shown(interval(list(0 * flat), list(flat), groups))} | {signs} |")
    (first, groups, one), (second, _, two) = leans
    signs = "".join("+" if b > a else "-" for a, b in zip(one, two, strict=True))
    lines.append(f"| {rows[1].name} less {rows[0].name} | | | {shown(interval(list(first), list(second), groups))} | {signs} |")
    return lines


def grids(rows: list[Row], path: Path, prompts: int = 8, scale: int = 2) -> None:
    """A picture: for each row, seed 0's images of the first prompts, before and after training."""
    font = ImageFont.load_default(14)
    picked = [row for row in rows if len(row.seeds) > 1]
    names = [row["image"] for row in picked[0].samples[0] if row["who"] == "policy" and row["image"]][:prompts]
    size = 32 * scale
    sheet = Image.new("RGB", (150 + prompts * (2 * size + 12), len(picked) * (size + 10) + 24), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((150, 4), "left of each pair: where training started; right: after it (seed 0, the same noise)", "black", font)
    for y, row in enumerate(picked):
        top = 24 + y * (size + 10)
        draw.text((6, top + size // 2 - 8), row.name, "black", font)
        for x, name in enumerate(names):
            for side, who in enumerate(("reference", "policy")):
                with Image.open(row.folders[0] / "samples" / name.replace("policy", who)) as image:
                    sheet.paste(image.resize((size, size), Image.Resampling.NEAREST), (150 + x * (2 * size + 12) + side * (size + 2), top))
    sheet.save(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/compare"), help="where the run folders go")
    parser.add_argument("--at-once", type=int, default=2, help="processes")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--only", nargs="*", help="names of rows")
    options = parser.parse_args()
    plan = yaml.safe_load((HERE / "runs.yaml").read_text())
    rows = [
        Row(name, each["words"], each.get("seeds", plan["seeds"]), options.output)
        for name, each in plan["rows"].items()
        if not options.only or name in options.only
    ]
    started = time.monotonic()
    failed = run(rows, options.at_once, options.threads)
    if failed:
        print(f"{failed} runs failed; the same command runs those again", file=sys.stderr)
        return 1
    text = table([row.read() for row in rows], plan["halves"])
    print(text)
    print(f"{sum(len(row.jobs) for row in rows)} runs in {(time.monotonic() - started) / 60:.1f} minutes")
    if not options.only:
        (HERE / "table.md").write_text(
            "Generated by `make compare` from its run folders. Intervals are 95 %, over prompts and images, given the seeds;\n"
            "`seeds` has the sign of each seed's change.\n\n" + text + "\n"
        )
        grids(rows, HERE / "grids.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
