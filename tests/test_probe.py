"""trainer.micro_batch=auto: the largest part that fits, found without a trace, and a run that is the run of any other micro-batch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FULL, LORA
from methods_zoo import PROMPTS, ZOO, made, moved, optimise, prompts_of, weights
from test_economies import a_method
from test_experiment import SMALL, labelled
from test_offload import MORE, a_world, ddim

from alignbench import probe
from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.config import ConfigError
from alignbench.experiment import Experiment, outline
from alignbench.methods.base import Method
from alignbench.methods.d3po_human import D3POHuman
from alignbench.methods.pxpo_human import PXPOHuman
from alignbench.probe import fit, largest, used
from alignbench.report.record import read_metrics, read_result
from alignbench.rng import Draws

CPU = torch.device("cpu")


def line(fixed: float, each: float) -> tuple[Callable[[int], float], list[int]]:
    """Bytes that grow as they should, and who was asked."""
    asked: list[int] = []

    def measure(rows: int) -> float:
        asked.append(rows)
        return fixed + each * rows

    return measure, asked


@pytest.mark.parametrize(
    ("rows", "budget", "size"),
    [
        (64, 100 + 10 * 32, 32),  # exactly
        (64, 100 + 10 * 32 - 1, 16),
        (60, 100 + 10 * 29, 20),  # parts must be equal
        (61, 100 + 10 * 60, 1),  # a prime
        (6, 1e9, 6),
        (1, 110, 1),
        (64, 110, 1),
        (64, 130, 2),
        (64, 109, 0),
    ],
)
@pytest.mark.parametrize("confirm", [True, False])
def test_the_largest_that_fits(rows: int, budget: float, size: int, confirm: bool) -> None:
    measure, asked = line(100, 10)
    assert largest(rows, budget, measure, confirm) == (size, 100 + 10 * (size or 1))
    assert all(each <= 8 or each == size for each in asked)  # nothing is tried that is known to be too much
    assert (size in asked) or not confirm or not size


def test_what_does_not_fit_after_all_is_stepped_down_from() -> None:
    """As where a GPU's memory is in pieces: the line says 64, and 64 and 32 fail."""
    measure, _ = line(100, 10)
    assert largest(64, 1000, lambda rows: measure(rows) if rows < 32 else inf, confirm=True) == (16, 260)
    assert largest(64, 1000, lambda rows: measure(rows) if rows < 4 else inf, confirm=True) == (2, 120)
    assert largest(64, 1000, lambda rows: inf, confirm=True) == (0, inf)


def test_what_does_not_grow_at_first_is_no_slope() -> None:
    """Gradients are more than a few rows' activations."""
    assert largest(128, 1000, lambda rows: max(35.0, 10.0 * rows), confirm=False) == (64, 640)


def test_bytes_are_those_that_are_allocated() -> None:
    def work(keep: bool) -> torch.Tensor | None:
        first = torch.ones(1000, dtype=torch.float64)
        second = first + 1
        del first
        third = torch.cat([second, second])
        return third if keep else None

    held, most, left = used(CPU, lambda: work(True))
    assert held is not None
    assert (most, left) == (24000, 16000)
    assert used(CPU, lambda: work(False))[1:] == (24000, 0)
    with pytest.raises(ConfigError, match=r"trainer\.micro_batch=auto: memory cannot be measured on meta; give a number"):
        used(torch.device("meta"), lambda: work(False))


def state(method: Method) -> dict[str, Any]:
    return {
        "weights": weights(method),
        "gradients": [name for name, each in method.named_parameters() if each.grad is not None],
        "meters": method.policy.model.meters.state(),
        "collected": dict(method.collected),
        "memory": repr(method.state_dict().get("_extra_state")),
        "updates": method.updates,
        "guards": [(judge.guard, judge.reward, judge._warned) for judge in method.judges],
        "noise": torch.random.get_rng_state().tolist(),
        "remembered": list(map(id, getattr(method, "remembered", []))),
        "rollout": getattr(method, "rollout", None),
    }


