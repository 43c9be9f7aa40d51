"""The benchmarks' architectures are the real ones, both sides of a comparison do the same, and what is said of times is what they are."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import architectures  # noqa: E402
import bench  # noqa: E402
import numpy as np  # noqa: E402
from scaling import off_the_line  # noqa: E402
from sides import PAIRED, Case, Clock, Ours, Usual, given  # noqa: E402
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


def the_two(case: Case) -> tuple[Ours, Usual]:
    ours = Ours(case)
    return ours, Usual(case, given(ours))


def gradients(side: Ours | Usual) -> dict[str, np.ndarray]:
    side.collect()
    return {name: each.numpy() for name, each in side.update(torch.Tensor.backward).items()}


def in_float64(usual: Usual) -> None:
    loop = usual.plain
    for part in (*usual.networks(), loop.vae, loop.encoder):
        part.double()
    loop.alpha_bar = loop.alpha_bar.double()
    if usual.turns:
        loop.ema = [each.double() for each in loop.ema]
        usual.turns = [(kind, prompts, z.double(), noise.double(), t) for kind, prompts, z, noise, t in usual.turns]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("later", [False, True], ids=["at the start", "later"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("method", bench.METHODS)
def test_both_sides_take_the_same_step(pipeline: Path, method: str, adapter: str, later: bool) -> None:
    case = Case(pipeline, method, adapter, 8 if method in PAIRED else 4, 3, 4, later)
    ours, usual = the_two(case)
    found, expected = gradients(ours), gradients(usual)
    assert bench.gap(found, expected) < 1e-5
    assert max(np.abs(each).max() for each in expected.values()) > 0
    other = copy.deepcopy(expected)
    next(iter(other.values()))[:] += 1.0
    assert bench.gap(found, other) > 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("method", bench.METHODS)
def test_the_plain_loops_step_does_not_depend_on_its_micro_batch(pipeline: Path, method: str, adapter: str) -> None:
    """In float64: in fp32 another order of sums is 2e-5 of a gradient."""
    _, usual = the_two(Case(pipeline, method, adapter, 8 if method in PAIRED else 4, 3, 4))
    in_float64(usual)
    found = gradients(usual)
    usual.plain.micro_batch = 1
    assert bench.gap(found, gradients(usual)) < 1e-10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_epoch_is_timed_and_its_denoisers_seconds_and_operations_are_found(pipeline: Path) -> None:
    ours, usual = the_two(Case(pipeline, "ddpo", "lora", 4, 2, 2))
    for side in (ours, usual):
        times = side.epoch()
        assert all(times[f"{phase}_{kind}"] > 0 for phase in ("rollout", "update") for kind in ("wall", "processor"))
        clock = Clock()
        with clock.on("whole"):
            within = inside(side)
        assert min(within.values()) > 0
        assert sum(within.values()) < clock.seconds["whole_processor"]  # no second is counted twice
    one, other = operations(ours), operations(usual)
    assert one["rollout"]["convolution"] == other["rollout"]["convolution"] > 0
    assert one["update"]["convolution"] == other["update"]["convolution"] > 0  # the same arithmetic, in other portions
    assert one["update"]["matmul"] == pytest.approx(other["update"]["matmul"], rel=0.01)  # the plain loop embeds the empty prompt again


def test_a_ratio_and_its_interval_by_hand() -> None:
    found = bench.ratio([1.0, 4.0], [2.0, 2.0])  # ratios 1/2 and 2: logarithms -+ log 2
    assert found["ratio"] == pytest.approx(1.0)
    half = 12.706204736 * math.log(2) * math.sqrt(2) / math.sqrt(2)  # t of one degree of freedom, the std of two points
    assert math.log(found["high"]) == pytest.approx(half, rel=1e-6)
    assert found["low"] * found["high"] == pytest.approx(1.0)


def test_how_far_points_lie_from_a_line() -> None:
    assert off_the_line([1, 2, 3], [3, 5, 7]) == pytest.approx(0, abs=1e-12)
    assert off_the_line([0, 1, 2], [1, 3, 2]) == pytest.approx(0.5)  # the line is 1.5 + 0.5 x: 0.5 below at 0, 1 above at 1


def results(**ratios: float) -> dict:
    return {"table": {"rows": [{"name": name.replace("_", " "), "ratio": ratio, "high": ratio} for name, ratio in ratios.items()]}}


def test_a_ratio_that_has_changed_is_said_and_one_that_has_not_is_not() -> None:
    now, then = results(ddpo=1.0, d3po=0.8, pso=1.0), results(ddpo=0.8, d3po=0.8, pso=1.2)
    slower, faster = bench.changes(now, then)
    assert slower == "ddpo: slower, 1.000 where 0.800 is committed"
    assert faster == "pso: faster, 1.000 where 1.200 is committed"
    assert bench.changes(now, now) == []


def test_what_a_full_run_must_reach_is_said_where_it_does_not() -> None:
    row = {"name": "ddpo lora, micro-batch 4", "high": 1.001, "peak_bytes": {"ours": 2e6, "plain": 1e6}}
    row["ours"] = {"rollout": {"denoiser_share": 0.9}, "update": {"denoiser_share": 0.8}}
    missed = bench.gates({"table": {"rows": [row]}, "processes": {"name": "two processes", "high": 0.75}})
    assert [each.rpartition(": ")[2][:20] for each in missed] == ["the ratio's upper en", "peak memory 2 MB, th", "80% of the update is"]
    assert bench.gates({"processes": {"name": "two processes", "high": math.nan}})  # no interval is no proof
