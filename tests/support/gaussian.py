"""Gaussian data in general position: on N(0, I) wrong samplers look right to machine precision."""

import torch
from torch import Tensor

from diffuse.mathematics.oracles import Gaussian
from tests.support.paths import Path

# On N(0, I) wrong samplers look right to machine precision: every channel has a mean and a spread of its own.
MEAN, STD = (0.3, -1.0, 0.5), (0.1, 0.7, 1.5)


def column(values: tuple[float, ...]) -> Tensor:
    """One value a channel, as [C, 1, 1] in float64."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1)


X0 = torch.tensor([[0.37, -1.9, 2.4], [0.21, -0.6, -2.9]], dtype=torch.float64).reshape(2, 3, 1, 1)


SIGNS = torch.tensor([[1, -1, 1], [-1, -1, 1]], dtype=torch.float64).reshape(2, 3, 1, 1)


def expected_density(gaussian: Gaussian, path: Path, t_min: float | None = None) -> tuple[Tensor, Tensor]:
    """log N(x_T; 0, prior_std^2) + log |det dx_T / dx0| along the Gaussian's own flow, and x_T."""
    x_T, log_det = gaussian.flow(X0, path.schedule, path.schedule.t_min if t_min is None else t_min)
    prior = torch.distributions.Normal(0.0, torch.tensor(path.prior_std).double())
    return prior.log_prob(x_T).sum((1, 2, 3)) + log_det, x_T
