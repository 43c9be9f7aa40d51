"""How far apart two sets of images are, and how varied one is, from their features [N,D]: closed form, in float64, no random draw."""

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA, SCALE = 10.0, 1000.0  # CMMD's kernel width and printed unit (2401.09603, section 4, and its code)


def frechet(one: Tensor, other: Tensor) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of the sets' means and covariances, over N - 1 (1706.08500, eq. 6).

    Biased upwards where N is small, by more in more dimensions: compare equal N only. At N <= D the covariances are singular; the value
    is then that of the Gaussians on the images' own span, and tells of N as much as of the images: `differences` leaves it out.
    tr (S1 S2)^(1/2) is the sum of the singular values of A B^T for S1 = A^T A, S2 = B^T B: no root of a matrix, never complex.
    """
    one, other = _two(one, other, 2)
    means = (one.mean(0) - other.mean(0)).square().sum()
    roots = [torch.linalg.qr(each - each.mean(0), mode="r").R / (len(each) - 1) ** 0.5 for each in (one, other)]
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float((means + roots[0].square().sum() + roots[1].square().sum() - 2 * shared).clamp(min=0))


def kid(one: Tensor, other: Tensor, paired: bool = False) -> float:
    """Squared MMD with the kernel (x.y / D + 1)^3, unbiased, on all images at once (1801.01401): below 0 by chance where sets are alike.

    paired: row i of both sets has the same prompt and noise, so that k(x_i, y_i) tells nothing of two independent images; it is left out,
    as from the U-statistic of Gretton et al. (2012, eq. 4). With it equal sets would differ by -2/N (mean k(x, x) - mean k(x, x')).
    """
    one, other = _two(one, other, 2)
    if paired and len(one) != len(other):
        raise ValueError(f"kid: {len(one)} and {len(other)} images are no pairs")
    across = _cubic(one, other)
    between = _off_diagonal(across) if paired else across.mean()
    return float(_off_diagonal(_cubic(one, one)) + _off_diagonal(_cubic(other, other)) - 2 * between)


def cmmd(one: Tensor, other: Tensor) -> float:
    """1000 x squared MMD with the kernel exp(-|x - y|^2 / 200) on unit vectors, each image's distance to itself counted (2401.09603).

    That V-statistic is biased upwards by about 1000 x 2 (1 - mean kernel) / N; 0 for equal sets. Published values are on CLIP's features.
    """
    one, other = (F.normalize(each, dim=1) for each in _two(one, other, 1))
    xx, xy, yy = ((-(a @ b.T) + 1).clamp(min=0).div(-(SIGMA**2)).exp().mean() for a, b in ((one, one), (one, other), (other, other)))
    return float(SCALE * (xx + yy - 2 * xy))


def precision_recall(real: Tensor, made: Tensor, k: int) -> tuple[float, float]:
    """Share of `made` within the distance of a real image to its k-th neighbour among the real, and the share of `real` within that of a
    made one (1904.06991). Precision is fidelity, recall variety; a single stray image has a wide neighbourhood and raises either.
    """
    real, made = _two(real, made, k + 1)
    across = _apart(real, made)
    return _share((across <= _reach(real, k)[:, None]).any(0)), _share((across <= _reach(made, k)[None]).any(1))


def density_coverage(real: Tensor, made: Tensor, k: int) -> tuple[float, float]:
    """How many real neighbourhoods hold a made image on average, over k; share of real neighbourhoods that hold one (2002.09797).

    Density is about 1 for one law and has no upper bound; coverage is about 1 - 2^-k for one law and N images on both sides.
    """
    real, made = _two(real, made, k + 1)
    inside = _apart(real, made) < _reach(real, k)[:, None]
    return float(inside.double().sum(0).mean() / k), _share(inside.any(1))


def vendi(features: Tensor) -> float:
    """exp(entropy of the eigenvalues of K / n), K the cosines between n images (2210.02410): 1 where all are alike, n where all are
    orthogonal. It grows with n: compare equal n only.
    """
    units = F.normalize(features.double(), dim=1)
    share = torch.linalg.eigvalsh(units @ units.T / len(units)).clamp(min=0)
    return float(torch.special.entr(share / share.sum()).sum().exp())


def within_prompt_vendi(features: Tensor, each: int) -> Tensor:
    """Vendi score of each prompt's `each` images, at each of them: [B] for features [B,D] in the order of the prompts."""
    return torch.tensor([vendi(group) for group in features.split(each)], dtype=torch.float64).repeat_interleave(each)


def within_prompt_cosine(features: Tensor, each: int) -> Tensor:
    """For each image its mean 1 - cosine to the other images of its prompt: [B], 0 where all are the same."""
    groups = F.normalize(features.double(), dim=1).unflatten(0, (-1, each))
    return (1 - groups @ groups.mT).clamp(min=0).sum(2).flatten() / max(each - 1, 1)


def differences(real: Tensor, made: Tensor, *, precision_k: int, coverage_k: int, paired: bool) -> dict[str, float | None]:
    """All of the above by name, of `made` against `real`; None where there are too few images for one to mean anything."""
    fewest = min(len(real), len(made))
    precision, recall = precision_recall(real, made, precision_k) if fewest > precision_k else (None, None)
    density, coverage = density_coverage(real, made, coverage_k) if fewest > coverage_k else (None, None)
    return {
        "frechet": frechet(real, made) if fewest > real.shape[1] else None,
        "kid": kid(real, made, paired),
        "cmmd": cmmd(real, made),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
    }


def _two(one: Tensor, other: Tensor, fewest: int) -> tuple[Tensor, Tensor]:
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise ValueError(f"features [N,D] of one D are wanted, not {list(one.shape)} and {list(other.shape)}")
    if min(len(one), len(other)) < fewest:
        raise ValueError(f"{len(one)} and {len(other)} images: {fewest} or more are needed on both sides")
    return one.double(), other.double()


def _cubic(one: Tensor, other: Tensor) -> Tensor:
    return (one @ other.T / one.shape[1] + 1) ** 3


def _off_diagonal(kernel: Tensor) -> Tensor:
    """Mean over i != j."""
    return (kernel.sum() - kernel.diag().sum()) / (len(kernel) * (len(kernel) - 1))


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """Distances [N,M], each from its own difference: the faster expansion of the square rounds small ones away, and ties with them."""
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")


def _reach(features: Tensor, k: int) -> Tensor:
    """Distance of each image to its k-th neighbour, itself not counted: [N]."""
    return _apart(features, features).kthvalue(k + 1, dim=1).values


def _share(holds: Tensor) -> float:
    return float(holds.double().mean())
