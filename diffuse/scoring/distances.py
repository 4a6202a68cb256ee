"""Distances between two sets of feature vectors: FID, KID, Inception Score, precision, recall, density, coverage.

They agree with torch-fidelity, whose kernel, random subsets and blocks they use. Feature vectors are the rows of an
array [n, D], which may be a memory-mapped file: no function holds more than some millions of numbers in memory at a
time. Sums are float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK_ROWS = 1000  # vectors in memory at a time
MOST_DISTANCES = 10_000_000  # in memory at a time
KID_SUBSETS, KID_SUBSET_SIZE, SEED = 100, 1000, 2020  # torch-fidelity's
IS_SPLITS = 10
CANDIDATES = 4  # for the nearest neighbour, whose distances are computed exactly
Array = np.ndarray


@dataclass(frozen=True)
class Statistics:
    """Mean mu [D] and unbiased covariance sigma [D, D] of feature vectors, in float64.

    features: the hash of the network that the vectors came from, or None where it is not known.
    """

    mu: Array
    sigma: Array
    features: str | None = None


def statistics(rows: Array) -> Statistics:
    """The mean of the rows [n, D] and their covariance with n - 1 in the denominator, as in numpy.cov."""
    mu = sum(block.sum(0) for block in blocks(rows)) / len(rows)
    sigma = np.zeros((rows.shape[1], rows.shape[1]))
    for block in blocks(rows):
        centred = block - mu
        sigma += centred.T @ centred
    return Statistics(mu, sigma / (len(rows) - 1))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + Tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)).

    The squared Wasserstein-2 distance between two Gaussians (Dowson and Landau 1982); on Inception features, it is
    the FID of Heusel et al. 2017. With sigma = F F^T, the trace of the root is the sum of the singular values of
    F_a^T F_b.
    """
    root = np.linalg.svd(factor(a.sigma).T @ factor(b.sigma), compute_uv=False).sum()
    return float(np.square(a.mu - b.mu).sum() + np.trace(a.sigma) + np.trace(b.sigma) - 2 * root)


def factor(sigma: Array) -> Array:
    """F [D, rank] with F F^T = sigma.

    Eigenvalues that are zero up to rounding are left out: with fewer images than features there are many, and the sum
    of their square roots would no longer be small.
    """
    values, vectors = np.linalg.eigh(sigma)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def kernel_distance(x: Array, y: Array) -> tuple[float, float, int]:
    """KID, Binkowski et al. 2018: the unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3.

    Returns the mean over 100 pairs of random subsets, its standard deviation over them, and the size of a subset:
    1,000, or the size of the smaller set if that is less. The subsets are the ones that torch-fidelity draws.
    """
    from torch_fidelity.metric_kid import kernel_mmd

    size, random = min(KID_SUBSET_SIZE, len(x), len(y)), np.random.RandomState(SEED)
    options = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    distances = []
    for _ in range(KID_SUBSETS):
        some_x, some_y = (rows[random.choice(len(rows), size, replace=False)].astype(np.float64) for rows in (x, y))
        distances.append(kernel_mmd(some_x, some_y, kid_kernel_poly_coef0=1, **options))
    return float(np.mean(distances)), float(np.std(distances)), size


