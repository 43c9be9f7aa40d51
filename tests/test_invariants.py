"""What must hold for every method: at the reference, far from it, for ties, between turns, in the meters and across a checkpoint."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from methods_zoo import (
    DDPO_,
    DI_STAR,
    KL_RLHF,
    ZOO,
    Brightness,
    Flat,
    Hill,
    a_world,
    fit,
    gradients,
    made,
    moved,
    optimise,
    prompts_of,
    same,
    variant,
    weights,
)
from torch import Tensor

from alignbench.methods.base import Method
from alignbench.methods.di_star import CriticTurn, GeneratorTurn
from alignbench.methods.kl_rlhf import ValueRows
from alignbench.objectives import preference, ranked
from alignbench.rng import Draws, generator
from alignbench.tables import Pair, Transition

pytestmark = pytest.mark.filterwarnings("ignore:.*(eval mode|same score|returned `None`|no `val_dataloader`|weights_only).*")
PAIRED = [name for name in ZOO if name.startswith(("d3po", "pso"))]
RATIOS = [name for name in ZOO if name.startswith(("ddpo", "pxpo", "kl_rlhf", "d3po", "pso"))]
DETACHED = ("di_star_kl", "diff_instruct", "di_star_outside", "di_star_outside_kl", "di_star_outside_l2", "di_star_few_step")  # as meant
SLOPES = [name for name in ZOO if name not in DETACHED]
TIED = [name for name in PAIRED if name != "pso_second_wins"]


class Coarse(Hill):
    """Some images of a prompt are equally good, some are not."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return (super().forward(images, prompts) * 3).round()


