"""Distances of sets and diversity against closed forms and against torchmetrics, torch-fidelity and prdc."""

import math

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torch_fidelity.metric_prc import calculate_precision_recall_full
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from alignbench.evaluation import sets
from alignbench.rng import generator


def draw(count: int, *, seed: int, dimensions: int = 6, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    """Correlated Gaussian features, another law for another seed only in the noise."""
    mix = torch.eye(dimensions, dtype=torch.float64) + 0.3 * torch.ones(dimensions, dimensions, dtype=torch.float64).tril(-1)
    noise = torch.randn(count, dimensions, generator=generator(seed, "features"), dtype=torch.float64)
    return mean + scale * noise @ mix.T


def covariance(dimensions: int = 6) -> Tensor:
    mix = torch.eye(dimensions, dtype=torch.float64) + 0.3 * torch.ones(dimensions, dimensions, dtype=torch.float64).tril(-1)
    return mix @ mix.T


class AsTheyAre(nn.Module):
    """Features handed to torchmetrics as if they were images."""

    def __init__(self, dimensions: int):
        super().__init__()
        self.num_features = dimensions

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


# --- Frechet distance


def test_frechet_of_two_gaussians_is_the_closed_form() -> None:
    """Same covariance up to a factor: |dm|^2 + tr S (1 - scale)^2."""
    found = sets.frechet(draw(200_000, seed=0), draw(200_000, seed=1, mean=0.5, scale=1.5))
    assert found == pytest.approx(6 * 0.5**2 + covariance().trace().item() * 0.5**2, rel=0.01)


@pytest.mark.parametrize("count", [40, 300], ids=["few", "many"])
def test_frechet_is_what_scipys_root_and_torchmetrics_say(count: int) -> None:
    one, other = draw(count, seed=0), draw(count + 7, seed=1, mean=0.3) @ torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
    first, second = (np.cov(each.numpy(), rowvar=False) for each in (one, other))
    gap = np.square(one.mean(0).numpy() - other.mean(0).numpy()).sum()
    assert sets.frechet(one, other) == pytest.approx(gap + np.trace(first + second - 2 * sqrtm(first @ second).real), rel=1e-9)
    metric = FrechetInceptionDistance(feature=AsTheyAre(6), input_img_size=(6, 1, 1)).set_dtype(torch.float64)
    for each, real in ((one, True), (other, False)):
        metric.update(each[..., None, None], real=real)
    assert sets.frechet(one, other) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_frechet_where_covariances_are_singular_is_that_of_the_span() -> None:
    """Two images in 50 dimensions: the sets' variances lie on two lines with angle theta, tr(S1 S2)^(1/2) = s1 s2 |cos theta|."""
    one, other = torch.zeros(2, 50), torch.zeros(2, 50)
    one[1, 0], other[1, :2] = 2.0, torch.tensor([3.0, 4.0])  # variances 2 and 12.5, means apart by (0.5, 2)
    assert sets.frechet(one, other) == pytest.approx(0.5**2 + 2**2 + 2 + 12.5 - 2 * (2 * 12.5) ** 0.5 * 0.6)


def test_frechet_of_one_law_is_biased_upwards_at_small_n() -> None:
    few, more = (sum(sets.frechet(draw(n, seed=i), draw(n, seed=100 + i)) for i in range(20)) / 20 for n in (30, 300))
    assert few > 5 * more > 0


# --- kernels


def test_kid_is_torchmetrics_on_one_subset_of_all_images() -> None:
    one, other = draw(60, seed=0), draw(60, seed=1, mean=0.4)
    metric = KernelInceptionDistance(feature=AsTheyAre(6), subsets=1, subset_size=60).set_dtype(torch.float64)
    for each, real in ((one, True), (other, False)):
        metric.update(each[..., None, None], real=real)
    assert sets.kid(one, other) == pytest.approx(metric.compute()[0].item(), rel=1e-5)
    assert sets.kid(one, other) == pytest.approx(poly_mmd(one, other).item(), rel=1e-9)


def test_kid_is_unbiased() -> None:
    """In one dimension E k(x, y) of (x y + 1)^3 is 1 + 3 m1 m2 + 3 E x^2 E y^2 + E x^3 E y^3, in the moments of each side."""
    mean = 0.5
    moments = {0.0: (0, 1, 0), mean: (mean, 1 + mean**2, 3 * mean + mean**3)}

    def expected(a: float, b: float) -> float:
        return 1 + sum(weight * one * other for weight, one, other in zip((3, 3, 1), moments[a], moments[b], strict=True))

    distance = expected(0, 0) + expected(mean, mean) - 2 * expected(0, mean)
    found = torch.tensor([sets.kid(draw(12, seed=i, dimensions=1), draw(12, seed=9000 + i, dimensions=1, mean=mean)) for i in range(4000)])
    assert abs(found.mean().item() - distance) < 4 * found.std().item() / 4000**0.5
    assert distance > 10 * found.std().item() / 4000**0.5  # the bound above could fail


def test_kid_of_pairs_leaves_out_what_the_pairs_share() -> None:
    """Equal sets: 0 where the pairs are known, below 0 where they are not. Correlated ones of one law: 0 on average, and below it."""
    same = draw(30, seed=0)
    assert sets.kid(same, same.clone(), paired=True) == pytest.approx(0, abs=1e-12)
    kernel = (same @ same.T / 6 + 1) ** 3
    off = (kernel.sum() - kernel.trace()) / (30 * 29)
    assert sets.kid(same, same) == pytest.approx(-2 / 30 * (kernel.trace().item() / 30 - off.item()))
    pairs = [(draw(12, seed=i, dimensions=1), draw(12, seed=9000 + i, dimensions=1)) for i in range(3000)]
    both = [torch.tensor([sets.kid(a, 0.8 * a + 0.6 * b, paired) for a, b in pairs]) for paired in (True, False)]
    assert abs(both[0].mean().item()) < 4 * both[0].std().item() / 3000**0.5
    assert both[1].mean().item() < -10 * both[1].std().item() / 3000**0.5


def test_cmmd_is_the_published_v_statistic() -> None:
    """Orthogonal unit vectors: k = exp(-2 / 200) off the diagonal and between the sets, 1 on the diagonal, so 1000 x 2/n (1 - k)."""
    basis = torch.eye(8)
    assert sets.cmmd(basis[:4], 3 * basis[4:]) == pytest.approx(1000 * 2 / 4 * (1 - math.exp(-2 / 200)), rel=1e-9)
    assert sets.cmmd(basis, basis) == pytest.approx(0, abs=1e-9)
    one, other = (torch.nn.functional.normalize(draw(20 + i, seed=i), dim=1) for i in range(2))
    kernel = [torch.exp(-torch.cdist(a, b).square() / 200).mean().item() for a, b in ((one, one), (other, other), (one, other))]
    assert sets.cmmd(one, other) == pytest.approx(1000 * (kernel[0] + kernel[1] - 2 * kernel[2]), rel=1e-6)


# --- neighbourhoods


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 0.9])
def test_neighbourhoods_are_those_of_prdc_and_of_torch_fidelity(k: int, shift: float) -> None:
    real, made = draw(90, seed=0), draw(70, seed=1, mean=shift, scale=0.8)
    theirs = compute_prdc(real.numpy(), made.numpy(), k)
    precision, recall = sets.precision_recall(real, made, k)
    density, coverage = sets.density_coverage(real, made, k)
    assert 0 < recall < 1 and coverage > 0 and (shift == 0 or coverage < 1)
    assert {"precision": precision, "recall": recall, "density": density, "coverage": coverage} == pytest.approx(theirs, abs=1e-12)
    assert (precision, recall) == pytest.approx(calculate_precision_recall_full(made, real, k), abs=1e-6)


