"""Ten optimiser steps of every method, number by number: what changes here changes results. `python tests/test_golden.py --write`."""

import json
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from methods_zoo import ZOO, made, moved, optimise, weights

GOLDEN = Path(__file__).with_name("golden")
STEPS = 10
CLOSE = {"rel": 1e-6, "abs": 1e-7}  # rewards and advantages are in float32, whose sums differ a little from processor to processor


def trace(name: str) -> list[dict[str, float]]:
    """Loss, metrics and gradient of each step, and the sums of every network's weights after the last."""
    method = moved(made(name, micro_batch=8))
    rows = list(islice(optimise(method, STEPS), STEPS))
    return [*rows, {name: weight.sum().item() for name, weight in weights(method).items()}]


@pytest.mark.parametrize("name", ZOO)
def test_ten_steps_are_what_they_were(name: str) -> None:
    path = GOLDEN / f"{name}.json"
    expected, found = json.loads(path.read_text()), trace(name)
    assert len(found) == STEPS + 1
    for step, (row, before) in enumerate(zip(found, expected, strict=True)):
        assert row == pytest.approx(before, **CLOSE), (
            f"{name} no longer does in step {step} what {path.name} says. If results are meant to change, raise RESULTS_VERSION in "
            "compose.py, run `python tests/test_golden.py --write` and commit both together"
        )


def test_every_trace_belongs_to_a_method() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(ZOO)


def write() -> None:
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*.json"):
        path.unlink()
    for name in ZOO:
        rows = ",\n".join(json.dumps(row) for row in trace(name))
        (GOLDEN / f"{name}.json").write_text(f"[\n{rows}\n]\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_golden.py --write")
    write()