class Thirds(Hill):
    """Two thirds of the prompts have images that are all equally good."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.where(torch.tensor([prompt == "a dog" for prompt in prompts]), super().forward(images, prompts), 0.0)


def epoch(method: Method, number: int = 0) -> list[Any]:
    return list(method.collect(prompts_of(method), Draws(0, number)))


def flat(found: dict[str, Tensor], *of: str) -> Tensor:
    """Gradients of the networks named, as one vector."""
    return torch.cat([value.flatten() for name, value in found.items() if not of or any(f".{each}." in f".{name}." for each in of)])


# --- preferences


@pytest.mark.parametrize("name", PAIRED)
def test_a_preference_starts_at_log_two_with_the_gradient_of_the_margin(name: str) -> None:
    """loss = log 2, gradient = -beta / 2 (grad log p_win - grad log p_lose), in the unit of `reduce`."""
    method = made(name)
    batch = next(batch for batch in epoch(method) if batch.weight.any())  # a whole update, whose weights have mean 1
    assert method.loss(batch)[0].item() == pytest.approx(math.log(2), abs=1e-12)
    win, lose = (method.policy.log_ratio(each, "image") / method.policy.dimensions for each in (batch.win, batch.lose))
    margin = (batch.weight * (win - lose)).mean()
    parameters = list(method.policy.trainable().values())
    for found, slope in zip(torch.autograd.grad(method.loss(batch)[0], parameters), torch.autograd.grad(margin, parameters), strict=True):
        assert slope.abs().max() > 1e-3
        torch.testing.assert_close(found, -method.beta / 2 * slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("win", [-1, 1])
@pytest.mark.parametrize("lose", [-1, 1])
def test_beyond_the_clamp_nothing_is_learned_on_either_side(name: str, win: int, lose: int) -> None:
    method = made(name)
    batch = epoch(method)[0]
    far = 50 * method.policy.dimensions  # a log-ratio of 50 in the unit of `reduce`
    batch = Pair(
        replace(batch.win, log_prob=batch.win.log_prob - win * far),
        replace(batch.lose, log_prob=batch.lose.log_prob - lose * far),
        batch.weight,
    )
    loss, metrics = method.loss(batch)
    found = flat(gradients(method, batch), "copies.policy")
    assert all(value.isfinite().all() for value in (loss, found, *metrics.values()))
    if method.clip is not None:
        assert not found.any()
        low, high = math.log(1 - method.clip), math.log(1 + method.clip)
        margin = {(1, 1): 0, (-1, -1): 0, (1, -1): high - low, (-1, 1): low - high}[win, lose]
        assert loss.item() == pytest.approx(math.log1p(math.exp(-method.beta * margin)), rel=1e-9)
    elif win <= lose:
        assert found.abs().max() > 1e-3  # not yet preferred: without a clamp there is something to learn, however far


@pytest.mark.parametrize("name", TIED)
def test_ties_weigh_nothing_and_the_others_of_their_update_weigh_one_on_average(name: str) -> None:
    method = made(name, reward=Thirds(), micro_batch=4)
    batches, each = epoch(method), method.updates.accumulate
    seen = set()
    for update in (batches[start : start + each] for start in range(0, len(batches), each)):
        weight = torch.cat([batch.weight for batch in update])
        pairs = method.updates.batch
        decided = int(weight.gt(0).sum() / method.updates.trained.sum())
        seen.add(0 < decided < pairs)
        assert set(weight.tolist()) <= {0.0, pairs / max(decided, 1)}
        assert weight.mean().item() == pytest.approx(1 if decided else 0, abs=1e-12)
        for batch in update:
            assert method.idle(batch) is not bool(batch.weight.any())
    assert True in seen


@pytest.mark.parametrize("name", TIED)
def test_what_stands_in_a_tie_changes_no_loss(name: str) -> None:
    method = moved(made(name, reward=Thirds()))
    batch = next(batch for batch in epoch(method) if 0 < batch.weight.gt(0).float().mean() < 1)
    tied = (batch.weight == 0)[:, None, None, None]
    other = replace(batch, win=replace(batch.win, y=torch.where(tied, batch.win.y + 1, batch.win.y)))
    assert torch.equal(method.loss(batch)[0], method.loss(other)[0])
    assert all(torch.equal(one, two) for one, two in zip(gradients(method, batch).values(), gradients(method, other).values(), strict=True))


@pytest.mark.parametrize("name", [name for name in TIED if name != "d3po_criteria"])
def test_an_epoch_of_ties_moves_no_weight(name: str, tmp_path: Path) -> None:
    method = moved(made(name, reward=Flat(), micro_batch=4, decay=0.5))
    before = weights(method)
    fit(method, 2, tmp_path)
    assert same(before, weights(method))


def test_released_pso_lets_the_second_of_two_equal_images_win() -> None:
    method = made("pso_second_wins", reward=Flat())
    assert all(batch.weight.eq(1).all() for batch in epoch(method))


def test_swapping_a_pair_and_its_label_changes_nothing() -> None:
    win, lose = (torch.randn(64, generator=generator(index, "ratios"), dtype=torch.float64) for index in range(2))
    for clip in (None, 0.3):
        one, other = preference(win, lose, 2.0, clip), preference(lose, win, 2.0, clip)
        low, high = (math.log1p(-clip), math.log1p(clip)) if clip else (-math.inf, math.inf)
        torch.testing.assert_close(one - other, -2.0 * (win.clamp(low, high) - lose.clamp(low, high)))  # log s(x) - log s(-x) = x
    scores = torch.randint(4, (24, 2), generator=generator(0, "scores"))
    swap = torch.arange(24) ^ 1  # the two images of a prompt change places
    for found in (ranked(scores, 2, 0.0), ranked(scores[swap], 2, 0.0)):
        assert found[2].any() and not found[2].all()
    (win, lose, decided), (win_, lose_, decided_) = ranked(scores, 2, 0.0), ranked(scores[swap], 2, 0.0)
    assert torch.equal(decided, decided_)
    assert torch.equal(win[decided], swap[win_[decided]]) and torch.equal(lose[decided], swap[lose_[decided]])


@pytest.mark.parametrize("criteria", [1, 2, 3])
@pytest.mark.parametrize("each", [2, 3, 5])
def test_ranked_is_what_a_loop_over_pairs_finds(each: int, criteria: int) -> None:
    scores = torch.randint(3, (each * 30, criteria), generator=generator(each, "scores"))
    expected = []
    for start in range(0, len(scores), each):
        for a, b in itertools.combinations(range(start, start + each), 2):
            better = [(scores[i] >= scores[j]).all() and (scores[i] > scores[j]).any() for i, j in ((a, b), (b, a))]
            expected.append((b, a, True) if better[1] else (a, b, bool(better[0])))
    win, lose, decided = ranked(scores, each, 0.0)
    assert list(zip(win.tolist(), lose.tolist(), decided.tolist(), strict=True)) == expected
    assert {True, False} <= set(decided.tolist())


# --- ratios


@pytest.mark.parametrize("name", RATIOS)
@pytest.mark.parametrize("nats", [-50.0, 50.0], ids=["less likely", "more likely"])
def test_far_from_the_data_everything_is_finite(name: str, nats: float) -> None:
    method = moved(made(name, model=a_world().float(), reduce="sum"))  # in training's own precision
    batch = next(batch for batch in epoch(method) if not isinstance(batch, ValueRows))

    def shifted(rows: Transition, by: float) -> Transition:
        return replace(rows, log_prob=rows.log_prob - by)

    shifts = [shifted(batch, nats)] if isinstance(batch, Transition) else []
    if isinstance(batch, Pair):
        shifts = [Pair(shifted(batch.win, nats * sign), shifted(batch.lose, nats), batch.weight) for sign in (1, -1)]
    for each in shifts:
        loss, metrics = method.loss(each)
        assert all(value.isfinite().all() for value in (loss, *metrics.values(), *gradients(method, each).values()))


@pytest.mark.parametrize(
    "name, metric",
    [("ddpo_group", "step_kl"), ("kl_rlhf", "step_kl"), ("kl_rlhf_value", "step_kl"), ("kl_rlhf_released", "eps_gap")],
)
def test_the_step_kl_is_zero_at_the_reference_and_positive_off_it(name: str, metric: str) -> None:
    for method, off in ((made(name, micro_batch=1), False), (moved(made(name, micro_batch=1)), True)):
        for batch in epoch(method):
            if not isinstance(batch, ValueRows):
                assert len(batch) == 1
                value = method.loss(batch)[1][metric].item()
                assert value > 0 if off else value == 0


@pytest.mark.parametrize("name", ["ddpo", "pso"])
def test_the_path_kl_is_zero_at_the_reference_and_positive_off_it(name: str) -> None:
    for method, off in ((made(name), False), (moved(made(name)), True)):
        (kl,) = method.policy.path_kl(method.policy.rollout(["a dog"], "image", Draws(0, 0).each("one", [0]))).tolist()
        assert kl > 0 if off else kl == 0


# --- every term is felt


def slope(name: Any, kind: type | None = None, **changes: Any) -> Tensor:
    """The policy's gradient from the first batch (of a kind), far enough from the reference that nothing vanishes by symmetry."""
    method = moved(made(name, **changes))
    return flat(gradients(method, next(batch for batch in epoch(method) if kind in (None, type(batch)))), "copies.policy")


