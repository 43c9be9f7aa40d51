"""PXPO: equal to DDPO where the map is uniform, local where the policy is pixelwise, linear in the map."""

from functools import partial
from typing import Any

import pytest
import torch
from conftest import FULL
from linear_gaussian import Linear
from test_ddpo import a_method
from torch import Tensor

from alignbench.compose import compose
from alignbench.config import ConfigError
from alignbench.methods.pxpo import PXPO, normalised
from alignbench.models.gaussian_world import GaussianWorld
from alignbench.policy import Policy
from alignbench.rewards.base import Reward
from alignbench.rewards.judge import Judge
from alignbench.rng import Draws, generator
from alignbench.samplers.ddim import DDIM


class Map(Reward):
    """A fixed map, times a number that depends on the image."""

    name, differentiable, spatial, range, unit = "map", False, True, (-float("inf"), float("inf")), ""
    licence = ""
    backbones = datasets = ()

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.mean((1, 2, 3))[:, None, None] * self.weights

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.map(images, prompts).flatten(1).mean(1)


class Mean(Linear):
    """What `Map` pays each pixel of a uniform map, as one number an image."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.mean((1, 2, 3))


def a_pixel_method(policy: Policy, weights: Tensor, **changes: Any) -> PXPO:
    numbers: dict[str, Any] = {
        "images": 64, "images_per_prompt": 1, "batch": 64, "inner_epochs": 1, "form": "score_function", "clip": 1e6,
        "normalise": "none", "advantage_clip": 1e9, "reduce": "sum", "micro_batch": 10**6, "processes": 1,
    }  # fmt: skip
    optimizer = partial(torch.optim.AdamW, lr=0.05)
    return PXPO(policy=policy, judge=Judge(Map(weights), policy.model.meters), optimizer=optimizer, **(numbers | changes))


def gradient(method: Any, policy: Policy) -> dict[str, Tensor]:
    (batch,) = method.collect(["a"] * 64, Draws(0, 0))
    parameters = policy.trainable()
    return dict(zip(parameters, torch.autograd.grad(method.loss(batch)[0], list(parameters.values())), strict=True))


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("form", ["score_function", "importance_sampled"])
def test_a_uniform_map_is_ddpo(policy: Policy, reduce: str, form: str) -> None:
    """The map r/(hw) at every site gives DDPO's gradient for r, divided by hw: in either reduction and, at ratio 1, in either form."""
    ours = gradient(a_pixel_method(policy, torch.full((2, 2), 1 / 4), reduce=reduce, form=form), policy)
    ddpo = gradient(a_method(policy, Mean(1.0), reduce=reduce, form="score_function"), policy)
    for name, value in ddpo.items():
        assert value.abs().max() > 1e-4
        torch.testing.assert_close(ours[name], value / 4, rtol=1e-6, atol=1e-9)


def test_a_site_without_reward_gives_no_gradient_there(policy: Policy) -> None:
    """The Gaussian world's policy is pixelwise: its shift at a site moves that site alone."""
    shift = gradient(a_pixel_method(policy, torch.tensor([[1.0, 0.0], [0.0, 0.0]])), policy)["shift"][0]
    assert shift[0, 0].abs() > 1e-3
    assert torch.equal(shift.flatten()[1:], torch.zeros(3, dtype=shift.dtype))
    everywhere = gradient(a_method(policy, Mean(1.0), form="score_function"), policy)["shift"][0]
    assert (everywhere.abs() > 1e-3).all()  # DDPO credits every site with the same reward


def test_the_gradient_is_linear_in_the_map(policy: Policy) -> None:
    one, two = (torch.rand(2, 2, generator=generator(i, "map")) for i in range(2))
    parts = [gradient(a_pixel_method(policy, weights), policy) for weights in (one, two, 2 * one + two)]
    for name in parts[0]:
        torch.testing.assert_close(2 * parts[0][name] + parts[1][name], parts[2][name], rtol=1e-5, atol=1e-8)


