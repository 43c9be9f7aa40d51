"""The papers' equations, as functions of tensors. Nothing here knows of networks, samplers or logging."""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduce = Literal["mean", "sum"]
EPSILON = 1e-6  # keeps a division by a std finite; kvablack/ddpo-pytorch


def per_unit(nats: Tensor, dimensions: int, reduce: Reduce) -> Tensor:
    """A log-probability that is a sum over `dimensions`, in the unit that a method's clip and weights are given in."""
    return nats / dimensions if reduce == "mean" else nats


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's pessimistic bound as a loss, elementwise (DDPO, section 4.3; PPO, equation 7). log_ratio, advantage: one shape."""
    ratio = log_ratio.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def hard_clamped(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The released DPOK's surrogate, elementwise: outside 1 +- clip there is no gradient, not even one that would undo the excess."""
    return -advantage * log_ratio.exp().clamp(1 - clip, 1 + clip)


def score_function(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """REINFORCE as a loss, elementwise (DDPO, equation DDPO-SF). Its gradient is that of the surrogate at ratio 1."""
    return -advantage * log_prob


def standardise(value: Tensor, by: Tensor | None = None, over: tuple[int, ...] | None = None) -> Tensor:
    """(value - mean) / (std + EPSILON), with mean and population std of `by` (value itself, unless given) over its axes `over` (all).

    Exactly 0 where `by` is constant, however its mean is rounded: equal rewards must move no weight.
    """
    by = value if by is None else by
    over = tuple(range(by.ndim)) if over is None else over
    centred = (value - by.mean(over, keepdim=True)) / (by.std(over, correction=0, keepdim=True) + EPSILON)
    return torch.where(by.amax(over, keepdim=True) == by.amin(over, keepdim=True), 0.0, centred)


def group_advantage(reward: Tensor, prompts: list[str], spread: Literal["group", "batch"]) -> Tensor:
    """Rewards [B] minus the mean of their prompt's images, over a std: [B]. A prompt's advantages sum to zero.

    spread: group, each prompt's own std (GRPO); batch, the std of all rewards at once (Flow-GRPO's code), which does not blow up the
    differences between the images of a prompt that are all nearly right.
    """
    advantage = torch.zeros_like(reward)
    for prompt in dict.fromkeys(prompts):
        members = torch.tensor([each == prompt for each in prompts], device=reward.device)
        own = reward[members]
        if own.amax() > own.amin():
            advantage[members] = (own - own.mean()) / ((own if spread == "group" else reward).std(correction=0) + EPSILON)
    return advantage


def preference(log_ratio_win: Tensor, log_ratio_lose: Tensor, beta: float, clip: float | None) -> Tensor:
    """-log sigmoid(beta (log-ratio of the winner - log-ratio of the loser)), elementwise; the ratios are to the reference (DPO).

    clip: clamps each ratio into 1 +- clip first, as D3PO's and PSO's code does: beyond it nothing is learned, on either side.
    """
    if clip is not None:
        low, high = math.log1p(-clip), math.log1p(clip)
        log_ratio_win, log_ratio_lose = log_ratio_win.clamp(low, high), log_ratio_lose.clamp(low, high)
    return -F.logsigmoid(beta * (log_ratio_win - log_ratio_lose))


def preference_metrics(win: Tensor, lose: Tensor, weight: Tensor, clip: float | None) -> dict[str, Tensor]:
    """What to log of log-ratios [N]: mean margin, share of pairs ranked rightly, share of ratios that the clip holds."""
    win, lose = win.detach(), lose.detach()
    metrics = {"margin": (weight * (win - lose)).mean(), "accuracy": (weight * (win > lose)).mean()}
    if clip is not None:
        metrics["clipped"] = torch.cat([win, lose]).exp().sub(1).abs().gt(clip).float().mean()
    return metrics


def of_scored(reward: Tensor, prompts: list[str], value: Callable[[Tensor, list[str]], Tensor]) -> Tensor:
    """`value` of rewards [B,...] and their prompts, an advantage or a weight of the same shape; 0 for images without a score (NaN).

    An image that a judge gave no score teaches nothing, and the others learn as if it had not been sampled.
    """
    known = ~reward.reshape(len(reward), -1).isnan().any(1)
    result = torch.zeros_like(reward)
    if known.any():
        result[known] = value(reward[known], [prompt for prompt, there in zip(prompts, known.tolist(), strict=True) if there])
    return result


def mean_and_std(values: Tensor) -> tuple[float, float]:
    """Of those that are not NaN, the std of a population; NaN where there are none."""
    known = values[~values.isnan()]
    return (known.mean().item(), known.std(correction=0).item()) if len(known) else (math.nan, math.nan)


Divergence = Literal["kl", "l2", "pseudo_huber"]


def score_divergence(divergence: Divergence, critic: Tensor, reference: Tensor, x0: Tensor, huber: float) -> Tensor:
    """The loss whose gradient is that of a divergence between the generator's and the reference's diffused laws: [N].

    critic, reference [N,C,h,w]: x0-predictions at x_t = alpha x_0 + sigma eps, with the graph through x_t and neither's weights trained;
    x0 [N,C,h,w] the generator's sample. Diff-Instruct* (2410.20898): -<d'(y), x0_critic - x0>, y = x0_critic - x0_reference over the whole
    sample, d = |y|^2 (l2; SiD at alpha 1) or sqrt(|y|^2 + huber^2) - huber; Diff-Instruct (kl): <sg(y), x0>. y is sigma^2 / alpha times the
    difference of scores, so this is the paper's loss with w(t) = sigma^4 / 2 alpha^2 (l2), sigma^2 / alpha (pseudo-Huber, whose huber is
    in x0 units) and sigma^2 / alpha^2 (kl). Its value means nothing (0 on average once the critic is exact); only its gradient does.
    """
    y = (critic - reference).flatten(1)
    if divergence == "kl":
        return (y.detach() * x0.flatten(1)).sum(1)
    u = y if divergence == "l2" else y / (y.square().sum(1, keepdim=True) + huber**2).sqrt()
    return -(u * (critic - x0).flatten(1)).sum(1)


def ranked(scores: Tensor, each: int, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs of a prompt's `each` images, of scores [B,criteria]: winners [P], losers [P] as rows, and which pairs are decided [P].

    A winner is no worse by any criterion and better by one (D3PO's code), by more than `margin`; a pair without a winner is not decided,
    nor is one with an image that has no score (NaN), and stands in row order.
    """
    first, second = torch.triu_indices(each, each, 1, device=scores.device)
    start = torch.arange(0, len(scores), each, device=scores.device)[:, None]
    first, second = (start + first).flatten(), (start + second).flatten()
    gap = scores[first] - scores[second]
    ahead = (gap >= 0).all(1) & (gap > margin).any(1)
    behind = (gap <= 0).all(1) & (gap < -margin).any(1)
    return torch.where(behind, second, first), torch.where(behind, first, second), ahead | behind


def reward_weights(
    reward: Tensor, prompts: list[str], form: Literal["dense", "sparse"], inverse_temperature: float, percentile: float
) -> Tensor:
    """Reward-weighted regression's weights [B], over each prompt's images.

    dense: softmax(inverse_temperature * reward) times the number of images, so that the mean is 1; sparse: 1 for rewards at or above the
    percentile (a fraction), else 0.
    """
    weight = torch.zeros_like(reward)
    for prompt in dict.fromkeys(prompts):
        members = torch.tensor([each == prompt for each in prompts], device=reward.device)
        own = reward[members]
        if form == "dense":
            weight[members] = torch.softmax(inverse_temperature * own, 0) * len(own)
        else:
            weight[members] = (own >= own.quantile(percentile)).to(own)
    return weight