@pytest.mark.parametrize(
    "entry, coefficient, at, kind",
    [
        (variant(DDPO_, kl=1.0), "kl", 0.2, Transition),
        (KL_RLHF, "kl", 0.3, Transition),
        (KL_RLHF, "reward_weight", 10.0, Transition),
        (variant(KL_RLHF, variant="released"), "kl", 0.3, Transition),
        (variant(KL_RLHF, variant="released"), "reward_weight", 10.0, Transition),
        (variant(KL_RLHF, baseline="value"), "reward_weight", 10.0, Transition),
        (DI_STAR, "reward_weight", 3.0, GeneratorTurn),
        (variant(DI_STAR, divergence="kl"), "reward_weight", 3.0, GeneratorTurn),
        (variant(DI_STAR, placement="outside"), "guidance", 3.0, GeneratorTurn),
        (variant(DI_STAR, placement="outside", divergence="kl"), "guidance", 3.0, GeneratorTurn),
        (variant(DI_STAR, placement="outside", divergence="l2"), "guidance", 3.0, GeneratorTurn),
        (variant(DI_STAR, divergence="kl"), "guidance", 3.0, GeneratorTurn),
    ],
)
def test_a_terms_gradient_is_there_and_grows_with_its_coefficient(entry: Any, coefficient: str, at: float, kind: type) -> None:
    """Linear in it: what the second half adds is what the first half added."""
    start = 1.0 if coefficient == "guidance" else 0.0
    none, half, whole = (slope(entry, kind, **{coefficient: value}) for value in (start, (start + at) / 2, at))
    assert (half - none).abs().max() > 1e-3
    torch.testing.assert_close(whole - half, half - none, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("divergence", ["kl", "l2", "pseudo_huber"])
@pytest.mark.parametrize("placement", ["inside", "outside"])
def test_without_a_reward_the_divergence_is_felt_by_every_weight_of_the_generator(divergence: str, placement: str) -> None:
    found = slope(variant(DI_STAR, divergence=divergence, placement=placement), kind=GeneratorTurn, reward_weight=0.0)
    assert found.abs().min() > 1e-5


def test_guidance_outside_is_guidance_inside_where_the_divergence_is_linear_in_it() -> None:
    inside, outside = (
        slope(variant(DI_STAR, divergence="kl", placement=placement, guidance=3.5), kind=GeneratorTurn)
        for placement in ("inside", "outside")
    )
    torch.testing.assert_close(inside, outside, rtol=1e-9, atol=1e-9)


def test_the_generator_at_the_reference_feels_no_unguided_divergence() -> None:
    """The critic starts as the reference, so y = 0 whatever the generator is; the reward alone moves it."""
    for divergence in ("kl", "l2", "pseudo_huber"):
        method = made(variant(DI_STAR, divergence=divergence, guidance=1.0, reward_weight=0.0))
        turn = next(batch for batch in epoch(method) if isinstance(batch, GeneratorTurn))
        assert flat(gradients(method, turn)).abs().max() < 1e-9


def test_a_value_baseline_is_subtracted_and_not_trained_by_the_theirs_loss() -> None:
    method = moved(made("kl_rlhf_value"))
    batches = epoch(method)
    own, theirs = (next(b for b in batches if isinstance(b, ValueRows) is kind) for kind in (True, False))
    assert flat(gradients(method, own), "value").abs().max() > 1e-3
    assert not flat(gradients(method, own), "copies.policy").any()
    assert not flat(gradients(method, theirs), "value").any()
    before = flat(gradients(method, theirs), "copies.policy")
    for parameter in method.value.parameters():
        parameter.data.zero_()
    method.value.layers[-1].bias.data.fill_(0.7)
    constant = flat(gradients(method, theirs), "copies.policy")
    assert not torch.allclose(before, constant)
    by_hand = flat(gradients(moved(made("kl_rlhf")), replace(theirs, advantage=theirs.advantage - 0.7)), "copies.policy")
    torch.testing.assert_close(constant, by_hand, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("ddpo", {"advantage": "none"}),
        ("d3po", {"beta": 1.0}),
        ("d3po_criteria", {"criteria": []}),
        ("pso", {"beta": 1.0}),
        ("rwr", {"inverse_temperature": 1.0}),
        ("rwr", {"form": "sparse", "percentile": 0.5}),
        ("rwr_sparse", {"percentile": 0.2}),
        ("sft", {"drop_prompt": 0.9}),
        ("diffusion_dpo", {"drop_prompt": 0.9}),
        ("diffusion_dpo", {"beta": 5.0}),
        ("diffusion_dpo", {"reduce": "sum"}),
        ("pxpo", {"normalise": "per_pixel"}),
        ("pxpo_sf", {"normalise": "none"}),
        ("di_star_l2", {"normalise": "none"}),
        ("di_star", {"huber": 1.0}),
    ],
)
def test_an_option_changes_the_gradient(name: str, changes: dict[str, Any]) -> None:
    kind = GeneratorTurn if name.startswith("di_") else None
    one, other = slope(name, kind=kind), slope(name, kind=kind, **changes)
    assert one.abs().max() > 1e-3 and other.abs().max() > 1e-3
    assert not torch.allclose(one, other, rtol=1e-3)


