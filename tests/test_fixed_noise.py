"""The evaluation's noise belongs to an image: before training all methods make the same images, and how the work is cut changes none."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import MORE, reward_for, yaml_of
from torch import Tensor, distributed

from alignbench.compose import compose
from alignbench.config import choices, conf_folder
from alignbench.experiment import Experiment
from alignbench.policy import Policy
from alignbench.rng import generator

EVALUATION = ["eval=plain", "eval.prompts=5", "eval.images=3", "eval.reference_times=[]", "eval.grid=1"]
SAMPLING = {
    "multi_step": ["model=sandbox", "sampler.steps=3", "sampler.deterministic=1"],
    "few_step": ["model=sandbox_four_step"],
    "one_step": ["model=sandbox_one_step"],
}
TRACKS = {name: yaml_of("method", name)["track"] for name in choices("method", conf_folder()) if name not in MORE}
METHODS = {
    name: "multi_step" if track == "any" else track
    for name, track in TRACKS.items()
    if (facts := yaml_of("method", name)).get("trains", True) and track in ("any", *SAMPLING) and "pairs" not in facts
}


def built(method: str, track: str, *more: str) -> Experiment:
    words = [f"method={method}", f"reward={reward_for(method)}", *SAMPLING[track], *EVALUATION, *more]
    return Experiment.build(compose(words if yaml_of("method", method).get("trains") is False else [*words, "epochs=1"]).config)


def images(experiment: Experiment, policy: Policy) -> Tensor:
    return experiment.scored("test", experiment.config["eval"]["prompts"], policy).images


@cache
def start(track: str) -> Tensor:
    """The images of the model as it is, of each track."""
    experiment = built("reference", track)
    found = images(experiment, experiment.policy)
    assert len({each.numpy().tobytes() for each in found}) == len(found) == 15  # each has its own noise
    return found


def test_there_are_methods_of_every_track() -> None:
    assert {"ddpo", "ddpo_sf", "kl_rlhf", "d3po", "pxpo", "rwr", "sft"} <= {
        name for name, track in METHODS.items() if track == "multi_step"
    }
    assert {"pso", "di_star"} <= METHODS.keys()


@pytest.mark.parametrize(
    ("method", "more"),
    [*((method, ()) for method in METHODS), ("ddpo", ("seed=1",)), ("ddpo", ("adapter=lora",)), ("kl_rlhf", ("adapter=lora", "seed=1"))],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_before_training_a_method_makes_the_models_images_bit_for_bit(method: str, more: tuple[str, ...]) -> None:
    """Whatever it grows beside the policy, and whatever its seed: so that later differences come from training alone."""
    experiment = built(method, METHODS[method], *more)
    for policy in (experiment.method.evaluated, experiment.policy.reference):
        assert torch.equal(images(experiment, policy), start(METHODS[method]))


def test_other_noise_another_sampler_and_another_model_make_other_images() -> None:
    """What the equalities above would miss, if they held of everything."""
    for more in (["eval.noise=1"], ["sampler.eta=0.9"]):
        experiment = built("ddpo", "multi_step", *more)
        assert (images(experiment, experiment.policy) - start("multi_step")).flatten(1).abs().amax(1).min() > 1e-3
    experiment = moved(built("ddpo", "multi_step"))
    assert (images(experiment, experiment.policy) - start("multi_step")).flatten(1).abs().amax(1).min() > 1e-3


def moved(experiment: Experiment) -> Experiment:
    """The same with weights other than the reference's."""
    for name, parameter in sorted(experiment.policy.trainable().items()):
        noise = torch.randn(parameter.shape, generator=generator(0, name))
        parameter.data += 0.02 * parameter.data.abs().mean() * noise
    return experiment


def scored(batch: int) -> dict[str, Tensor]:
    """Images, scores and KL of both sides, so many at once."""
    experiment, found = moved(built("ddpo", "multi_step", f"eval.batch={batch}")), {}
    for who, policy in (("policy", experiment.policy), ("reference", experiment.policy.reference)):
        side = experiment.scored("test", experiment.config["eval"]["prompts"], policy)
        found |= {f"{who} images": side.images, f"{who} kl": torch.tensor([row["kl"] for row in side.rows])}
        found[f"{who} scene_judge"] = torch.tensor([row["scene_judge"] for row in side.rows])
    return found


whole = cache(lambda: scored(64))


def same(found: dict[str, Tensor]) -> None:
    for name, value in whole().items():
        apart = (found[name] - value).abs().max().item()
        if name == "policy kl":  # nats: differences of means over the square of a small std, which enlarges their rounding
            apart /= 10 * value.min().item()
        print(f"FIGURE {name} {apart:.1e}")
        assert apart <= 1e-5, name


@pytest.mark.parametrize("batch", [1, 3])
def test_how_many_go_through_at_once_changes_no_image(batch: int) -> None:
    same(scored(batch))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_how_many_processes_share_the_work_changes_no_image(processes: int, tmp_path: Path) -> None:
    """Fifteen images do not divide by two."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(processes), tmp_path], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(processes)
    ]
    for rank, process in enumerate(started):
        _, error = process.communicate(timeout=600)
        assert process.returncode == 0, error
        same(torch.load(tmp_path / f"{rank}.pt"))


if __name__ == "__main__":
    rank, processes, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=processes)
    torch.save(scored(4), folder / f"{rank}.pt")
    distributed.destroy_process_group()