def inception_score(logits: Array) -> tuple[float, float]:
    """exp E KL(p(y | x) || p(y)): Salimans et al. 2016. The mean and standard deviation over ten parts of the rows.

    logits: [n, classes] of a classifier; the rows are shuffled first, as torch-fidelity does.
    """
    order = np.random.RandomState(SEED).permutation(len(logits))
    scores = []
    for rows in np.split(order, [part * len(order) // IS_SPLITS for part in range(1, IS_SPLITS)]):
        part = torch.from_numpy(logits[rows]).double()
        p, log_p = part.softmax(1), part.log_softmax(1)
        scores.append((p * (log_p - p.mean(0).log())).sum(1).mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(drawn: Array, real: Array, k: int = 3, real_radii: Array | None = None) -> tuple[float, float]:
    """Kynkaanniemi et al. 2019. The k-neighbourhood of a vector is the ball that reaches to its k-th nearest neighbour.

    Precision: the share of drawn vectors in the k-neighbourhood of some real one; recall: the share of real vectors in
    that of some drawn one. real_radii: `radii(real, k)`, where it is known already.
    """
    real_radii = radii(real, k) if real_radii is None else real_radii
    return share_within(drawn, real, real_radii), share_within(real, drawn, radii(drawn, k))


def density_coverage(drawn: Array, real: Array, k: int = 5, real_radii: Array | None = None) -> tuple[float, float]:
    """Naeem et al. 2020, section 3, with k-neighbourhoods as in `precision_recall`.

    Density: the number of real vectors in whose k-neighbourhood a drawn vector lies, divided by k and averaged (1 for
    equal distributions); coverage: the share of real vectors with some drawn one in their k-neighbourhood.
    """
    limits = torch.from_numpy(radii(real, k) if real_radii is None else real_radii)
    inside = torch.cat([(block <= limits[rows, None]).sum(1) for rows, block in distances_to_all(real, drawn)])
    return int(inside.sum()) / (k * len(drawn)), int((inside > 0).sum()) / len(real)


def radii(rows: Array, k: int) -> Array:
    """The distance of each row to its k-th nearest neighbour among the other rows, [n]."""
    # k + 1, since the nearest of all rows is the row itself.
    return torch.cat([block.kthvalue(k + 1).values for _, block in distances_to_all(rows, rows)]).numpy()


def share_within(queries: Array, centres: Array, centre_radii: Array) -> float:
    """The share of queries that lie within the radius [n] of some centre."""
    limits = torch.from_numpy(centre_radii)
    return sum(int((block <= limits).any(1).sum()) for _, block in distances_to_all(queries, centres)) / len(queries)


def distances_to_all(rows: Array, points: Array) -> Iterator[tuple[slice, Tensor]]:
    """Some rows at a time, and their distances |row - point| to all points, [b, n].

    Computed in torch-fidelity's blocks of points, and therefore equal to its distances in the last bit.
    """
    size, y = max(100, min(BLOCK_ROWS, MOST_DISTANCES // len(points))), torch.from_numpy(points)
    for start in range(0, len(rows), size):
        some = torch.from_numpy(rows[start : start + size])
        yield slice(start, start + size), torch.cat([torch.cdist(some, part) for part in y.split(BLOCK_ROWS)], 1)


def nearest(queries: Array, points: Array) -> tuple[Array, Array]:
    """The distance [q] of each query to the nearest of the points, and the row number [q] of that point.

    The fast computation of all distances, in float32, is inexact for small ones, so it only selects candidates.
    """
    distances, numbers = [], []
    for some in torch.from_numpy(queries).split(BLOCK_ROWS):
        near, where = torch.empty(len(some), 0), torch.empty(len(some), 0, dtype=torch.long)
        for start in range(0, len(points), BLOCK_ROWS):
            found = torch.cdist(some.float(), torch.from_numpy(points[start : start + BLOCK_ROWS]).float())
            near = torch.cat([near, found], 1)
            where = torch.cat([where, torch.arange(start, start + found.shape[1]).expand(found.shape)], 1)
            near, best = near.topk(min(CANDIDATES, near.shape[1]), largest=False)
            where = where.gather(1, best)
        differences = [torch.from_numpy(points[number.numpy()]).double() - some.double() for number in where.T]
        exact, best = torch.stack([each.square().sum(1).sqrt() for each in differences], 1).min(1)
        distances.append(exact)
        numbers.append(where.gather(1, best[:, None])[:, 0])
    return torch.cat(distances).numpy(), torch.cat(numbers).numpy()


def share_nearer(a: Array, b: Array) -> float:
    """P(a < b) + P(a = b) / 2 for random elements of two arrays: 0.5 for equal distributions. Mann and Whitney 1947."""
    ordered = np.sort(b)
    larger = len(b) - np.searchsorted(ordered, a, side="right")
    not_smaller = len(b) - np.searchsorted(ordered, a, side="left")
    return float((larger + not_smaller).mean() / (2 * len(b)))


def blocks(rows: Array) -> Iterator[Array]:
    """The rows in float64, a block at a time."""
    for start in range(0, len(rows), BLOCK_ROWS):
        yield np.asarray(rows[start : start + BLOCK_ROWS], np.float64)
