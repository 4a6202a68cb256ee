"""The exact likelihood against the Gaussian's flow, divergences against traces, solvers against their orders."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuse.mathematics import predictions
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.ode import exact_divergence, heun, hutchinson, log_likelihood, rk4, rk45
from diffuse.mathematics.oracles import Gaussian
from diffuse.mathematics.tables import linear
from tests.support.gaussian import SIGNS, X0, expected_density
from tests.support.paths import PATHS, Path, on_every_path

DIVERGENCES = {"exact": exact_divergence, "hutchinson": hutchinson(SIGNS)}


@on_every_path
@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
def test_the_density_of_the_gaussian_is_that_of_its_flow(gaussian: Gaussian, path: Path, divergence):
    """The Jacobian is diagonal, so one probe of signs has no error either."""
    denoiser = gaussian.denoiser(path.schedule, path.prediction)
    found = log_likelihood(denoiser, X0, solver=rk45(1e-7), divergence=divergence)
    density, x_T = expected_density(gaussian, path)
    torch.testing.assert_close(found.log_density, density, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.noise, x_T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta_start", [1e-4, 2e-4])
def test_the_flow_of_a_mean_begins_at_a_level(gaussian: Gaussian, beta_start: float):
    """t is 1 only up to rounding there: the step down from it must not end below 0."""
    schedule = linear(beta_start=beta_start)
    x_T, log_det = gaussian.flow(X0, schedule, 1.0)
    expected = torch.distributions.Normal(0.0, torch.ones(()).double()).log_prob(x_T).sum((1, 2, 3)) + log_det
    denoiser = gaussian.denoiser(schedule, predictions.mean)
    found = log_likelihood(denoiser, X0, solver=rk4, divergence=exact_divergence, steps=48)
    torch.testing.assert_close(found.log_density, expected, rtol=0, atol=0.1)


@on_every_path
def test_t_min_is_where_the_path_begins(gaussian: Gaussian, path: Path):
    """Not at the schedule's own, whose density is another."""
    denoiser = gaussian.denoiser(path.schedule, path.prediction)
    found = log_likelihood(denoiser, X0, solver=rk45(1e-7), divergence=DIVERGENCES["hutchinson"], t_min=200)
    density, _ = expected_density(gaussian, path, 200)
    torch.testing.assert_close(found.log_density, density, rtol=0, atol=1e-5)
    assert ((density - expected_density(gaussian, path)[0]).abs() > 0.1).all()


def test_the_density_is_nearly_that_of_the_data(gaussian: Gaussian):
    """Off by the noise at t_min, a hundredth against a spread of a tenth, and by what x_T keeps of the image.

    Both are under 0.05 nats for every one of 200 draws.
    """
    generator = torch.Generator().manual_seed(0)
    x0 = gaussian.mean + gaussian.std * torch.randn(200, 3, 1, 1, dtype=torch.float64, generator=generator)
    found = log_likelihood(gaussian.denoiser(linear()), x0, solver=rk4, divergence=exact_divergence, steps=64)
    density = torch.distributions.Normal(gaussian.mean, gaussian.std).log_prob(x0).sum((1, 2, 3))
    gap = (found.log_density - density).abs()
    assert 0 < gap.max() < 0.05


@pytest.mark.parametrize("solver", [heun, rk4])
def test_images_of_a_batch_do_not_touch_each_other(gaussian: Gaussian, solver):
    denoiser = gaussian.denoiser(linear())
    together = log_likelihood(denoiser, X0, solver=solver, divergence=exact_divergence, steps=12)
    for row in range(2):
        alone = log_likelihood(denoiser, X0[row : row + 1], solver=solver, divergence=exact_divergence, steps=12)
        torch.testing.assert_close(alone.log_density[0], together.log_density[row], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.noise[0], together.noise[row], rtol=1e-12, atol=1e-12)


class Counting(torch.nn.Module):
    """A network that finds half of x_t to be noise, and remembers each time and label it was asked with."""

    def __init__(self):
        super().__init__()
        self.times, self.labels = [], []

    def forward(self, x, time, y=None):
        self.times.append(time[0].item())
        self.labels.append(y)
        return x / 2


