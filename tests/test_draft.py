"""DRaFT: its gradient is the slope of the expected reward less the KL, what it refuses, and what an image without a score teaches."""

import math
from typing import Any

import pytest
import torch
from methods_zoo import DRAFT, Flat, Hill, ddim, gradients, made, moved, optimise, prompts_of, variant, weights
from torch import Tensor

from alignbench.methods.base import Method
from alignbench.methods.draft import Noise
from alignbench.rng import Draws
from alignbench.samplers.ddim import DDIM


def exact(method: Method) -> Method:
    """Its judge without the cast to float32, which would drown differences."""
    method.judge.score = method.judge.reward.forward  # type: ignore[method-assign]
    return method


def noise(method: Method, epoch: int = 0) -> Noise:
    (batch, _) = method.collect(prompts_of(method), Draws(0, epoch))
    return batch


def flat(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in found.values()])


def blunt() -> DDIM:
    """Whose last two steps have no likelihood."""
    return DDIM(steps=4, eta=1.0, guidance=1.0, deterministic=2)


def by_differences(method: Method, batch: Noise) -> Tensor:
    """The slope of the loss, which under fixed noise is minus the mean reward and the KL of just these images, weight by weight."""
    slopes = []
    for parameter in method.policy.trainable().values():
        for index in range(parameter.numel()):
            ends = []
            for step in (1e-5, -2e-5):
                parameter.data.view(-1)[index] += step
                ends.append(method.loss(batch)[0].item())
            parameter.data.view(-1)[index] += 1e-5
            slopes.append((ends[0] - ends[1]) / 2e-5)
    return torch.tensor(slopes, dtype=torch.float64)


@pytest.mark.parametrize("kl, reduce", [(0.0, "mean"), (0.1, "sum"), (2.0, "mean")])
@pytest.mark.parametrize("guidance, deterministic", [(2.0, 0), (1.0, 2)])
def test_through_all_steps_it_is_the_slope_of_the_reward_less_the_kl(kl: float, reduce: str, guidance: float, deterministic: int) -> None:
    def sampler() -> DDIM:
        return DDIM(steps=4, eta=1.0, guidance=guidance, deterministic=deterministic)

    found = []
    for last in (4, 3, 1):
        method = exact(moved(made(variant(DRAFT, sampler, last=last, kl=kl if last > deterministic else 0.0, reduce=reduce))))
        batch = noise(method)
        found.append(flat(gradients(method, batch)))
        if last == 4:
            slope = by_differences(method, batch)
    torch.testing.assert_close(found[0], slope, rtol=1e-6, atol=1e-8)
    for truncated in found[1:]:
        assert (truncated - slope).abs().max() > 1e-3


class Some(Hill):
    """The fourth image's score is `fourth`."""

    def __init__(self, fourth: float):
        super().__init__()
        self.fourth = fourth

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.where(torch.arange(len(images)) == 3, self.fourth, super().forward(images, prompts))


@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_an_image_without_a_score_teaches_its_kl_alone(kl: float) -> None:
    """Under a score that is the same whatever the image, 0; the others weigh what they weighed, for the mean is over all."""
    silent, constant = (exact(moved(made(variant(DRAFT, last=4, kl=kl), reward=Some(fourth)))) for fourth in (math.nan, 0.0))
    found = flat(gradients(silent, noise(silent)))
    assert found.isfinite().all()
    torch.testing.assert_close(found, flat(gradients(constant, noise(constant))), rtol=1e-12, atol=0)


def test_a_batch_without_any_score_is_idle_unless_the_kl_teaches() -> None:
    for kl, idle in ((0.0, True), (0.5, False)):
        method = exact(moved(made(variant(DRAFT, last=4, kl=kl), reward=Flat())))
        method.judge.score = lambda images, prompts: torch.full((len(images),), math.nan)  # type: ignore[method-assign]
        batch = noise(method)
        method.loss(batch)
        assert method.idle(batch) is idle


@pytest.mark.parametrize(
    "changes, sampler, says",
    [
        ({"last": 5}, ddim, r"method\.last=5: the sampler has 4 steps; set at most that many"),
        ({"last": 2, "kl": 0.5}, blunt, r"method\.kl=0\.5: none of the last 2 steps has a likelihood.* set method\.kl=0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_in_one_line(changes: dict[str, Any], sampler: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        made(variant(DRAFT, sampler, **changes))
    assert "\n" not in str(refused.value)


def test_a_reward_without_a_gradient_is_refused() -> None:
    class Opaque(Hill):
        name, differentiable = "opaque", False

    with pytest.raises(ValueError, match="needs a gradient, which reward=opaque has not"):
        made("draft", reward=Opaque())


def test_a_larger_kl_holds_the_policy_nearer_to_the_reference() -> None:
    distances = []
    for kl in (0.0, 0.1, 10.0):
        method = made(variant(DRAFT, last=4, steps=1, reduce="sum", kl=kl), decay=0.0)
        for _ in optimise(method, 40):
            pass
        distances.append(sum(weight.square().sum().item() for name, weight in weights(method).items()))
    assert distances[0] > 2 * distances[1] > 4 * distances[2]


def test_a_kl_weight_of_nothing_asks_the_reference_nothing() -> None:
    assert set(made("draft").plan()) == {"policy"}
    assert made("draft_kl").plan() == {"policy": 24 * (1 + 3 * 3) * 2, "reference": 24 * (1 + 3 + 3) * 2}  # guidance doubles
