"""The whole way from the data to a density, on every path: the solvers' orders, and every type of prediction."""

import math
from itertools import pairwise

import pytest
import torch

from diffuse.mathematics import predictions
from diffuse.mathematics.ode import exact_divergence, heun, hutchinson, log_likelihood, rk4, rk45
from diffuse.mathematics.oracles import Gaussian
from tests.support.gaussian import SIGNS, X0, expected_density
from tests.support.paths import Path, on_every_path


@on_every_path
@pytest.mark.parametrize(("solver", "order", "nodes"), [(heun, 2, (48, 96, 192)), (rk4, 4, (24, 48, 96))])
def test_doubling_the_nodes_divides_the_error_by_two_to_the_order(gaussian: Gaussian, path: Path, solver, order, nodes):
    denoiser = gaussian.denoiser(path.schedule, path.prediction)
    density, x_T = expected_density(gaussian, path)
    errors = []
    for count in nodes:
        found = log_likelihood(denoiser, X0, solver=solver, divergence=hutchinson(SIGNS), steps=count)
        errors.append(((found.log_density - density).abs().max().item(), (found.noise - x_T).abs().max().item()))
    for coarse, fine in pairwise(errors):
        orders = [math.log2(before / after) for before, after in zip(coarse, fine, strict=True)]
        assert all(order - order / 20 < measured < order + order / 20 for measured in orders), orders


@on_every_path
@pytest.mark.parametrize("prediction", [predictions.eps, predictions.v, predictions.flow, predictions.edm])
@pytest.mark.parametrize("divergence", [exact_divergence, hutchinson(SIGNS)], ids=["exact", "hutchinson"])
def test_the_density_does_not_depend_on_what_is_predicted(gaussian: Gaussian, path: Path, prediction, divergence):
    if prediction is predictions.eps and path.forgets:
        prediction = predictions.x0  # where nothing of the image is left, its noise says nothing of it
    denoiser = gaussian.denoiser(path.schedule, prediction)
    found = log_likelihood(denoiser, X0, solver=rk45(1e-7), divergence=divergence)
    density, x_T = expected_density(gaussian, path)
    torch.testing.assert_close(found.log_density, density, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.noise, x_T, rtol=1e-5, atol=1e-5)
