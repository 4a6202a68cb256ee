"""Distances between sets of vectors: against closed forms, sums written out, and points where the answer is seen."""

import math

import numpy as np
import pytest
import scipy.linalg
from torch_fidelity.metric_fid import fid_statistics_to_metric

from diffuse.scoring import distances as metrics
from diffuse.scoring.distances import (
    Statistics,
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    nearest,
    precision_recall,
    share_nearer,
    statistics,
)
from tests.support.scoring import normal


@pytest.fixture(params=[7, 1000], ids=["in blocks", "at once"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK_ROWS", request.param)


def rotation(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def covariance(size: int, seed: int) -> np.ndarray:
    """In general position, its eigenvalues from 0.1 to 5."""
    turned = rotation(size, seed)
    return turned * np.random.default_rng(seed + 1).uniform(0.1, 5, size) @ turned.T


def test_statistics_are_those_of_numpy_where_float32_has_no_digits_left(blocks):
    rows = normal(50, 6, mean=4000.0) @ np.diag([1, 2, 3, 4, 5, 6]).astype(np.float32)
    found, expected = statistics(rows), np.cov(rows.astype(np.float64), rowvar=False)
    assert (found.mu.dtype, found.sigma.dtype) == (np.float64, np.float64)
    np.testing.assert_allclose(found.mu, rows.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.sigma, expected, rtol=1e-9, atol=1e-9)


def test_the_distance_of_equal_covariances_is_that_of_the_means():
    mu_a, mu_b, sigma = np.array([1.0, -2.0, 0.5]), np.array([0.25, 1.0, 3.0]), covariance(3, 4)
    distance = frechet_distance(Statistics(mu_a, sigma), Statistics(mu_b, sigma))
    assert distance == pytest.approx(0.75**2 + 3**2 + 2.5**2, rel=1e-8)


@pytest.mark.parametrize("turned", [np.eye(6), rotation(6, 3)], ids=["diagonal", "rotated"])
def test_the_distance_of_gaussians_with_the_same_axes_is_that_of_their_spreads(turned):
    random = np.random.default_rng(1)
    (spread_a, spread_b), (mu_a, mu_b) = random.uniform(0.1, 3, (2, 6)), random.standard_normal((2, 6))
    a, b = (Statistics(mu, turned * s**2 @ turned.T) for mu, s in ((mu_a, spread_a), (mu_b, spread_b)))
    expected = ((mu_a - mu_b) ** 2).sum() + ((spread_a - spread_b) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_the_distance_of_gaussians_in_the_plane_is_in_closed_form():
    """Axes that differ: the trace of the root of a 2 x 2 matrix M is sqrt(tr M + 2 sqrt(det M))."""
    a, b = covariance(2, 5), covariance(2, 9)
    product = a @ b
    root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    expected = 0.3**2 + 2**2 + np.trace(a) + np.trace(b) - 2 * root
    found = frechet_distance(Statistics(np.array([1.3, -1.0]), a), Statistics(np.array([1.0, 1.0]), b))
    assert found == pytest.approx(expected, rel=1e-8)


def test_the_distance_of_gaussians_in_general_position_is_that_of_matrix_roots():
    a, b = covariance(20, 5), covariance(20, 9)
    root = scipy.linalg.sqrtm(a)
    expected = np.trace(a + b - 2 * scipy.linalg.sqrtm(root @ b @ root).real)
    found = frechet_distance(Statistics(np.zeros(20), a), Statistics(np.zeros(20), b))
    assert found == pytest.approx(expected, rel=1e-8)


def test_the_distance_of_a_few_images_is_that_of_their_singular_values():
    """With X and Y the centred rows over sqrt(n - 1), the trace of the root is the sum of X Y^T's singular values."""
    x, y = normal(8, 40, seed=1), normal(11, 40, seed=2, spread=2.0)
    centred = [(rows - rows.mean(0)) / math.sqrt(len(rows) - 1) for rows in (x.astype(float), y.astype(float))]
    apart = x.mean(0, np.float64) - y.mean(0, np.float64)
    root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    expected = apart @ apart + sum((rows**2).sum() for rows in centred) - 2 * root
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(expected, rel=1e-10)


def test_the_distance_is_that_of_torch_fidelity():
    a, b = (statistics(normal(60, 12, seed=seed, mean=seed) @ covariance(12, seed)) for seed in (1, 2))
    theirs = fid_statistics_to_metric(vars(a), vars(b), verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-8)


def test_a_few_images_have_no_distance_to_themselves():
    few = statistics(normal(8, 40, spread=2.0))
    assert abs(frechet_distance(few, few)) < 1e-10


def unbiased(x: np.ndarray, y: np.ndarray) -> float:
    """The kernel distance as a double sum: no vector is compared with itself."""

    def kernel(a, b):
        return (a.astype(float) @ b.astype(float) / x.shape[1] + 1) ** 3

    m, total = len(x), 0.0
    for i in range(m):
        for j in range(m):
            if i != j:
                total += (kernel(x[i], x[j]) + kernel(y[i], y[j])) / (m * (m - 1))
            total -= 2 * kernel(x[i], y[j]) / m**2
    return total


def test_the_kernel_distance_is_the_double_sum():
    x, y = normal(9, 4, seed=1), normal(9, 4, seed=2, mean=0.5)
    mean, deviation, size = kernel_distance(x, y)
    assert mean == pytest.approx(unbiased(x, y), rel=1e-10)
    assert deviation < 1e-12
    assert size == 9


def test_sets_of_two_sizes_are_compared_by_random_subsets():
    x, y = normal(12, 4, seed=1), normal(7, 4, seed=2, mean=0.5)
    random, sums = np.random.RandomState(2020), []
    for _ in range(100):
        some_x, some_y = (rows[random.choice(len(rows), 7, replace=False)] for rows in (x, y))
        sums.append(unbiased(some_x, some_y))
    mean, deviation, size = kernel_distance(x, y)
    assert (mean, deviation) == pytest.approx((np.mean(sums), np.std(sums)), rel=1e-10)
    assert size == 7


def test_subsets_have_a_size_at_most(monkeypatch):
    assert (metrics.KID_SUBSETS, metrics.KID_SUBSET_SIZE) == (100, 1000)
    monkeypatch.setattr(metrics, "KID_SUBSET_SIZE", 10)
    assert kernel_distance(normal(11, 1), normal(12, 1, seed=1))[2] == 10


def test_the_kernel_distance_of_equal_distributions_is_zero_on_average():
    found = [kernel_distance(normal(12, 3, seed=i), normal(12, 3, seed=1000 + i))[0] for i in range(30)]
    assert abs(np.mean(found)) < 3 * np.std(found, ddof=1) / math.sqrt(30)


def test_whoever_knows_nothing_of_an_image_scores_one():
    assert inception_score(np.zeros((40, 7), np.float32)) == pytest.approx((1.0, 0.0), abs=1e-12)


def test_whoever_is_certain_scores_the_number_of_classes_that_there_are():
    """Each tenth of the shuffled rows has all five classes equally often."""
    order, logits = np.random.RandomState(2020).permutation(200), np.zeros((200, 9), np.float32)
    logits[order, np.arange(200) % 5] = 100.0
    assert inception_score(logits) == pytest.approx((5.0, 0.0), abs=1e-10)


def test_the_inception_score_is_the_mean_divergence_over_ten_parts():
    logits, scores = normal(43, 6, spread=2.0), []
    shuffled = logits[np.random.RandomState(2020).permutation(43)].astype(float)
    for part in range(10):
        rows = np.exp(shuffled[part * 43 // 10 : (part + 1) * 43 // 10])
        rows /= rows.sum(1, keepdims=True)
        scores.append(math.exp(sum((row * np.log(row / rows.mean(0))).sum() for row in rows) / len(rows)))
    assert inception_score(logits) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)


def radius(points: np.ndarray, i: int, k: int) -> float:
    """How far the k-th nearest of the other points is."""
    return sorted(math.dist(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]


def in_some_ball(those: np.ndarray, points: np.ndarray, k: int) -> np.ndarray:
    """For each of those: in the balls of which of the points it lies."""
    return np.array([[math.dist(one, p) <= radius(points, i, k) for i, p in enumerate(points)] for one in those])


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_a_search_through_all_pairs(blocks, k):
    drawn, real = normal(23, 3, seed=1, spread=1.3), normal(31, 3, seed=2)
    expected = (in_some_ball(drawn, real, k).any(1).mean(), in_some_ball(real, drawn, k).any(1).mean())
    assert precision_recall(drawn, real, k) == pytest.approx(expected, abs=1e-12)
    assert expected[0] != expected[1]


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_are_those_of_a_search_through_all_pairs(blocks, k):
    drawn, real = normal(23, 3, seed=1, spread=1.3), normal(31, 3, seed=2)
    inside = in_some_ball(drawn, real, k)
    assert density_coverage(drawn, real, k) == pytest.approx((inside.sum() / (k * 23), inside.any(0).mean()), abs=1e-12)


def test_points_in_the_plane():
    """The real ones' nearest neighbours are 1, 1, 3 and 3 away; 8.5 is 1.5 from 10, -1 just within the ball of 0."""
    real = np.array([[0, 0], [1, 0], [10, 0], [13, 0]], np.float32)
    drawn = np.array([[0, 2], [8.5, 0], [-1, 0], [11, 0], [90, 0]], np.float32)
    assert precision_recall(drawn, real, k=1) == (3 / 5, 1.0)
    assert density_coverage(drawn, real, k=1) == (4 / 5, 3 / 4)
    assert precision_recall(real, drawn[:4], k=1)[0] == 1.0
    assert precision_recall(drawn + np.float32(1000), real, k=1) == (0.0, 0.0)


def test_three_neighbours_of_precision_and_five_of_density_are_the_rule():
    drawn, real = normal(20, 2, seed=1, mean=2.0), normal(20, 2, seed=2)
    assert precision_recall(drawn, real) == precision_recall(drawn, real, 3) != precision_recall(drawn, real, 4)
    assert density_coverage(drawn, real) == density_coverage(drawn, real, 5) != density_coverage(drawn, real, 4)


def test_the_nearest_is_that_of_a_search_through_all_pairs(blocks):
    queries, points = normal(19, 5, seed=1), normal(33, 5, seed=2)
    all_pairs = np.array([[math.dist(query, point) for point in points] for query in queries])
    distances, places = nearest(queries, points)
    np.testing.assert_array_equal(places, all_pairs.argmin(1))
    np.testing.assert_allclose(distances, all_pairs.min(1), rtol=1e-12)


def test_copies_have_the_distance_zero_and_are_told_from_what_is_almost_a_copy(blocks):
    """One grey level in one of 3,072 pixels: less than what float32 has left of the squares of the others."""
    points = np.random.default_rng(0).integers(0, 256, (30, 3072)).astype(np.uint8)
    almost = points[:10].copy()
    almost[:, 5] ^= 1
    points = np.concatenate([almost, points])
    distances, places = nearest(points[10:20].astype(np.float32), points)
    np.testing.assert_array_equal(places, np.arange(10, 20))
    np.testing.assert_array_equal(distances, 0.0)


def test_the_share_nearer_counts_pairs_and_half_of_the_ties():
    these, those = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 3.0, 1.0])
    pairs = [(a < b) + (a == b) / 2 for a in these for b in those]
    assert share_nearer(these, those) == pytest.approx(np.mean(pairs))
    assert share_nearer(those, those) == 0.5
    assert share_nearer(np.zeros(3), those) == 1.0
