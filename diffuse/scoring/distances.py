"""Distances between two sets of feature vectors, and what they say: FID, KID, Inception Score, precision and recall.

KID's kernel, the Inception Score and all distances are torch-fidelity's; tests hold the rest against it. Vectors are
rows of an array [n, D], which may lie in a file: none of these functions holds more than some millions of numbers at a
time. Sums are float64.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

BLOCK = 1000  # rows that are looked at together
MOST_DISTANCES = 10_000_000  # that are held together
KID_SUBSETS, KID_SUBSET_SIZE, SEED = 100, 1000, 2020  # torch-fidelity's
IS_SPLITS = 10
CANDIDATES = 4  # for the nearest neighbour, that are measured exactly


@dataclass(frozen=True)
class Statistics:
    """Mean mu [D] and unbiased covariance sigma [D, D] of feature vectors, in float64.

    features: what identifies the network that the vectors came from, where it is known.
    """

    mu: np.ndarray
    sigma: np.ndarray
    features: str | None = None


def statistics(rows: np.ndarray) -> Statistics:
    """The mean of the rows [n, D], and their covariance with n - 1 in the denominator, as numpy.cov has it."""
    mu = sum(block.sum(0) for block in blocks(rows)) / len(rows)
    sigma = np.zeros((rows.shape[1], rows.shape[1]))
    for block in blocks(rows):
        apart = block - mu
        sigma += apart.T @ apart
    return Statistics(mu, sigma / (len(rows) - 1))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + Tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)).

    The squared Wasserstein-2 distance of two Gaussians (Dowson and Landau 1982); of Inception features, the FID of
    Heusel et al. 2017. With sigma = F F^T, the trace of the root is the sum of the singular values of F_a^T F_b.
    """
    root = np.linalg.svd(factor(a.sigma).T @ factor(b.sigma), compute_uv=False).sum()
    return float(np.square(a.mu - b.mu).sum() + np.trace(a.sigma) + np.trace(b.sigma) - 2 * root)


def factor(sigma: np.ndarray) -> np.ndarray:
    """F [D, rank] with F F^T = sigma.

    Eigenvalues that are zero but for rounding are left out: fewer images than features leave many, and the sum of
    their roots would be no rounding any more.
    """
    values, vectors = np.linalg.eigh(sigma)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def kernel_distance(x: np.ndarray, y: np.ndarray) -> tuple[float, float, int]:
    """The squared maximum mean discrepancy by the kernel (x.y / D + 1)^3, unbiased: KID, Binkowski et al. 2018.

    The mean over 100 pairs of random subsets, their standard deviation, and the size of a subset: 1,000, or all of the
    smaller set where that has fewer. The subsets are those that torch-fidelity draws.
    """
    from torch_fidelity.metric_kid import kernel_mmd

    size, random = min(KID_SUBSET_SIZE, len(x), len(y)), np.random.RandomState(SEED)
    options = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    distances = []
    for _ in range(KID_SUBSETS):
        some_x = x[random.choice(len(x), size, replace=False)].astype(np.float64)
        some_y = y[random.choice(len(y), size, replace=False)].astype(np.float64)
        distances.append(kernel_mmd(some_x, some_y, kid_kernel_poly_coef0=1, **options))
    return float(np.mean(distances)), float(np.std(distances)), size


