"""Two processes that share the work (gloo) train as one does: losses, gradients, weights, and what is counted and logged."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from two_processes import CASES, UNEVEN, UPDATES, record

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both processes have left what they did in every case."""
    folder = tmp_path_factory.mktemp("two")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    logs = [folder / f"rank{rank}.txt" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), "2", folder, *CASES], env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT
        )
        for rank, log in enumerate(logs)
    ]
    try:
        for process in processes:
            process.wait(timeout=600)
    finally:
        for process in processes:
            process.kill()
    return folder


def both(case: str, folder: Path) -> list[dict[str, Any]]:
    files = [folder / f"{case.replace('/', '-')}-{rank}.pt" for rank in range(2)]
    if not all(file.exists() for file in files):
        pytest.fail("\n".join((folder / f"rank{rank}.txt").read_text()[-2000:] for rank in range(2)))
    return [torch.load(file) for file in files]


@cache
def alone(case: str, folder: Path) -> dict[str, Any]:
    return record(case, 1, folder / "alone" / case)


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To a millionth of the largest of all of them."""
    assert found.keys() == expected.keys()
    largest = max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6 * largest, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case: str, folder: Path) -> None:
    one, two = alone(case, folder), both(case, folder)
    assert len(one["losses"]) == len(one["gradients"]) >= UPDATES
    for process in two:
        assert len(process["losses"]) == len(process["gradients"]) == len(one["losses"])
        for update, gradients in enumerate(one["gradients"]):  # DI*'s first is a critic's, a value baseline's first is its own
            if update < 4:
                close(process["gradients"][update], gradients) if gradients else None
            assert process["gradients"][update].keys() == gradients.keys()  # whose turn it is, and who stands still
        close(process["weights"], one["weights"])
    for first, second, expected in zip(*(process["losses"] for process in two), one["losses"], strict=True):
        assert (first + second) / 2 == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert any(first != pytest.approx(second, rel=1e-3) for first, second in zip(*(process["losses"] for process in two), strict=True))
    for name, value in two[0]["weights"].items():
        assert torch.equal(value, two[1]["weights"][name])


@pytest.mark.parametrize("case", CASES)
def test_every_process_counts_and_logs_what_one_would(case: str, folder: Path) -> None:
    """The first one's numbers are what the history, the budget and result.json see."""
    one = alone(case, folder)
    for process in both(case, folder):
        spent = [process["meters"]["reward_queries"], sum(process["meters"]["network_evaluations"].values())]
        padded = 1 / 7 if case in UNEVEN else 0  # what makes the shares even is spent, and counted
        assert spent == pytest.approx(one["planned"], rel=padded, abs=0)
        for row, expected in zip(process["rows"], one["rows"], strict=True):
            same = {key: row[key] for key in expected if key not in ("split", "reward_queries", "network_evaluations")}
            assert same == pytest.approx({key: expected[key] for key in same}, rel=1e-5, abs=1e-6)
            assert row["reward_queries"] == pytest.approx(expected["reward_queries"], rel=padded, abs=0)


@pytest.mark.parametrize("case", ["ties/d3po", "ties/pso"])
def test_the_weights_of_pairs_are_those_of_one_process(case: str, folder: Path) -> None:
    one, two = alone(case, folder)["pairs"], [process["pairs"] for process in both(case, folder)]
    assert 0 < (one == 0).float().mean() < 1  # some of them are ties
    assert torch.equal(torch.cat(two).sort().values, one.sort().values)


AGREE = """
import sys
from torch import distributed
from alignbench import ranks
from alignbench.config import MissingAsset

rank, store, case = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
own = {"missing": MissingAsset("the judge is gone"), "wrong": ValueError("the judge is wrong"), "fine": None}[case]
try:
    ranks.agree(own if rank == 1 else None)
    print("went on")
except (ValueError, MissingAsset) as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("case", "said"),
    [("missing", "MissingAsset the judge is gone"), ("wrong", "ValueError the judge is wrong"), ("fine", "went on")],
)
def test_where_one_process_fails_all_say_why(case: str, said: str, tmp_path: Path) -> None:
    """Else the others would wait for it, or end with what the network says of a lost peer."""
    words = [sys.executable, "-c", AGREE]
    processes = [
        subprocess.Popen([*words, str(rank), str(tmp_path / "store"), case], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        out, error = process.communicate(timeout=120)
        assert out.startswith(said), error
