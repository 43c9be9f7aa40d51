"""The benchmarks' architectures are the real ones, both sides of a comparison do the same, and what is said of times is what they are."""

import copy
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import architectures  # noqa: E402
import numpy as np  # noqa: E402
import verdicts  # noqa: E402
from picture import draw  # noqa: E402
from scaling import off_the_curve  # noqa: E402
from sides import PAIRED, Case, Ours, Usual, given, taken  # noqa: E402
from switches import switched  # noqa: E402
from table import METHODS, cases, heading, line  # noqa: E402
from watch import inside, operations  # noqa: E402


@pytest.mark.parametrize("unet, millions", [(architectures.sd15_unet, 859.5), (architectures.sdxl_unet, 2567.5)], ids=["sd15", "sdxl"])
def test_the_architecture_has_its_published_size(unet, millions: float) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in unet(tiny=False).parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_path_runs(family: str) -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu.py", family, "--tiny", "--cpu", "--eager", "--ranks", "2", "--micro-batch", "2"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    (measured,) = json.loads(done.stdout[done.stdout.index("{\n") :])["measured"]
    assert measured["family"] == family
    assert measured["seconds_an_image"] > 0
    assert measured["tflop_an_image"] > 0
    assert measured["largest_micro_batch"] == {"tiny": 2}
    assert (measured["times_the_plain_loop"] is not None) == (family == "sd15")


def test_the_small_pipeline_has_3_15_million_parameters_and_latents_of_16() -> None:
    with torch.device("meta"):
        unet = architectures.small_unet(16)
    assert sum(parameter.numel() for parameter in unet.parameters()) / 1e6 == pytest.approx(3.15, abs=0.01)
    assert unet.config.sample_size == 16


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    architectures.small(folder, 8)
    return folder


def the_two(case: Case, exact: bool = False) -> tuple[Ours, Usual]:
    ours = Ours(case)
    if exact:
        ours.exact()
    usual = Usual(case, given(ours))
    if exact:
        usual.exact()
    return ours, usual


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("later", [False, True], ids=["at the start", "later"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_both_sides_take_the_same_step(pipeline: Path, method: str, adapter: str, later: bool) -> None:
    case = Case(pipeline, method, adapter, 8 if method in PAIRED else 4, 3, 4, later=later)
    ours, usual = the_two(case, exact=True)
    found, expected = taken(ours), taken(usual)
    assert max(verdicts.apart(found, expected).values()) < 1e-6  # images and rewards stay in fp32
    assert max(np.abs(each).max() for each in expected[1].values()) > 0
    other = copy.deepcopy(expected[1])
    next(iter(other.values()))[:] += 1.0
    far = verdicts.apart(found, (expected[0] + 0.1, other))
    assert min(far.values()) > verdicts.WANTED["same"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_the_plain_loops_step_does_not_depend_on_its_micro_batch(pipeline: Path, method: str, adapter: str) -> None:
    """In float64: in fp32 another order of sums is 2e-5 of a gradient."""
    _, usual = the_two(Case(pipeline, method, adapter, 8 if method in PAIRED else 4, 3, 4), exact=True)
    found = taken(usual)
    usual.plain.micro_batch = 1
    assert max(verdicts.apart(found, taken(usual)).values()) < 1e-10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_epoch_is_timed_and_its_denoisers_seconds_and_operations_are_found(pipeline: Path) -> None:
    ours, usual = the_two(Case(pipeline, "ddpo", "lora", 4, 2, 2))
    for side in (ours, usual):
        times = side.epoch()
        assert all(times[f"{phase}_{kind}"] > 0 for phase in ("rollout", "update") for kind in ("wall", "processor"))
        within = inside(side)
        assert min(within["rollout"].values()) > 0
        assert within["update"]["denoiser_share"] > 0
        assert within["update"]["decoder_share"] == 0  # DDPO's update needs no image
        assert all(each["denoiser_share"] + each["decoder_share"] < 1 for each in within.values())  # no second is counted twice
    one, other = operations(ours), operations(usual)
    assert one["rollout"]["convolution"] == other["rollout"]["convolution"] > 0
    assert one["update"]["convolution"] == other["update"]["convolution"] > 0  # the same arithmetic, in other portions
    assert one["update"]["matmul"] == pytest.approx(other["update"]["matmul"], rel=0.01)  # the plain loop embeds the empty prompt again


def test_a_ratio_and_its_interval_by_hand() -> None:
    found = verdicts.ratio([1.0, 4.0], [2.0, 2.0])  # ratios 1/2 and 2: logarithms -+ log 2
    assert found["ratio"] == pytest.approx(1.0)
    half = 12.706204736 * math.log(2) * math.sqrt(2) / math.sqrt(2)  # t of one degree of freedom, the std of two points
    assert math.log(found["high"]) == pytest.approx(half, rel=1e-6)
    assert found["low"] * found["high"] == pytest.approx(1.0)


def test_how_far_points_lie_from_a_curve() -> None:
    assert off_the_curve([1, 2, 3], [3, 5, 7]) == pytest.approx(0, abs=1e-12)
    assert off_the_curve([1, 2, 3], [1, 4, 9], degree=2) == pytest.approx(0, abs=1e-12)
    # the line a + b x of least (line/y - 1)^2 through (0, 1), (1, 2), (2, 1): by symmetry flat, at (1 + 1/2 + 1) / (1 + 1/4 + 1) = 10/9
    assert off_the_curve([0, 1, 2], [1, 2, 1]) == pytest.approx(1 - 10 / 9 / 2)


def results(**ratios: float) -> dict:
    return {"table": {"rows": [{"name": name.replace("_", " "), "ratio": ratio, "high": ratio} for name, ratio in ratios.items()]}}


def test_a_ratio_that_has_changed_is_said_and_one_that_has_not_is_not() -> None:
    now, then = results(ddpo=1.0, d3po=0.8, pso=1.0), results(ddpo=0.8, d3po=0.8, pso=1.2)
    slower, faster = verdicts.changes(now, then)
    assert slower == "ddpo: slower, 1.000 where 0.800 is committed"
    assert faster == "pso: faster, 1.000 where 1.200 is committed"
    assert verdicts.changes(now, now) == []


def test_what_a_full_run_must_reach_is_said_where_it_does_not() -> None:
    row = {"name": "ddpo lora, micro-batch 4", "high": 1.001, "peak_bytes": {"ours": [1e6, 2e6, 5e6], "plain": [1e6, 1e6, 9e6]}}
    spent = {"of_the_floor": 2.0, "decoder_share": 0.1}
    row["ours"] = {"rollout": {**spent, "denoiser_share": 0.9}, "update": {**spent, "denoiser_share": 0.8}}
    idle = {
        "name": "di_star lora, micro-batch 4",
        "ours": {"rollout": {"of_the_floor": None, "denoiser_share": 0.0}, "update": row["ours"]["rollout"]},
    }
    grown = {"steps": {"off_the_curve": 0.02, "peak_bytes": [100e6, 104e6, 106e6]}, "rank": {"off_the_curve": 0.11}}
    found = {
        "table": {"rows": [row, idle]},
        "processes": [{"name": "two processes, micro-batch 1", "high": 0.75}],
        "sweep": {"name": "a sweep", "speedup": 1.6},
        "scaling": grown,
        "startup": {"seconds": {"help": 0.2, "ls": 1.5, "imports": 60, "first_step": 7.9}},
    }
    assert verdicts.missed(found) == [
        "ddpo lora, micro-batch 4: the ratio's upper end is 1.001, at most 1.0 is wanted",
        "ddpo lora, micro-batch 4: peak memory 2 MB, the plain loop's is 1 MB",
        "ddpo lora, micro-batch 4: 80% of the update is in the denoiser (and 10% in the VAE's decoder), at least 85% is wanted",
        "a sweep: 1.60 times as fast, 1.7 is wanted",
        "rank: 11% off its curve, at most 10% is wanted",
        "peak memory grows from 100 to 106 MB with the number of steps",
        "ls: 1.50 s, less than 1 is wanted",
    ]
    assert verdicts.missed({"processes": [{"name": "two processes, micro-batch 1", "high": math.nan}]})  # no interval is no proof


def test_every_name_that_must_reach_something_is_one_that_is_measured() -> None:
    measured = [replace(case, micro_batch=micro_batch).name for case, theirs in cases(Path(), "full") for micro_batch in theirs]
    two = {"two processes, micro-batch 1", "two processes, micro-batch 4", "two processes compiled, micro-batch 4"}
    assert set(verdicts.WANTED["at_most"]) - set(measured) == two
    assert len(measured) == len(set(measured))
    for method in METHODS:
        assert {f"{method} {adapter}, micro-batch {each}" for adapter in ("lora", "full") for each in (1, 4)} < set(measured)


RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))
PAGE = (BENCHMARKS.parent / "docs/performance.md").read_text()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_page_quotes_the_committed_results(path: Path) -> None:
    found = json.loads(path.read_text())
    rows = *map(line, found["table"]["rows"]), *map(verdicts.paired, found["processes"]), *map(switched, found["switches"])
    quoted = [heading(found["table"]["rates"]), *rows, f"{found['sweep']['speedup']:.2f} times as fast"]
    assert [each for each in quoted + verdicts.missed(found) if each not in PAGE] == []


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_picture_has_a_row_for_every_measurement(path: Path) -> None:
    found = json.loads(path.read_text())
    seconds, ratios = draw(found).axes
    names = [row["name"] for row in found["table"]["rows"]]
    assert [each.get_text() for each in seconds.get_yticklabels()] == names[::-1]
    assert [each.get_text() for each in ratios.texts] == [f"{row['ratio']:.2f}" for row in found["table"]["rows"][::-1]]