def test_equal_sets_are_covered_and_far_ones_are_not() -> None:
    real = draw(50, seed=0)
    assert sets.precision_recall(real, real, 3) == (1, 1)
    assert sets.density_coverage(real, real, 5) == (pytest.approx(1), 1)
    assert sets.precision_recall(real, real + 1000, 3) == (0, 0)
    assert sets.density_coverage(real, real + 1000, 5) == (0, 0)


def test_a_collapsed_set_is_precise_and_covers_nothing() -> None:
    real = draw(100, seed=0)
    made = real.mean(0) + 1e-3 * draw(100, seed=1)
    precision, recall = sets.precision_recall(real, made, 3)
    assert precision > 0.9 > 0.1 > recall
    assert sets.density_coverage(real, made, 5)[1] < 0.3


def test_one_law_has_density_one_and_its_own_coverage() -> None:
    """Coverage of M made and N real of one law: 1 - prod (N - i) / (M + N - i) for i = 1..k (2002.09797, lemma 2)."""
    density, coverage = (
        torch.tensor([sets.density_coverage(draw(60, seed=i), draw(40, seed=500 + i), 2) for i in range(400)]).double().unbind(1)
    )
    expected = 1 - 59 / 99 * 58 / 98
    assert abs(density.mean().item() - 1) < 4 * density.std().item() / 20
    assert abs(coverage.mean().item() - expected) < 4 * coverage.std().item() / 20