def unchanged(method: Method, before: dict[str, Any]) -> None:
    after = state(method)
    assert all(torch.equal(after["weights"][name], weight) for name, weight in before.pop("weights").items())
    assert {key: after[key] for key in before} == before


@pytest.mark.parametrize("name", [*ZOO, *MORE])
def test_the_probe_leaves_no_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a fresh method nor one in the middle of training is changed by it, and both choose all rows where there is room."""
    method = moved(made(MORE.get(name, name), micro_batch=1, model=a_world(), spec=FULL))
    asked = []
    for judge in method.judges:
        monkeypatch.setattr(
            judge.reward, "forward", lambda images, prompts, own=judge.reward.forward: asked.append(1) or own(images, prompts)
        )
    for _ in range(2):
        before = state(method)
        asked.clear()
        found = fit(method, PROMPTS[0], 0, 0.8, nullcontext)
        assert found.rows == found.update == method.updates.accumulate * 1
        unchanged(method, before)
        assert not asked or name.startswith("di_star")  # whose gradient flows through its reward
        list(optimise(method, 1))
        for each in method.parameters():
            each.grad = None


def test_training_after_the_probe_is_training_without() -> None:
    probed, plain = (moved(made("ddpo", micro_batch=3)) for _ in range(2))
    fit(probed, PROMPTS[0], 0, 0.8, nullcontext)
    assert list(optimise(probed, 2)) == list(optimise(plain, 2))


@pytest.mark.parametrize("make", [D3POHuman, PXPOHuman])
def test_methods_that_learn_from_labels_are_probed(make: Any, tmp_path: Path) -> None:
    labelled(tmp_path / "labels", 3, (5, 1, 2, 2))
    numbers = {"path": str(tmp_path / "labels"), "batch": 3, "inner_epochs": 1, "clip": 0.1, "reduce": "mean"}
    method = made((make, lambda: ddim(3.0), numbers | ({"beta": 2.0} if make is D3POHuman else {})), micro_batch=1)
    before = state(method)
    assert fit(method, PROMPTS[0], 0, 0.8, nullcontext).rows == 12
    unchanged(method, before)


@pytest.mark.parametrize("name", ["kl_rlhf_value", "di_star"])
def test_each_kind_of_row_is_tried(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A critic's rows and the generator's, a baseline's and the policy's: the larger need counts."""
    method, seen = made(name, micro_batch=1), set()
    loss = method.loss
    method.loss = lambda batch: (seen.add(type(batch)), loss(batch))[1]  # type: ignore[method-assign]
    fit(method, PROMPTS[0], 0, 0.8, nullcontext)
    assert seen == {type(batch) for batch in method.collect(prompts_of(method), Draws(0, 0))}
    assert len(seen) == 2


def test_trajectories_gradients_and_moments_are_left_room_for() -> None:
    method = made("ddpo", micro_batch=1)
    method.updates = method.updates.at_once(1)
    found = fit(method, PROMPTS[0], 0, 0.8, nullcontext)
    images, steps, latent, eight = 12, 4, 4, 8
    table = images * ((steps + 1) * latent + steps + 1) * eight  # states, log-probabilities, embedding, in float64
    trained = sum(each.numel() for each in method.policy.trainable().values()) * eight
    assert table + 3 * trained <= found.kept <= table + 3 * trained + images * 2 * eight  # the advantages


@pytest.mark.parametrize("free", [1e3, None])
def test_what_cannot_be_is_said_in_a_line(free: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "free_memory", lambda gpu: free)
    method = made("ddpo")
    before = state(method)
    with pytest.raises(ConfigError, match=r"^trainer\.micro_batch=auto: ") as caught:
        fit(method, PROMPTS[0], 0, 0.8, nullcontext)
    unchanged(method, before)
    assert "\n" not in str(caught.value)
    for word in ("gradient_checkpointing", "LoRA", "trainer.memory_share") if free else ("give a number",):
        assert word in str(caught.value)