@pytest.mark.parametrize("name", SLOPES)
def test_the_gradient_is_the_slope_of_the_loss(name: str) -> None:
    """By differences, along a random direction, for each kind of batch: what is detached is missed."""
    changes = {"reward_weight": 0.0, "normalise": "none"} if name.startswith("di_") else {}  # a reward is in float32
    method = moved(made(name, **changes))
    named = {each: parameter for each, parameter in method.named_parameters() if parameter.requires_grad}
    direction = {each: torch.randn(p.shape, generator=generator(0, each), dtype=torch.float64) for each, p in named.items()}
    for batch in {type(batch): batch for batch in epoch(method)}.values():
        found = gradients(method, batch)
        heard = [each for each, gradient in found.items() if gradient.any()]  # the networks whose turn it is
        values = []
        for step in (1e-5, -2e-5):
            for each in heard:
                named[each].data += step * direction[each]
            values.append(method.loss(batch)[0].item())
        for each in heard:
            named[each].data += 1e-5 * direction[each]
        along = sum((found[each] * direction[each]).sum().item() for each in heard)
        assert abs(along) > 1e-3
        assert along == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


# --- turns


class Turns(Callback):
    """After every forward pass: what kind of batch it was, and all weights."""

    def __init__(self) -> None:
        self.seen: list[tuple[type, dict[str, Tensor]]] = []

    def on_train_start(self, trainer: Any, method: Any) -> None:
        self.seen.append((object, weights(method)))

    def on_train_batch_end(self, trainer: Any, method: Any, outputs: Any, batch: Any, index: int) -> None:
        self.seen.append((type(batch), weights(method)))  # before the method's own hook, which moves the average