@pytest.mark.parametrize(("solver", "calls"), [(heun, 14), (rk4, 28), (rk45(1e-3), None)], ids=["heun", "rk4", "rk45"])
def test_evaluations_are_counted_and_labels_passed_on(solver, calls):
    net, y = Counting(), torch.tensor([3, 1])
    with torch.no_grad():  # as evaluation runs; the divergence needs its own derivatives all the same
        found = log_likelihood(Denoiser(net, linear()), X0, y, solver=solver, divergence=exact_divergence, steps=7)
    assert len(net.times) == found.evaluations
    assert calls is None or calls == found.evaluations
    assert all(labels is y for labels in net.labels)
    assert min(net.times) == pytest.approx(0)
    assert calls is None or max(net.times) == pytest.approx(999)
    assert not found.log_density.requires_grad
    assert not found.noise.requires_grad


def test_there_are_64_steps_unless_it_is_said_otherwise():
    found = log_likelihood(Denoiser(Counting(), linear()), X0, solver=heun, divergence=exact_divergence)
    assert found.evaluations == 2 * 64


def test_steps_are_evenly_spaced_in_log_snr():
    net = Counting()
    log_likelihood(Denoiser(net, linear()), X0, solver=heun, divergence=exact_divergence, steps=7)
    starts = torch.tensor(net.times[::2], dtype=torch.float64) + 1
    ends = linear().log_snr(torch.tensor([1.0, 1000.0]).double())
    torch.testing.assert_close(
        linear().log_snr(starts), torch.linspace(*ends.tolist(), 8).double()[:-1], atol=1e-4, rtol=0
    )


def test_before_pure_noise_the_last_step_begins_at_log_snr_minus_16():
    """From there to T is a step of e^-8, a third of a thousandth of a quarter turn."""
    schedule, net = PATHS["flow"].schedule, Counting()
    log_likelihood(Denoiser(net, schedule, predictions.flow), X0, solver=heun, divergence=exact_divergence, steps=4)
    starts = torch.tensor(net.times[::2], dtype=torch.float64) + 1
    first = float(schedule.log_snr(torch.tensor(schedule.t_min).double()))
    expected = [first + share * (-16 - first) for share in (0, 1 / 4, 2 / 4, 3 / 4)]
    np.testing.assert_allclose(schedule.log_snr(starts), expected, atol=1e-3)
    assert net.times[-1] == pytest.approx(999)


# ------------------------------------------------------------------------------------------------------ divergences

MIXING = torch.tensor([[0.7, -1.2, 0.4], [0.3, 0.1, 2.0], [-0.9, 1.6, -0.5]], dtype=torch.float64)


def mixed(z: Tensor) -> Tensor:
    """A field whose Jacobian is full: component i is the sum of MIXING[i, j] sin(z_j)."""
    return torch.einsum("ij,bjhw->bihw", MIXING, torch.sin(z))


def trace_of_mixed(z: Tensor) -> Tensor:
    return (MIXING.diagonal() * torch.cos(z.flatten(1))).sum(1)