TINY = [
    "epochs=2",
    "method.images=4",
    "method.images_per_prompt=4",
    "method.batch=4",
    "sampler.steps=3",
    "sampler.deterministic=0",
    "eval=quick",
    "eval.prompts=2",
    "eval.images=2",
    "eval.every=1",
]
TINY += ["eval.validation_prompts=2", "eval.grid=1", "adapter=lora", "method.optimizer.lr=0.0001", "method.clip=0.5"]


def test_a_run_with_auto_is_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {}
    for rows in ("auto", "1"):
        words = [*TINY, f"trainer.micro_batch={rows}", f"output={tmp_path / rows}"]
        assert main(words) == 0
        folders[rows] = compose(words).folder
        said = capsys.readouterr().err
        assert ("micro-batch" in said) == (rows == "auto")
    assert folders["auto"].name == folders["1"].name == compose(TINY).folder.name
    timing = json.loads((folders["auto"] / "timing.json").read_text())
    assert timing["micro_batch"]["rows"] == 12
    assert "micro_batch" not in json.loads((folders["1"] / "timing.json").read_text())
    for one, other in zip(*(read_metrics(folder) for folder in folders.values()), strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            rounding = 1e-3 if key == "kl" else 1e-5  # a divergence is the square of a small difference
            assert value == (other[key] if isinstance(value, str) else pytest.approx(other[key], rel=rounding, abs=1e-5)), key
    results = [read_result(folder) for folder in folders.values()]
    for one, other in zip(*(result["metrics"] for result in results), strict=True):
        assert one["policy"] == pytest.approx(other["policy"], rel=1e-3 if one["name"] == "kl" else 1e-5, abs=1e-5)
    assert results[0]["meters"] == results[1]["meters"]


def test_a_plan_without_weights_copes() -> None:
    composed = compose(["epochs=1", "trainer.micro_batch=auto"])
    assert composed.hash == compose(["epochs=1"]).hash
    assert "network evaluations" in outline(composed.config)
    experiment = Experiment.build(compose([*SMALL, "epochs=1", "trainer.micro_batch=auto"]).config)
    assert "auto: probed once the processes have met" in experiment.plan()
    for wrong in ("atuo", "0", "1.5", "null"):
        with pytest.raises(ConfigError, match=r"trainer\.micro_batch .*(did you mean auto|a whole number >= 1 \| auto)"):
            compose([f"trainer.micro_batch={wrong}"])


CHILD = """
import sys, torch
from pathlib import Path
from test_probe import learned
method, batches, trained = learned(sys.argv[1])
def learn(count):
    loss, _ = method.loss(batches.some(count, False))
    torch.autograd.grad(loss, trained, allow_unused=True)
def status(name):
    return 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(name)))
learn(2)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
learn(64)
print(status("VmHWM") - before)
"""


def learned(spec: str) -> Any:
    method = a_method("ddpo", {"lora": LORA, "full": FULL}[spec])
    return method, method.collect(prompts_of(method), Draws(0, 0)), [each for each in method.parameters() if each.requires_grad]


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["lora", "full"])
def test_the_prediction_is_the_operating_system_s_figure(spec: str) -> None:
    """64 rows of a UNet, told from 8 or fewer, against the resident memory of another process, whose allocator gives back what is free."""
    method, batches, trained = learned(spec)
    seen = {
        count: used(
            CPU, lambda count=count: torch.autograd.grad(method.loss(batches.some(count, False))[0], trained, allow_unused=True) and None
        )[1]
        for count in probe.MEASURED
    }
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", CHILD, spec], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    measured, told = int(done.stdout), probe.predicted(seen, 64)
    print(f"FIGURE {spec} predicted {told / 1e6:.1f} MB measured {measured / 1e6:.1f} MB")
    assert told == pytest.approx(measured, rel=0.25)
