"""Search for the best time grid of a network for a number of steps, on a few of its trajectories.

After Chen et al. 2024 (GITS): trajectories of the probability flow have much the same shape for all samples, nearly
straight at large noise, curved in between, straight again at the end. So one grid fits all samples, and a few suffice
to find it. A sampler is not run again for each grid: the cost of a jump is found once for each pair of levels, by a
single Euler step from a point of a fine trajectory, and dynamic programming finds the cheapest path of so many jumps.

Here the cost is the squared distance from the trajectory (theirs is how far a point lies from the straight line between
its ends), and how much later errors count, one number, is not fixed: there is a path for each of several, and the best
is the one on which the sampler itself ends nearest to the trajectories' ends.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser, Prediction
from diffuse.mathematics.samplers.linear_multistep import ipndm
from diffuse.mathematics.wrappers import Observed
from diffuse.system.errors import check

GROWTHS = (1.0, 1.15, 1.3, 1.5, 2.0)  # of the weight from jump to jump: early errors are partly forgotten on the way


class Trajectories:
    """Fine trajectories in y = x / alpha and rho = sigma / alpha, from noise to data, and eps along them.

    times [m]     falling, above 0; those with alpha > 0 of the grid that was walked
    rho [m + 1]   the last is 0
    y [m + 1]     the last are the final images
    eps [m]
    """

    def __init__(self, denoiser: AnyDenoiser, x: Tensor, times: Tensor, y: Tensor | None = None):
        schedule, seen = denoiser.schedule, list[Prediction]()
        *_, final = ipndm(Observed(denoiser, seen.append), x, times, y)
        seen = [guess for guess in seen if float(guess.alpha) > 0]
        self.times = times[:-1][-len(seen) :]
        alpha, sigma = schedule.alpha_sigma(self.times)
        self.rho: list[float] = [*(sigma / alpha).tolist(), 0.0]
        self.y = [*(guess.x_t / guess.alpha for guess in seen), final]
        self.eps = [guess.eps for guess in seen]

    def cost(self, i: int, j: int) -> float:
        """The squared error of Euler's step from i to j > i, the mean over images and pixels.

        ||y_i + (rho_j - rho_i) eps_i - y_j||^2 / d. The step to the last point, at rho = 0, is the predicted x0.
        """
        jumped = self.y[i] + (self.rho[j] - self.rho[i]) * self.eps[i]
        return float((jumped - self.y[j]).square().mean())

    def costs(self) -> Tensor:
        """[m + 1, m + 1] in float64: the cost of every jump; infinite where there is none."""
        found = torch.full((len(self.y), len(self.y)), torch.inf, dtype=torch.float64)
        for i in range(len(self.eps)):
            for j in range(i + 1, len(self.y)):
                found[i, j] = self.cost(i, j)
        return found


def cheapest_path(costs: Tensor, jumps: int, growth: float = 1.0) -> list[int]:
    """The places 0 = i_0 < i_1 < ... < i_jumps = last whose jumps cost least together.

    V(i, 1) = cost(i, last),   V(i, k) = min over j of cost(i, j) + growth V(j, k - 1)

    Raises Refused for more jumps than there are places.
    """
    last = len(costs) - 1
    check(1 <= jumps <= last, "steps", f"between 1 and {last} for spacing=searched", jumps)
    value, following = costs[:, last], list[Tensor]()
    for _ in range(jumps - 1):
        value, best = (costs + growth * value).min(dim=1)
        following.append(best)
    path = [0]
    for best in reversed(following):
        path.append(int(best[path[-1]]))
    return [*path, last]


def candidates(times: Tensor, costs: Tensor, steps: int) -> list[list[float]]:
    """The times of the best grid of so many steps for each growth, without 0, from where the trajectories begin.

    times and costs are those of `Trajectories`; costs of several batches may have been averaged.
    """
    paths = {tuple(cheapest_path(costs, steps, growth)): None for growth in GROWTHS}
    return [[float(times[place]) for place in path[:-1]] for path in paths]


def distance(
    walk: Callable[..., Iterator[Tensor]],
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None,
    ends: Tensor,
) -> float:
    """How far from these ends a sampler ends on a grid: the root mean square over pixels, the mean over images."""
    *_, drawn = walk(denoiser, x, times, y)
    return float((drawn - ends).square().flatten(1).mean(1).sqrt().mean())
