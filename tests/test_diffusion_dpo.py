"""Diffusion-DPO: its loss and gradient written out, where they start, who else has them, and what a pair brings into a batch."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from methods_zoo import PROMPTS, GivenPairs, gradients, made, moved, prompts_of
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from alignbench.config import ConfigError
from alignbench.methods.pso_offline import PSOOffline
from alignbench.rng import Draws
from alignbench.tables import NoisedPair


def a_batch(method: Any, epoch: int = 0) -> NoisedPair:
    return next(iter(method.collect(prompts_of(method), Draws(0, epoch))))


def error(method: Any, rows: Any, who: str | None) -> Tensor:
    """|eps_theta(x_t) - eps|^2 from the schedule's table and the network's raw output."""
    alpha_bar = method.policy.model.alpha_bar[rows.t][:, None, None, None]
    x_t = alpha_bar.sqrt() * rows.x0 + (1 - alpha_bar).sqrt() * rows.eps
    return (method.policy.model.predict(x_t, rows.t, rows.cond, who) - rows.eps).square().sum((1, 2, 3))


@pytest.mark.parametrize(("reduce", "unit"), [("mean", 4), ("sum", 1)])
def test_the_loss_is_the_released_codes(reduce: str, unit: int) -> None:
    """-log sigmoid(-beta / 2 ((e_w - e_l) - (e_w_ref - e_l_ref))), e a mean over the latent, or a sum."""
    method = moved(made("diffusion_dpo", reduce=reduce))
    batch = a_batch(method)
    win, lose, win_ref, lose_ref = (error(method, rows, who) / unit for who in ("policy", None) for rows in (batch.win, batch.lose))
    inside = -0.5 * method.beta * ((win - lose) - (win_ref - lose_ref))
    assert inside.abs().max() > 0.1
    loss, metrics = method.loss(batch)
    torch.testing.assert_close(loss, -(batch.win.weight * logsigmoid(inside)).mean())
    torch.testing.assert_close(metrics["accuracy"], (batch.win.weight * (inside > 0)).mean())
    torch.testing.assert_close(metrics["win_error"], win.mean() * unit / 4)


def test_it_starts_at_log_two_with_the_gradient_of_the_difference_of_errors() -> None:
    """At the reference sigmoid is 1/2 whatever beta is: gradient = beta / 4 (grad e_w - grad e_l)."""
    method = made("diffusion_dpo", drop_prompt=0.0)
    batch = a_batch(method)
    weight = batch.win.weight
    assert method.loss(batch)[0].item() == pytest.approx(math.log(2) * weight.mean().item(), abs=1e-12)
    difference = (weight * (error(method, batch.win, "policy") - error(method, batch.lose, "policy")) / 4).mean()
    parameters = method.policy.trainable()
    for name, slope in zip(parameters, torch.autograd.grad(difference, list(parameters.values())), strict=True):
        found = next(value for key, value in gradients(method, batch).items() if key.endswith(f"policy.{name}"))
        assert slope.abs().max() > 1e-3
        torch.testing.assert_close(found, method.beta / 4 * slope, rtol=1e-9, atol=1e-12)


def test_a_small_beta_has_that_gradient_anywhere_and_a_large_one_does_not() -> None:
    def off(beta: float) -> float:
        method = moved(made("diffusion_dpo", beta=beta))
        batch = a_batch(method)
        difference = (batch.win.weight * (error(method, batch.win, "policy") - error(method, batch.lose, "policy")) / 4).mean()
        slopes = torch.autograd.grad(difference, list(method.policy.trainable().values()))
        found = [value for value in gradients(method, batch).values() if value.any()]
        return max(((one / (beta / 4) - slope).abs().max() / slope.abs().max()).item() for one, slope in zip(found, slopes, strict=True))

    assert off(1e-6) < 1e-5
    assert off(20.0) > 0.1


def test_a_swapped_pair_has_the_other_sign() -> None:
    """log sigmoid(x) - log sigmoid(-x) = x: the two losses differ by beta times the margin."""
    method = moved(made("diffusion_dpo"))
    batch = a_batch(method)
    loss, metrics = method.loss(batch)
    swapped, metrics_ = method.loss(NoisedPair(batch.lose, batch.win))
    torch.testing.assert_close(swapped - loss, method.beta * metrics["margin"])
    torch.testing.assert_close(metrics_["margin"], -metrics["margin"])
    assert metrics["margin"].abs() > 1e-3


def test_offline_pso_with_given_losers_and_no_prior_is_this_loss() -> None:
    """At neg_defactor 1 and prior_weight 0, with half the beta, where one half of the squared error is ours."""
    method = moved(made("diffusion_dpo"))
    numbers = {"images": 4, "batch": 4, "steps": 1, "form": "preference", "neg_defactor": 1.0, "prior_weight": 0.0, "pictures": None}
    other = PSOOffline(policy=method.policy, judge=method.judge, micro_batch=4, processes=1, beta=method.beta / 2, **numbers)
    other.policy.sampler.guidance = 1.0
    batch = a_batch(method)
    decided = batch.win.weight > 0
    batch = NoisedPair(
        *(type(rows)(*(getattr(rows, f)[decided] for f in ("x0", "eps", "t", "cond", "weight"))) for rows in vars(batch).values())
    )
    torch.testing.assert_close(other.loss(batch)[0], method.loss(batch)[0])


def test_a_pair_has_one_noise_one_time_one_prompt_and_its_own_images() -> None:
    method = made("diffusion_dpo", drop_prompt=0.5)
    batch = a_batch(method)
    for name in ("eps", "t", "cond", "weight"):
        assert torch.equal(getattr(batch.win, name), getattr(batch.lose, name))
    assert len(set(batch.win.t.tolist())) > 6 and len(batch.win.eps.unique(dim=0)) == len(batch)
    assert (batch.win.x0.mean((1, 2, 3)) > batch.lose.x0.mean((1, 2, 3))).all()
    for row, each in enumerate(Draws(0, 0).each("pairs", range(len(batch)))):
        win, _, (prompt,), weight = GivenPairs().draw(1, each)
        assert torch.equal(batch.win.x0[row], win[0, :1])
        assert batch.win.weight[row] == weight[0]
        encoded = [method.policy.model.encode([text])[0] for text in (prompt, "")]
        assert any(torch.equal(batch.win.cond[row], each) for each in encoded)
    kept = sum(not torch.equal(row, method.policy.model.encode([""])[0]) for row in batch.win.cond)
    assert 0 < kept < len(batch)


def test_no_epoch_and_no_step_repeats_another() -> None:
    method = made("diffusion_dpo")
    batches = [*method.collect(PROMPTS, Draws(0, 0)), *method.collect(PROMPTS, Draws(0, 1)), *method.collect(PROMPTS, Draws(1, 0))]
    assert len(torch.cat([batch.win.x0 for batch in batches]).unique(dim=0)) == sum(map(len, batches))
    again = list(method.collect(PROMPTS, Draws(0, 0)))
    assert all(torch.equal(one.lose.x0, other.lose.x0) for one, other in zip(batches, again, strict=False))


def test_ties_teach_nothing_and_are_counted() -> None:
    method = moved(made("diffusion_dpo"))
    batch = a_batch(method)
    assert method.collected == {"decided": 2 / 3}
    assert 0 < batch.win.weight.sum() < len(batch)
    tied = (batch.win.weight == 0)[:, None, None, None]
    other = replace(batch, win=replace(batch.win, x0=torch.where(tied, batch.win.x0 + 1, batch.win.x0)))
    assert torch.equal(method.loss(batch)[0], method.loss(other)[0])
    assert not method.idle(batch)
    nothing = torch.zeros_like(batch.win.weight)
    assert method.idle(NoisedPair(replace(batch.win, weight=nothing), replace(batch.lose, weight=nothing)))


def test_images_that_do_not_fit_the_model_are_refused() -> None:
    class Wide(GivenPairs):
        def draw(self, count: int, generator: Generator) -> tuple[Tensor, Tensor, list[str], Tensor]:
            win, lose, prompts, weight = super().draw(count, generator)
            return win.repeat(1, 1, 1, 2), lose.repeat(1, 1, 1, 2), prompts, weight

    with pytest.raises(ConfigError, match=r"pairs of 4x2 pixels do not fit the model, which makes 2x2; set method\.pairs"):
        a_batch(made("diffusion_dpo", pairs=Wide()))


def test_a_pair_that_cannot_be_read_ends_in_its_own_words() -> None:
    class Damaged(GivenPairs):
        def draw(self, count: int, generator: Generator) -> tuple[Tensor, Tensor, list[str], Tensor]:
            raise ConfigError("row 7: damaged")

    with pytest.raises(ConfigError, match="row 7: damaged"):
        a_batch(made("diffusion_dpo", pairs=Damaged()))
