"""The papers' equations, as functions of tensors. Nothing here knows of networks, samplers or logging."""

from typing import Literal

import torch
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
