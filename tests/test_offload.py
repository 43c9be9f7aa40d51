"""trainer.offload_rollouts: trajectories live on the host, what is computed from them on the device, and no number changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FULL
from methods_zoo import PROMPTS, ZOO, a_world, ddim, made, moved, optimise, prompts_of, weights
from other_device import DEVICE, HOST, OtherDevice, put, tensors, there
from test_experiment import SMALL, labelled
from torch import Tensor

from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.datasets.pictures import Pictures
from alignbench.evaluation.evaluate import score
from alignbench.evaluation.measures import Measures
from alignbench.methods.best_of_n import BestOfN
from alignbench.methods.d3po_human import D3POHuman
from alignbench.methods.pso_offline import PSOOffline
from alignbench.methods.pxpo_human import PXPOHuman
from alignbench.rng import Draws
from alignbench.tables import Rollout


class Painted(Pictures):
    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        return torch.rand(count, 3, 2, 2, generator=generator, dtype=torch.float64), [PROMPTS[0]] * count


OFFLINE = {"images": 6, "batch": 4, "steps": 1, "form": "preference", "beta": 5.0, "neg_defactor": 0.1, "prior_weight": 0.5}
MORE: dict[str, Any] = {"pso_offline": (PSOOffline, ZOO["pso"][1], OFFLINE | {"pictures": Painted()})}


def a_method(name: str, offload: bool) -> Any:
    method = moved(made(MORE.get(name, name), micro_batch=3, model=a_world(), spec=FULL))
    method.policy.offload = offload
    return method


@pytest.mark.parametrize("name", [*ZOO, *MORE])
def test_training_is_bit_for_bit_the_same(name: str) -> None:
    plain, offloading = a_method(name, False), a_method(name, True)
    assert list(optimise(offloading, 2)) == list(optimise(plain, 2))
    assert all(torch.equal(weight, weights(plain)[key]) for key, weight in weights(offloading).items())


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("name", [*ZOO, *MORE])
def test_rows_are_on_the_device_when_they_are_learned_from(name: str, offload: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the trainer does it: a minibatch is moved by its `.to`, and the loss mixes no devices. Without offloading nothing goes back."""
    tables: list[Rollout] = []
    method = a_method(name, offload)
    rollout = type(method.policy).rollout

    def watched(*args: Any, **kwargs: Any) -> Rollout:
        tables.append(rollout(*args, **kwargs))
        return tables[-1]

    monkeypatch.setattr(type(method.policy), "rollout", watched)
    put(method)
    with OtherDevice() as device:
        for batch in method.collect(prompts_of(method), Draws(0, 0)):
            loss, metrics = method.loss(batch.to(DEVICE))
            method.idle(batch.to(DEVICE))
            assert there(loss)
            assert all(there(each) for each in metrics.values())
    for table in tables:
        assert there(table.x) == there(table.log_prob) == there(table.cond) == (not offload)
    assert bool(tables) == (not name.startswith(("di_star", "diff")))  # these have no trajectories
    assert not {tuple(table.x.shape) for table in tables} & {*device.moved[DEVICE]}  # rows go there, and never the table
    assert any(len(shape) == 5 for shape in device.moved[HOST]) == (offload and bool(tables))


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("make", [D3POHuman, PXPOHuman])
def test_labelled_trajectories_are_kept_there_too(make: Any, offload: bool, tmp_path: Path) -> None:
    labelled(tmp_path / "labels", 3, (5, 1, 2, 2))
    numbers = {"path": str(tmp_path / "labels"), "batch": 3, "inner_epochs": 1, "clip": 0.1, "reduce": "mean"}
    method = made((make, lambda: ddim(3.0), numbers | ({"beta": 2.0} if make is D3POHuman else {})), micro_batch=4)
    method.policy.offload = offload
    put(method)
    with OtherDevice():
        for batch in method.collect([], Draws(0, 0)):
            assert there(method.loss(batch.to(DEVICE))[0])
    assert there(method.rollout.x) == there(method.rollout.log_prob) == there(method.rollout.cond) == (not offload)


def test_the_device_of_the_test_refuses_what_a_gpu_would() -> None:
    with OtherDevice():
        far, near = torch.ones(3, device=DEVICE), torch.ones(3)
        assert there(far + 1)
        assert there(far[torch.tensor([0, 1])])
        assert not there(far.cpu() + near)
        for wrong in (lambda: far + near, lambda: near[far.long()], lambda: torch.cat([near, far])):
            with pytest.raises(RuntimeError, match="two devices"):
                wrong()


@pytest.mark.parametrize("offload", [True, False])
def test_evaluation_too(offload: bool) -> None:
    """Of a policy that trains, of the best of n, with the KL along the path and images as they are judged."""
    method = a_method("ddpo", offload)
    best = BestOfN(policy=method.policy.reference, judge=method.judge, n=3, micro_batch=1, processes=1)
    put(method)
    found = {}
    for policy in (method.policy, best.evaluated):
        with OtherDevice():
            scored = score(policy, [method.judge], Measures([], None, [0.3]), dict(enumerate(PROMPTS)), 2, 0)
        found[policy.who] = scored.rows
        assert all(not there(each) for each in tensors([scored.images]))
    plain = a_method("ddpo", False)
    assert found["policy"] == score(plain.policy, [plain.judge], Measures([], None, [0.3]), dict(enumerate(PROMPTS)), 2, 0).rows


def test_a_config_says_so_and_the_run_is_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "epochs=2", "method.images=8", "method.batch=8", "sampler.steps=3"]
    kept = {}
    for name in ("true", "false"):
        more = [*words, f"trainer.offload_rollouts={name}", f"output={tmp_path / name}"]
        assert main(more) == 0
        kept[name] = [(compose(more).folder / file).read_bytes() for file in ("metrics.jsonl", "samples.parquet", "result.json")]
    assert kept["true"] == kept["false"]
    assert compose([*words, "trainer.offload_rollouts=true"]).hash == compose(words).hash
