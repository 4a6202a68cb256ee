"""Options of the few-step samplers: what is refused, and the defaults."""

import inspect
import math
from collections.abc import Callable
from functools import partial

import pytest

from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.samplers.adaptive import dormand_prince
from diffuse.mathematics.samplers.dpm_solver import dpm_solver, dpm_solver_singlestep
from diffuse.mathematics.samplers.heun import heun
from diffuse.mathematics.samplers.linear_multistep import deis, ipndm, lms, pndm
from diffuse.mathematics.samplers.sampler import order_of
from diffuse.mathematics.samplers.unipc import unipc
from diffuse.mathematics.tables import linear
from tests.support.samplers import COARSE, Wavy, normal64


def refused(sampler: Callable, **options) -> str:
    with pytest.raises(ValueError) as caught:
        next(sampler(Denoiser(Wavy(), linear()), normal64(1, 1, 1, 2, 2), COARSE, **options))
    return str(caught.value)


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (heun, {"order": 3}, "order must be 1 or 2, not 3"),
        (heun, {"churn": -1.0}, "churn must be at least 0, not -1.0"),
        (heun, {"churn": math.inf}, "churn must be at least 0, not inf"),
        (heun, {"churn_noise": math.inf}, "churn_noise must be positive, not inf"),
        (heun, {"churn_min": 2.0, "churn_max": 1.0}, "churn_min must be between 0 and churn_max=1.0, not 2.0"),
        (heun, {"churn_noise": 0.0}, "churn_noise must be positive, not 0.0"),
        (dpm_solver, {"order": 4}, "order must be 1, 2 or 3, not 4"),
        (dpm_solver, {"form": "v"}, "form must be one of x0, eps, not 'v'."),
        (dpm_solver, {"slope": "heun"}, "slope must be one of midpoint, exact, not 'heun'."),
        (dpm_solver, {"eta": 1.5}, "eta must be between 0 and 1, not 1.5"),
        (dpm_solver_singlestep, {"order": 0}, "order must be 1, 2 or 3, not 0"),
        (dpm_solver_singlestep, {"form": "v"}, "form must be one of x0, eps, not 'v'."),
        (dpm_solver_singlestep, {"slope": "heun"}, "slope must be one of midpoint, exact, not 'heun'."),
        (unipc, {"order": 4}, "order must be 1, 2 or 3, not 4"),
        (unipc, {"b": "bh3"}, "b must be one of bh1, bh2, not 'bh3'. Did you mean 'bh2'?"),
        (lms, {"order": 5}, "order must be 1, 2, 3 or 4, not 5"),
        (deis, {"order": 5}, "order must be 1, 2, 3 or 4, not 5"),
        (pndm, {"order": 5}, "order must be 1, 2, 3 or 4, not 5"),
        (deis, {"space": "rho"}, "space must be one of t, log_rho, not 'rho'. Did you mean 'log_rho'?"),
        (ipndm, {"order": 0}, "order must be 1, 2, 3 or 4, not 0"),
        (pndm, {"start": "euler"}, "start must be one of plms, runge_kutta, not 'euler'."),
        (pndm, {"start": "runge_kutta", "order": 2}, "start must be plms for orders other than 4, not runge_kutta"),
        (dormand_prince, {"tolerance": 0.0}, "tolerance must be at least 1e-7 and below 1, not 0.0"),
        (dormand_prince, {"tolerance": 1.0}, "tolerance must be at least 1e-7 and below 1, not 1.0"),
    ],
)
def test_options_out_of_range_are_refused(sampler, options: dict, message: str):
    assert refused(sampler, **options) == message


@pytest.mark.parametrize(
    ("sampler", "options"), [(heun, {"churn_min": 2.0, "churn_max": 2.0}), (dormand_prince, {"tolerance": 1e-7})]
)
def test_the_ends_of_a_range_are_in_it(sampler, options: dict):
    next(sampler(Denoiser(Wavy(), linear()), normal64(1, 1, 1, 2, 2), COARSE, **options))


@pytest.mark.parametrize(
    ("sampler", "usual"),
    [(unipc, {"order": 2}), (deis, {"order": 3}), (heun, {"order": 2, "churn_min": 0.0}), (dpm_solver, {"order": 2})],
)
def test_defaults_are_those_of_the_papers(sampler, usual: dict):
    found = {name: parameter.default for name, parameter in inspect.signature(sampler).parameters.items()}
    assert {name: found[name] for name in usual} == usual


def test_the_order_of_a_sampler_with_its_options():
    """None where noise is added, and for a function that declares nothing."""
    assert order_of(partial(dpm_solver, order=3)) == 3
    assert order_of(partial(dpm_solver, order=3, eta=0.5)) is None
    assert order_of(partial(heun)) == 2
    assert order_of(partial(lambda denoiser, x, times, y: iter(()))) is None