@pytest.mark.parametrize("name", ["di_star", "di_star_kl", "di_star_few_step"])
def test_a_turn_moves_one_network_and_spans_whole_accumulation_windows(name: str, tmp_path: Path) -> None:
    """Weight decay would show on a weight that was given a gradient of 0, and momentum on one that keeps an old gradient."""
    method, turns = moved(made(name, micro_batch=6, critic_turns=3, turns=2, decay=0.5)), Turns()
    assert method.updates.accumulate == 2
    fit(method, 2, tmp_path, turns)
    turns.seen.append((object, weights(method)))
    kinds = [kind for kind, _ in turns.seen[1:-1]]
    assert kinds == ([CriticTurn] * 6 + [GeneratorTurn] * 2) * 4
    average = {n: w for n, w in turns.seen[0][1].items() if ".ema." in n}
    for index, (kind, after) in enumerate(turns.seen[1:-1]):
        before, later = turns.seen[index][1], turns.seen[index + 2][1]
        ends = index % 2 == 1
        assert same(before, after, "copies.critic") is not (kind is CriticTurn and ends)
        assert same(before, after, "copies.policy") is not (kind is GeneratorTurn and ends)
        if kind is GeneratorTurn and ends:
            for n in average:
                average[n] = average[n] * method.ema + after[n.replace(".ema.", ".policy.")] * (1 - method.ema)
        for n, value in average.items():
            torch.testing.assert_close(later[n], value, rtol=1e-9, atol=1e-12)
        assert same(after, later, "copies.ema") is not (kind is GeneratorTurn and ends)