def inception_score(logits: np.ndarray) -> tuple[float, float]:
    """exp E KL(p(y | x) || p(y)): Salimans et al. 2016. The mean and standard deviation over ten parts of the rows.

    logits: [n, classes] of a classifier; the rows are shuffled first, as torch-fidelity does.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    order = np.random.RandomState(SEED).permutation(len(logits))
    bounds = [part * len(logits) // IS_SPLITS for part in range(IS_SPLITS + 1)]
    scores = []
    for start, end in pairwise(bounds):
        part = torch.from_numpy(logits[order[start:end]])
        scores.append(isc_features_to_metric(part, splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN])
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(
    drawn: np.ndarray, real: np.ndarray, k: int = 3, real_radii: np.ndarray | None = None
) -> tuple[float, float]:
    """Precision: the share of drawn vectors within the k-th nearest neighbour's distance of some real one; recall: the
    share of real ones within that of some drawn one. Kynkaanniemi et al. 2019. real_radii, where they are known.
    """
    of_real = radii(real, k) if real_radii is None else real_radii
    return share_within(drawn, real, of_real), share_within(real, drawn, radii(drawn, k))


def radii(rows: np.ndarray, k: int) -> np.ndarray:
    """The distance of each row to the k-th nearest other one, [n]."""
    from torch_fidelity.metric_prc import calc_cdist_part

    x, found = as_tensor(rows), []
    for block in x.split(block_beside(rows)):
        found.append(calc_cdist_part(block, x, BLOCK).kthvalue(k + 1).values)  # the nearest of all is itself
    return torch.cat(found).numpy()


def share_within(queries: np.ndarray, centres: np.ndarray, reach: np.ndarray) -> float:
    """The share of queries that lie within its reach [n] of some centre."""
    from torch_fidelity.metric_prc import calc_cdist_part

    inside, around, reaches = 0, as_tensor(centres), torch.from_numpy(reach)
    for block in as_tensor(queries).split(block_beside(centres)):
        inside += int((calc_cdist_part(block, around, BLOCK) <= reaches).any(1).sum())
    return inside / len(queries)


def density_coverage(
    drawn: np.ndarray, real: np.ndarray, k: int = 5, real_radii: np.ndarray | None = None
) -> tuple[float, float]:
    """Density: how many real vectors' k-neighbourhoods a drawn one lies in, over k (1 on average for the same
    distribution); coverage: the share of real vectors that have a drawn one in theirs. Naeem et al. 2020, section 3.
    """
    from torch_fidelity.metric_prc import calc_cdist_part

    x, inside, covered = as_tensor(drawn), 0, 0
    of_real = radii(real, k) if real_radii is None else real_radii
    rows = block_beside(drawn)
    for block, reach in zip(as_tensor(real).split(rows), torch.from_numpy(of_real).split(rows), strict=True):
        within = calc_cdist_part(block, x, BLOCK) <= reach[:, None]
        inside += int(within.sum())
        covered += int(within.any(1).sum())
    return inside / (k * len(x)), covered / len(real)


def nearest(queries: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distance [q] of each query to the nearest of the points, and which that is [q].

    The fast way to all distances has no digits left for small ones, so that it finds candidates only.
    """
    distances, places = [], []
    for some in as_tensor(queries).split(BLOCK):
        near, where = torch.empty(len(some), 0), torch.empty(len(some), 0, dtype=torch.long)
        for start in range(0, len(points), BLOCK):
            found = torch.cdist(some.float(), as_tensor(points[start : start + BLOCK]).float())
            near, where = (
                torch.cat([near, found], 1),
                torch.cat([where, torch.arange(start, start + found.shape[1]).expand(found.shape)], 1),
            )
            near, best = near.topk(min(CANDIDATES, near.shape[1]), largest=False)
            where = where.gather(1, best)
        candidates = [as_tensor(points[place.numpy()]).double() - some.double() for place in where.T]
        exact, best = torch.stack([apart.square().sum(1).sqrt() for apart in candidates], 1).min(1)
        distances.append(exact)
        places.append(where.gather(1, best[:, None])[:, 0])
    return torch.cat(distances).numpy(), torch.cat(places).numpy()


def share_nearer(these: np.ndarray, those: np.ndarray) -> float:
    """P(a < b) + P(a = b) / 2 for a of these numbers and b of those: a half where nobody could tell them apart."""
    ordered = np.sort(those)
    larger = len(those) - np.searchsorted(ordered, these, side="right")
    not_smaller = len(those) - np.searchsorted(ordered, these, side="left")
    return float((larger + not_smaller).mean() / (2 * len(those)))


def block_beside(rows: np.ndarray) -> int:
    """How many vectors may be looked at together where each has a distance to all of these rows."""
    return max(100, min(BLOCK, MOST_DISTANCES // len(rows)))


def blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in float64, some at a time."""
    for start in range(0, len(rows), BLOCK):
        yield np.asarray(rows[start : start + BLOCK], np.float64)


def as_tensor(rows: np.ndarray) -> Tensor:
    """The rows as a tensor that shares their memory, or their file, and is only read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that they must not be written to
        return torch.from_numpy(rows)
