"""A divergence that fits every method, one-step ones too: how badly the frozen reference denoises an image, at fixed times and noise."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignbench import ranks
from alignbench.models.base import Diffusion
from alignbench.rng import generator, normal


@torch.no_grad()
def reference_error(
    model: Diffusion,
    latents: Tensor,
    prompts: Sequence[str],
    ids: Sequence[tuple[int, int]],
    *,
    times: Sequence[float],
    noise: int,
    chunk: int,
) -> Tensor:
    """D(x_0 | c) = mean over t of |eps_ref(alpha x_0 + sigma eps, t, c) - eps|^2 / dimensions: [B], a mean square of one element.

    latents: [B,C,h,w] final; prompts: their c; ids: each image's (prompt, k), from which its noise eps comes, one for each time and the
    same for every policy; times: shares of the training schedule, 0 the image and 1 noise; chunk: rows a forward pass.

    It is DDPM's unweighted bound (2006.11239, eq. 14) at fixed t and eps: an image's surprise, up to the weights of its times. By itself it
    tells how hard an image is to denoise. The paired difference policy - reference tells how far samples have left what the reference would
    make, in either direction: below 0 they are more typical than its own. The reference is the score reference (`who=None`), unguided,
    whatever the policy starts from. Costs len(times) network evaluations an image; the caller pauses the meters.
    """
    mine = ranks.mine(len(latents))
    found = torch.zeros(len(mine), device=latents.device, dtype=latents.dtype)
    cond = model.encode(prompts)
    for part in torch.arange(len(mine)).split(chunk):
        rows = [mine[index] for index in part.tolist()]
        x0, keys = latents[rows].to(model.device), [generator(noise, "score", *ids[row]) for row in rows]
        for share in times:
            t = torch.full((len(rows),), round(share * (model.train_times - 1)), device=x0.device)
            (alpha, sigma), eps = model.alpha_sigma(t), normal(x0.shape[1:], keys, like=x0)
            error = model.eps(alpha * x0 + sigma * eps, t, cond[rows], None) - eps
            found[part] += error.square().flatten(1).mean(1).to(found) / len(times)
    return ranks.gathered(found, len(latents))