# --- within a prompt


def test_vendi_counts_what_is_different() -> None:
    basis = torch.eye(6)
    assert sets.vendi(basis[:1].expand(5, -1)) == pytest.approx(1)
    assert sets.vendi(basis[:4] * torch.arange(1, 5)[:, None]) == pytest.approx(4)
    assert sets.vendi(basis[[0, 0, 1, 1]]) == pytest.approx(2)
    c = 0.3  # two images: eigenvalues (1 +- c) / 2
    two = torch.tensor([[1.0, 0.0], [c, (1 - c * c) ** 0.5]])
    assert sets.vendi(two) == pytest.approx(math.exp(-sum(p * math.log(p) for p in ((1 + c) / 2, (1 - c) / 2))), rel=1e-6)


def test_a_prompts_images_share_its_score() -> None:
    features = torch.cat([torch.eye(3)[[0, 0, 0]], torch.eye(3), torch.eye(3)[[0, 0, 1]]])
    assert sets.within_prompt_vendi(features, 3)[[0, 3, 5]].tolist() == pytest.approx([1, 3, 3])
    assert sets.within_prompt_cosine(features, 3).tolist() == pytest.approx([0, 0, 0, 1, 1, 1, 0.5, 0.5, 1])
    assert sets.within_prompt_cosine(features, 1).tolist() == [0] * 9  # no other image


# --- few images, wrong shapes


def test_too_few_images_have_no_distance() -> None:
    with pytest.raises(ValueError, match="1 and 9 images: 2 or more"):
        sets.frechet(torch.zeros(1, 3), torch.zeros(9, 3))
    with pytest.raises(ValueError, match="4 or more"):
        sets.precision_recall(torch.zeros(3, 3), torch.zeros(9, 3), 3)
    with pytest.raises(ValueError, match="of one D"):
        sets.cmmd(torch.zeros(9, 3), torch.zeros(9, 4))
    with pytest.raises(ValueError, match="no pairs"):
        sets.kid(torch.zeros(9, 3), torch.zeros(8, 3), paired=True)


@pytest.mark.parametrize("count, missing", [(3, {"frechet", "precision", "recall", "density", "coverage"}), (6, {"frechet"}), (7, set())])
def test_what_needs_more_images_is_left_out(count: int, missing: set[str]) -> None:
    """Frechet needs more images than dimensions (6), neighbourhoods more than k."""
    found = sets.differences(draw(count, seed=0), draw(count + 5, seed=1), precision_k=3, coverage_k=5, paired=False)
    assert list(found) == ["frechet", "kid", "cmmd", "precision", "recall", "density", "coverage"]
    assert {name for name, value in found.items() if value is None} == missing


def test_every_distance_between_a_set_and_itself() -> None:
    same = draw(40, seed=0)
    found = sets.differences(same, same, precision_k=3, coverage_k=5, paired=True)
    wanted = {"frechet": 0, "kid": 0, "cmmd": 0, "precision": 1, "recall": 1, "density": 1, "coverage": 1}
    assert found == pytest.approx(wanted, abs=1e-9)