def test_an_empty_map_is_idle(policy: Policy) -> None:
    method = a_pixel_method(policy, torch.zeros(2, 2))
    with pytest.warns(UserWarning, match="same score"):
        (batch,) = method.collect(["a"] * 64, Draws(0, 0))
    assert method.idle(batch)


def test_the_map_is_pooled_to_the_latent_by_its_mean() -> None:
    """One latent site under four pixels is paid their mean."""
    model = GaussianWorld(shape=(1, 1, 2), mean=0.5, std=0.7).double()
    model.grow("policy", FULL)
    decode = model.decode
    model.decode = lambda x: decode(x).repeat_interleave(2, -1).repeat_interleave(2, -2)  # type: ignore[method-assign]
    policy = Policy(model, DDIM(steps=2, eta=1.0, guidance=1.0, deterministic=0), "policy", chunk=64)
    weights = torch.tensor([[1.0, 3.0, 0.0, 0.0], [5.0, 7.0, 0.0, 2.0]])
    method = a_pixel_method(policy, weights)
    (batch,) = method.collect(["a"] * 64, Draws(0, 0))
    ratio = batch.advantage[:, 0, 0] / batch.advantage[:, 0, 1]
    torch.testing.assert_close(ratio, torch.full((2 * 64,), 8.0), rtol=1e-4, atol=0)


def test_normalisations() -> None:
    sites = torch.rand(6, 2, 3, generator=generator(0, "sites"))
    prompts = ["a", "b"] * 3
    batch, pixel, prompt = (normalised(sites, prompts, how) for how in ("batch", "per_pixel", "per_prompt"))
    assert abs(batch.mean().item()) < 1e-6
    assert batch.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(pixel.mean(0), torch.zeros(2, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(prompt[::2], normalised(sites[::2], ["a"] * 3, "batch"))
    assert torch.equal(normalised(sites, prompts, "none"), sites)
    group, group_mean = (normalised(sites, prompts, how) for how in ("group", "group_mean"))
    torch.testing.assert_close(group[::2].std(0, correction=0), torch.ones(2, 3), rtol=0, atol=1e-4)  # each site's own scale
    assert group_mean.std(correction=0).item() == pytest.approx(1, abs=1e-4)  # one scale for all sites
    constant = sites.index_fill(2, torch.tensor([1]), 1 / 3)
    for each, how in ((group, "group"), (group_mean, "group_mean")):
        torch.testing.assert_close(each[::2].mean(0), torch.zeros(2, 3), rtol=0, atol=1e-5)
        assert not normalised(constant, prompts, how)[:, :, 1].any()
    for how in ("batch", "per_pixel", "per_prompt", "group", "group_mean"):
        assert not normalised(torch.full((4, 2, 2), 1 / 3), ["a"] * 4, how).any()


def test_the_plan_is_what_the_meters_count(policy: Policy) -> None:
    method = a_pixel_method(policy, torch.ones(2, 2), batch=32, micro_batch=8, form="importance_sampled")
    for batch in method.collect(["a"] * 64, Draws(0, 0)):
        method.loss(batch)[0].backward()
    assert dict(policy.model.meters.network_evaluations) == method.plan()
    assert policy.model.meters.reward_queries == 64


def test_a_reward_without_a_map_is_refused_by_name(policy: Policy) -> None:
    with pytest.raises(ValueError, match="reward=linear has not; reward=colour has"):
        PXPO(
            policy=policy, judge=Judge(Linear(1.0), policy.model.meters), optimizer=torch.optim.AdamW, micro_batch=1, processes=1, images=4,
            batch=4, images_per_prompt=1, inner_epochs=1, form="score_function", clip=0.1, normalise="none", advantage_clip=5.0,
            reduce="mean",
        )  # fmt: skip


def test_it_goes_with_the_default_reward() -> None:
    assert compose(["method=pxpo"]).choices["reward"] == "scene_judge"
    with pytest.raises(ConfigError, match=r"reward=exact_judge .*needs a pixel map.*choose reward=.*colour.*scene_judge"):
        compose(["method=pxpo", "reward=exact_judge"])
