"""The searched grid: the cheapest path against all paths, costs against trajectories that are known."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from diffuse.mathematics.continuous import VE, Flow
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.grid_search import GROWTHS, Trajectories, candidates, cheapest_path, distance
from diffuse.mathematics.oracles import Gaussian
from diffuse.mathematics.predictions import flow
from diffuse.mathematics.spacings import SPACINGS, time_grid
from diffuse.mathematics.tables import linear
from tests.support.samplers import Wavy, normal64


def random_costs(places: int, seed: int) -> Tensor:
    costs = torch.rand(places, places, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.where(torch.ones(places, places).triu(1) > 0, costs, torch.inf)


def total(costs: Tensor, path: tuple[int, ...], growth: float) -> float:
    """The first jump counts once, the k-th growth^k times."""
    return sum(growth**k * float(costs[i, j]) for k, (i, j) in enumerate(itertools.pairwise(path)))


@pytest.mark.parametrize("jumps", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("growth", [1.0, 1.15])
def test_no_other_path_is_cheaper(jumps: int, growth: float):
    for seed in range(10):
        costs = random_costs(8, seed)
        found = cheapest_path(costs, jumps, growth)
        assert (found[0], found[-1], len(found)) == (0, 7, jumps + 1)
        paths = [(0, *inner, 7) for inner in itertools.combinations(range(1, 7), jumps - 1)]
        assert total(costs, tuple(found), growth) == pytest.approx(min(total(costs, p, growth) for p in paths))


@pytest.mark.parametrize("jumps", [0, 8])
def test_there_are_not_more_jumps_than_places(jumps: int):
    with pytest.raises(ValueError, match="^steps must be between 1 and 7 for spacing=searched, not"):
        cheapest_path(random_costs(8, 0), jumps)


def gaussian_trajectories(std: float, schedule=None) -> Trajectories:
    schedule = schedule or VE()
    data = Gaussian(*torch.tensor([0.3, std], dtype=torch.float64).reshape(2, 1, 1, 1))
    times = time_grid(schedule, 60, SPACINGS["karras"])
    return Trajectories(data.denoiser(schedule), schedule.prior_std * normal64(0, 8, 1, 2, 2), times)


def test_the_cost_of_a_jump_is_its_error_on_the_flow():
    """Of a Gaussian: y - mean grows as sqrt(std^2 + rho^2), and eps = rho (y - mean) / (std^2 + rho^2)."""
    std, x = 0.5, normal64(0, 8, 1, 2, 2) * 100 - 0.3
    found = gaussian_trajectories(std)
    spread = [math.hypot(std, rho) for rho in found.rho]
    for i, j in [(3, 20), (9, 12), (20, 59), (40, 60)]:
        at_i = x * spread[i] / spread[0]
        jumped = at_i + (found.rho[j] - found.rho[i]) * found.rho[i] / spread[i] ** 2 * at_i
        expected = (jumped - x * spread[j] / spread[0]).square().mean()
        assert found.cost(i, j) == pytest.approx(float(expected), rel=0.1)  # 60 steps are not the flow itself
    costs = found.costs()
    assert costs.shape == (61, 61)
    assert torch.isinf(costs[torch.ones(61, 61).tril() > 0]).all()


def test_a_point_is_reached_in_one_step_and_many_steps_go_where_it_is_curved():
    """Data of a single point have straight trajectories. Others are curved where rho is about their spread."""
    assert gaussian_trajectories(1e-9).costs()[0, -1] < 1e-12
    found = gaussian_trajectories(0.5)
    times = candidates(found.times, found.costs(), 8)[0]
    rho = [VE().alpha_sigma(torch.tensor(time))[1].item() for time in times]
    assert (times[0], len(times)) == (1000, 8)
    assert all(early > late for early, late in itertools.pairwise(times))
    assert sum(0.1 < each < 5 for each in rho) >= 5


@pytest.mark.parametrize(("schedule", "prediction"), [(linear(), None), (Flow(), flow)])
def test_a_trajectory_begins_where_rho_is_finite(schedule, prediction):
    denoiser = Denoiser(Wavy(), schedule, prediction) if prediction else Denoiser(Wavy(), schedule)
    times = time_grid(schedule, 20, SPACINGS["karras"])
    found = Trajectories(denoiser, normal64(1, 2, 1, 2, 2), times)
    assert len(found.times) == (20 if prediction is None else 19)
    assert all(map(math.isfinite, found.rho))
    assert all(torch.isfinite(y).all() for y in found.y)
    assert all(len(times) == 4 for times in candidates(found.times, found.costs(), 4))


def test_distance_is_from_the_ends_of_each_image():
    ends = torch.zeros(2, 1, 2, 2, dtype=torch.float64)

    def walk(denoiser: Denoiser, x: Tensor, times: Tensor, y: Tensor | None):
        yield x
        yield torch.tensor([3.0, 1.0]).double().reshape(2, 1, 1, 1).expand_as(x)

    assert distance(walk, Denoiser(Wavy(), linear()), ends, ends, None, ends) == 2.0  # (3 + 1) / 2
    assert distance(walk, Denoiser(Wavy(), linear()), ends, ends, None, ends + 1) == 1.0  # (2 + 0) / 2
    half = torch.tensor([3.0, 1.0]).double().reshape(2, 1, 1, 1).expand(2, 1, 2, 2).clone()
    half[0, 0, 1] -= 4
    found = distance(walk, Denoiser(Wavy(), linear()), ends, ends, None, half)
    assert math.isclose(found, math.sqrt(8) / 2, rel_tol=1e-14)  # (root of 16 / 2) / 2


def test_distance_hands_everything_to_the_sampler():
    given = (Denoiser(Wavy(), linear()), normal64(1, 2, 1, 2, 2), torch.ones(3), torch.tensor([3, 7]))
    seen: list[object] = []

    def walk(*arguments):
        seen.extend(arguments)
        yield given[1]

    assert distance(walk, *given, given[1]) == 0
    assert all(one is other for one, other in zip(seen, given, strict=True))


def test_a_trajectory_is_that_of_its_labels():
    asked: list[Tensor] = []

    def network(x: Tensor, time: Tensor, y: Tensor) -> Tensor:
        asked.append(y)
        return x

    Trajectories(
        Denoiser(network, linear()), normal64(1, 2, 1, 2, 2), torch.tensor([1000.0, 500, 0]), torch.tensor([3, 7])
    )
    assert [y.tolist() for y in asked] == [[3, 7], [3, 7]]


def test_points_are_divided_by_alpha():
    """rho = sigma / alpha and y = x / alpha, where alpha is not 1: with eps = 0, x is alpha times what it was."""
    schedule, x = linear(), normal64(1, 2, 1, 2, 2)
    times = torch.tensor([1000.0, 500, 100, 0], dtype=torch.float64)
    found = Trajectories(Denoiser(lambda x, time, y: 0 * x, schedule), x, times)
    alpha, sigma = schedule.alpha_sigma(times[:-1])
    assert found.rho == pytest.approx([*(sigma / alpha).tolist(), 0.0], rel=1e-12)
    for y in found.y:
        torch.testing.assert_close(y, x / alpha[0], rtol=1e-9, atol=1e-12)


def test_a_jump_to_the_next_point_has_a_cost():
    costs = gaussian_trajectories(0.5).costs()
    assert costs.dtype == torch.float64
    assert torch.isfinite(costs[torch.ones(61, 61).triu(1) > 0]).all()


def test_each_growth_has_its_path():
    times, costs = torch.arange(8, 0, -1.0), random_costs(9, 3)
    expected = {tuple(cheapest_path(costs, 4, growth)[:-1]) for growth in GROWTHS}
    assert len(expected) > 1
    assert {tuple(8 - int(time) for time in grid) for grid in candidates(times, costs, 4)} == expected