def test_the_exact_divergence_is_the_trace():
    z = X0.clone().requires_grad_()
    torch.testing.assert_close(exact_divergence(mixed(z), z), trace_of_mixed(X0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_every_pixel_of_a_channel_has_its_own_part_in_the_divergence(divergence: str):
    """Of images of 2 x 2 x 3 numbers, each of which every component of the field is made of, unevenly."""
    z, mixing = (numbers.double() for numbers in torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(0)))
    z = z[:2].reshape(2, 2, 2, 3).requires_grad_()
    velocity = (torch.sin(z.flatten(1)) @ mixing.T).reshape(z.shape)
    jacobian = mixing * torch.cos(z.detach().flatten(1))[:, None, :]
    if divergence == "exact":
        found, expected = exact_divergence(velocity, z), torch.einsum("bii->b", jacobian)
    else:
        probe = mixing[:2].sign()
        found = hutchinson(probe.reshape(z.shape))(velocity, z)
        expected = torch.einsum("bi,bij,bj->b", probe, jacobian, probe)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_probes_of_signs_have_the_trace_as_their_mean():
    """Over all 2^3 of them, exactly; a single one is off, since this Jacobian is not diagonal."""
    products = []
    for signs in itertools.product([-1.0, 1.0], repeat=3):
        z = X0.clone().requires_grad_()
        probe = torch.tensor(signs, dtype=torch.float64).reshape(1, 3, 1, 1).expand(2, 3, 1, 1)
        products.append(hutchinson(probe)(mixed(z), z))
    torch.testing.assert_close(torch.stack(products).mean(0), trace_of_mixed(X0), rtol=1e-12, atol=1e-12)
    assert all((product - trace_of_mixed(X0)).abs().max() > 0.1 for product in products)


def test_a_probe_is_each_images_own():
    """probe^T J probe, with J written out."""
    z = X0.clone().requires_grad_()
    probe = torch.tensor([[0.3, -2.0, 1.1], [1.0, 0.4, -0.7]], dtype=torch.float64)
    jacobian = MIXING * torch.cos(X0.flatten(1))[:, None, :]
    expected = torch.einsum("bi,bij,bj->b", probe, jacobian, probe)
    torch.testing.assert_close(hutchinson(probe.reshape(2, 3, 1, 1))(mixed(z), z), expected, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------- solvers


def swinging(phi: float, z: Tensor) -> tuple[Tensor, Tensor]:
    """z' = z cos(phi), whose solution is z exp(sin(phi)), and as if it were the divergence the sum of z'."""
    return z * math.cos(phi), z.flatten(1).sum(1) * math.cos(phi)


@pytest.mark.parametrize(("solver", "order"), [(heun, 2), (rk4, 4)])
def test_solvers_have_their_order(solver, order: int):
    """In z and in the log-density, over uneven steps."""
    z = torch.tensor([[0.4, -0.3], [1.1, 0.2]], dtype=torch.float64).reshape(2, 2, 1, 1)
    true = z * math.exp(math.sin(1.5) - math.sin(0.2))
    errors = []
    for steps in (16, 32, 64):
        even = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        found, total, _ = solver(swinging, z, 0.2 + even + 0.3 * even**2)
        gain = (true - z).flatten(1).sum(1)
        errors.append(((found - true).abs().max().item(), (total - gain).abs().max().item()))
    for coarse, fine in itertools.pairwise(errors):
        orders = [math.log2(before / after) for before, after in zip(coarse, fine, strict=True)]
        assert all(order - 0.2 < measured < order + 0.2 for measured in orders), orders


@pytest.mark.parametrize("solver", [heun, rk4, None], ids=["heun", "rk4", "rk45"])
def test_log_densities_are_summed_in_float64_and_images_stay_in_float32(solver):
    """Many small steps would add up to an error; the network is to be shown what it was trained on."""
    shown = set()

    def field(phi: float, z: Tensor) -> tuple[Tensor, Tensor]:
        shown.add(z.dtype)
        return swinging(phi, z)

    z = torch.tensor([0.4, 1.1]).reshape(2, 1, 1, 1)
    found, total, _ = (solver or rk45())(field, z, torch.linspace(0.2, 1.5, 5, dtype=torch.float64))
    assert shown == {torch.float32}
    assert (found.dtype, total.dtype) == (torch.float32, torch.float64)


def test_a_hundred_thousandth_is_the_tolerance_unless_it_is_said_otherwise(gaussian: Gaussian):
    """That of Song et al. 2021, appendix D.2."""
    denoiser, divergence = gaussian.denoiser(linear()), DIVERGENCES["hutchinson"]
    ours, theirs = (
        log_likelihood(denoiser, X0, solver=solver, divergence=divergence) for solver in (rk45(), rk45(1e-5))
    )
    assert ours.evaluations == theirs.evaluations
    assert torch.equal(ours.log_density, theirs.log_density)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_rk45_reaches_its_tolerance(gaussian: Gaussian, tolerance: float):
    """Errors of single steps add up, to some times what each may be; more is asked for by more evaluations."""
    path = PATHS["cosine"]
    denoiser, divergence = gaussian.denoiser(path.schedule), DIVERGENCES["hutchinson"]
    found, sloppy = (
        log_likelihood(denoiser, X0, solver=rk45(at), divergence=divergence) for at in (tolerance, 30 * tolerance)
    )
    density, _ = expected_density(gaussian, path)
    assert (found.log_density - density).abs().max() < 10 * tolerance
    assert (found.log_density - density).abs().max() > tolerance / 1000
    assert found.evaluations > sloppy.evaluations


def test_rk45_says_when_the_network_answers_no_number():
    """scipy would look for a smaller step for ever."""

    def nothing(phi: float, z: Tensor) -> tuple[Tensor, Tensor]:
        return z * math.nan, z.flatten(1).sum(1)

    with pytest.raises(ArithmeticError, match="NaN or infinite values"):
        rk45()(nothing, torch.zeros(2, 1, 1, 1, dtype=torch.float64), torch.tensor([0.1, 1.0]))


def test_rk45_says_when_it_cannot():
    """z' = z^2 is infinite at 1 when it begins with 1 at 0."""
    z = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    ends = torch.tensor([0.0, 2.0], dtype=torch.float64)
    with pytest.raises(ArithmeticError, match="could not be solved to the tolerance"):
        rk45(1e-6)(lambda phi, z: (z**2, z.flatten(1).sum(1)), z, ends)
