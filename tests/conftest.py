"""What the tests share: exact data in general position, and schedules of every kind."""

import pytest
import torch
from torch import Tensor

from diffuse.oracles import Gaussian
from diffuse.schedules import Schedule, cosine, linear

# On N(0, I) wrong samplers look right to machine precision: every channel has a mean and a spread of its own.
MEAN, STD = (0.3, -1.0, 0.5), (0.1, 0.7, 1.5)


def column(values: tuple[float, ...]) -> Tensor:
    """One value a channel, as [C, 1, 1] in float64."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1)


@pytest.fixture
def gaussian() -> Gaussian:
    return Gaussian(column(MEAN), column(STD))


@pytest.fixture(params=["linear", "cosine"])
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return {"linear": linear, "cosine": cosine}[request.param](1000)