def test_the_value_baseline_and_the_policy_move_in_turn(tmp_path: Path) -> None:
    method, turns = moved(made("kl_rlhf_value", micro_batch=12, decay=0.5)), Turns()
    assert method.updates.accumulate == 2
    fit(method, 2, tmp_path, turns)
    kinds = [kind for kind, _ in turns.seen[1:]]
    assert kinds == ([ValueRows] * 8 + [Transition] * 4) * 2
    for index, (kind, after) in enumerate(turns.seen[1:]):
        before, ends = turns.seen[index][1], index % 2 == 1
        assert same(before, after, "value") is not (kind is ValueRows and ends)
        assert same(before, after, "copies.policy") is not (kind is Transition and ends)


# --- counting, cutting, resuming


@pytest.mark.parametrize("micro_batch", [1, 4, 10**6])
@pytest.mark.parametrize("name", ZOO)
def test_the_plan_is_what_the_meters_count(name: str, micro_batch: int) -> None:
    method = moved(made(name, micro_batch=micro_batch))
    steps = list(optimise(method, 1))
    meters = method.policy.model.meters
    assert dict(meters.network_evaluations) == method.plan()
    assert meters.reward_queries == method.queries
    assert len(steps) == len(method.updates) // method.updates.accumulate


@pytest.mark.parametrize("name", ZOO)
def test_the_first_epoch_does_not_ask_the_reference_what_the_policy_has_said(name: str) -> None:
    """It spares what the method says it spares, and learns bit for bit what it would have learned."""
    method, asking = made(name), made(name)
    steps = list(optimise(method, 1))
    assert sum(method.policy.model.meters.network_evaluations.values()) == sum(method.plan().values()) - method.spared
    asking.policy.model.moved = lambda who: True  # type: ignore[method-assign]
    assert list(optimise(asking, 1)) == steps
    assert all(torch.equal(weight, weights(asking)[key]) for key, weight in weights(method).items())


@pytest.mark.parametrize("name", ZOO)
def test_how_many_rows_go_through_at_once_changes_no_result(name: str) -> None:
    one, other = (moved(made(name, micro_batch=rows, chunk=chunk)) for rows, chunk in ((10**6, 64), (3, 5)))
    for row, expected in zip(optimise(other, 2), optimise(one, 2), strict=True):
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-8)
    for name_, weight in weights(one).items():
        torch.testing.assert_close(weights(other)[name_], weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ZOO)
def test_a_resumed_run_ends_bit_for_bit_where_a_straight_one_does(name: str, tmp_path: Path) -> None:
    def state(method: Method, folder: Path, epochs: int, resume: Path | None = None) -> tuple[dict[str, Tensor], Any, Any]:
        trainer = fit(method, epochs, folder, resume=resume)
        return weights(method), trainer.optimizers[0].state_dict()["state"], method.policy.model.meters.state()

    straight, optimizer, meters = state(moved(made(name, micro_batch=6)), tmp_path / "straight", 3)
    first, _, _ = state(moved(made(name, micro_batch=6)), tmp_path / "first", 2)
    assert not same(first, straight)
    resumed, optimizer_, meters_ = state(made(name, micro_batch=6), tmp_path / "resumed", 3, tmp_path / "first" / "last.ckpt")
    assert same(resumed, straight)
    assert meters_ == meters
    torch.testing.assert_close(optimizer_, optimizer, rtol=0, atol=0)


def test_a_world_without_the_prompt_would_hide_the_guidance() -> None:
    """What the tests above rest on: the empty prompt is another one here, and rewards differ between a prompt's images."""
    world = a_world()
    x, t = torch.ones(1, 1, 2, 2, dtype=torch.float64), torch.tensor([500])
    conditional, empty = (world.eps(x, t, world.encode([prompt]), None) for prompt in ("a dog", ""))
    assert (conditional - empty).abs().max() > 0.1
    images = torch.rand(4, 3, 2, 2, generator=generator(0, "images"))
    assert len({Hill()(images, ["a dog"] * 4)[i].item() for i in range(4)}) == 4
    assert Coarse()(images, ["a dog"] * 4).shape == Brightness()(images, ["a dog"] * 4).shape == (4,)
