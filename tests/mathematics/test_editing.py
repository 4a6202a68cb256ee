"""Known pixels, noise between noises, and encoding, against exact answers."""

import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuse.mathematics import predictions
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.editing import STEPS, KnownPixels, encode, slerp, to_noise
from diffuse.mathematics.oracles import Gaussian
from diffuse.mathematics.samplers.adaptive import dormand_prince
from diffuse.mathematics.samplers.ancestral import ancestral
from diffuse.mathematics.samplers.ddim import analytic_ddim, ddim
from diffuse.mathematics.samplers.dpm_solver import dpm_solver
from diffuse.mathematics.samplers.heun import heun
from diffuse.mathematics.samplers.linear_multistep import deis
from diffuse.mathematics.spacings import karras, time_grid, uniform
from diffuse.mathematics.tables import linear
from diffuse.mathematics.variances import Analytic, fixed_small
from diffuse.mathematics.wrappers import Clipped, Observed, Wrapper
from tests.support.gaussian import MEAN, STD, column
from tests.support.paths import PATHS, Path, on_every_path
from tests.support.samplers import COARSE, SAMPLERS, Wavy, last, normal64

IMAGES = torch.tensor([[0.37, -0.9, 0.9], [0.21, -0.6, -0.9], [0.0, 1.0, -1.0]], dtype=torch.float64)[:, :, None, None]
GREY_LEVEL = 1 / 127.5


@dataclass(frozen=True)
class Added(Wrapper):
    """x0 plus the label and a number for each image."""

    numbers: Tensor

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None):
        guess = self.inner(x_t, t)
        assert y is not None
        return replace(guess, x0=guess.x0 + (y + self.numbers).reshape(-1, 1, 1, 1))

    def of(self, rows: Tensor) -> "Added":
        return replace(self, numbers=self.numbers[rows])


def masked(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1], and a checkerboard of known pixels."""
    known = torch.arange(shape[2] * shape[3]).reshape(1, 1, *shape[2:]) % 2 == 0
    return 0.7 * torch.tanh(normal64(7, *shape)), known


@on_every_path
@pytest.mark.parametrize("name", SAMPLERS)
def test_known_pixels_are_exact_in_the_end(path: Path, name: str):
    """Of every sampler, each image its own; the others are not those of the image."""
    if path.forgets and name in ("annealed_langevin", "analytic_ddim"):
        pytest.skip("refused where alpha(T) = 0")
    variance = Analytic(path.schedule, dict.fromkeys(COARSE.tolist(), 0.9))
    walk = partial(analytic_ddim, variance=variance) if name == "analytic_ddim" else SAMPLERS[name]
    image, known = masked((5, 2, 3, 3))
    denoiser = KnownPixels(Clipped(Denoiser(Wavy(), path.schedule, path.prediction)), image, known)
    found = last(walk(Observed(denoiser, lambda guess: None), path.prior_std * normal64(2, *image.shape), COARSE))
    everywhere = known.expand_as(image)
    assert torch.equal(found[everywhere], image[everywhere])
    assert not (found == image)[~everywhere].any()
    assert torch.isfinite(found).all()


def test_known_pixels_have_the_noise_that_x_has():
    """eps, v and score are those of an x_t that is made of the known image."""
    image, known = masked((2, 1, 4, 4))
    schedule, t, eps = linear(), torch.tensor(300.0), normal64(1, 2, 1, 4, 4)
    x_t = schedule.diffuse(image, t, eps)
    guess = KnownPixels(Denoiser(Wavy(), schedule), image, known)(x_t, t)
    there = known.expand_as(image)
    torch.testing.assert_close(guess.eps[there], eps[there])
    assert torch.equal(guess.known, there)
    plain = Denoiser(Wavy(), schedule)(x_t, t)
    assert torch.equal(guess.x0[~there], plain.x0[~there])
    assert plain.known is None


def test_labels_and_images_go_along_with_known_pixels():
    """Of some images of a batch, of which each has its own, and of a single one for all."""
    schedule, t, y = linear(), torch.tensor(300.0), torch.tensor([0, 2, 1])
    image, known = masked((3, 1, 2, 2))
    x_t, rows = normal64(1, 3, 1, 2, 2), torch.tensor([2, 0])

    plain = Denoiser(Wavy(), schedule)
    inner = Added(plain, torch.tensor([10, 20, 30]))
    for images, mask in [(image, known), (image[:1], known), (image, torch.cat([known, ~known, known]))]:
        whole = KnownPixels(inner, images, mask)
        some = whole.of(rows)(x_t[rows], t, y[rows])
        torch.testing.assert_close(some.x0, whole(x_t, t, y).x0[rows])
    two = KnownPixels(Added(plain, torch.tensor([10, 20])), image[:2], known)
    torch.testing.assert_close(two.of(rows[1:])(x_t[:1], t, y[:1]).x0, two(x_t[:2], t, y[:2]).x0[:1])


# ----------------------------------------------------------------------------------------------------- interpolation


def test_slerp_begins_and_ends_with_its_ends_bit_for_bit():
    a, b = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    assert torch.equal(slerp(a, b, torch.zeros(3)), a)
    assert torch.equal(slerp(a, b, torch.ones(3)), b)
    assert torch.equal(slerp(a, b, torch.tensor([0.0, 1.0, 0.0])), torch.stack([a[0], b[1], a[2]]))


def test_slerp_goes_along_the_circle_at_even_speed():
    """Of two noises of one length: the length stays, and the angle from the start grows as the part does."""
    a, b = normal64(1, 1, 2, 4, 4), normal64(2, 1, 2, 4, 4)
    b = b * a.norm() / b.norm()
    angle = math.acos(float((a * b).sum() / a.norm() ** 2))
    for u in (0.1, 0.5, 0.8):
        x = slerp(a, b, torch.tensor([u]))
        assert float(x.norm()) == pytest.approx(float(a.norm()), rel=1e-12)
        assert math.acos(float((a * x).sum() / a.norm() ** 2)) == pytest.approx(u * angle, rel=1e-7)


def test_slerp_of_one_direction_is_straight_and_of_opposite_ones_refused():
    a = normal64(1, 2, 1, 2, 2)
    torch.testing.assert_close(
        slerp(a, 3 * a, torch.tensor([0.25, 0.5])), a * torch.tensor([1.5, 2]).reshape(2, 1, 1, 1)
    )
    with pytest.raises(ValueError, match="end must be another direction than opposite to start"):
        slerp(a, -a, torch.tensor([0.5, 0.5]))
    mixed = slerp(
        torch.stack([a[0], a[1]]), torch.stack([2 * a[0], a[0]]), torch.tensor([0.5, 0.5])
    )  # one of each kind
    torch.testing.assert_close(mixed[1:], slerp(a[1:], a[:1], torch.tensor([0.5])))
    assert slerp(a.float(), a.float() * 2, torch.tensor([0.5, 0.5])).dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------- encoding


@on_every_path
def test_the_flow_to_noise_is_exact(gaussian: Gaussian, path: Path):
    """From t_min on that of the Gaussian; before it one step with eps = rho (x0 - mean) / (std^2 + rho^2)."""
    alpha, sigma = path.schedule.alpha_sigma(torch.tensor(path.schedule.t_min, dtype=torch.float64))
    rho = sigma / alpha
    y = IMAGES + rho**2 * (IMAGES - column(MEAN)) / (column(STD) ** 2 + rho**2)
    expected, _ = gaussian.flow(y, path.schedule, path.schedule.t_min)
    end = torch.tensor(1000.0, dtype=torch.float64)
    found = to_noise(gaussian.denoiser(path.schedule, path.prediction), IMAGES, end, steps=400)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * path.prior_std)


def test_the_flow_to_noise_has_order_4(gaussian: Gaussian):
    path, end = PATHS["linear"], torch.tensor(1000.0, dtype=torch.float64)
    denoiser = gaussian.denoiser(path.schedule, path.prediction)
    exact = to_noise(denoiser, IMAGES, end, steps=800)
    rough, fine = (float((to_noise(denoiser, IMAGES, end, steps=steps) - exact).norm()) for steps in (40, 80))
    assert math.log2(rough / fine) == pytest.approx(4, abs=0.3)


@on_every_path
@pytest.mark.parametrize(
    ("walk", "steps"),
    [(ddim, 50), (heun, 25), (dpm_solver, 50), (deis, 50), (dormand_prince, None)],
    ids=["ddim", "heun", "dpm_solver", "deis", "ode"],
)
def test_encoding_returns_the_image_to_less_than_a_grey_level(gaussian: Gaussian, path: Path, walk, steps):
    denoiser = gaussian.denoiser(path.schedule, path.prediction)
    ends = torch.tensor([1000, path.schedule.t_min, 0], dtype=torch.float64)
    spacing = karras if walk is heun else uniform  # on which Heun's method is stable on every path
    times = ends if steps is None else time_grid(path.schedule, steps, spacing)
    noise = encode(denoiser, walk, IMAGES, times)
    assert float((last(walk(denoiser, noise, times)) - IMAGES).abs().max()) < GREY_LEVEL


def test_corrections_make_a_coarse_sampler_return_the_image(gaussian: Gaussian):
    """Without them DDIM in 50 steps is 10 grey levels off; and without need there are none."""
    path = PATHS["linear"]
    denoiser, times = gaussian.denoiser(path.schedule), time_grid(path.schedule, 50)
    errors = []
    for corrections in (0, 1, 2, 3):
        noise = encode(denoiser, ddim, IMAGES, times, corrections=corrections, tolerance=1e-6)
        errors.append(float((last(ddim(denoiser, noise, times)) - IMAGES).abs().max()) / GREY_LEVEL)
    path_taken: list[Tensor] = []
    encode(Observed(denoiser, lambda guess: path_taken.append(guess.x0)), ddim, IMAGES, times, corrections=0)
    assert len(path_taken) == 4 * STEPS + 1 + 50  # to noise, and one look at what the sampler makes of it
    assert errors[0] > 8
    assert errors[3] < 0.5
    assert all(later < 0.3 * earlier for earlier, later in pairwise(errors))
    loose = encode(denoiser, ddim, IMAGES, times, tolerance=1.0)
    assert torch.equal(loose, to_noise(denoiser, IMAGES, times[0]))


def test_of_what_does_not_converge_the_best_is_kept(gaussian: Gaussian):
    """Heun's method in 18 uniform steps on the cosine path is not stable, and corrections make it worse."""
    path = PATHS["cosine"]
    denoiser, times = gaussian.denoiser(path.schedule), time_grid(path.schedule, 18)
    first = to_noise(denoiser, IMAGES, times[0])
    before, after = (
        (last(heun(denoiser, noise, times)) - IMAGES).abs().flatten(1).amax(1)
        for noise in (first, encode(denoiser, heun, IMAGES, times))
    )
    assert (after <= before).all()


def test_what_an_image_is_encoded_to_depends_on_it_alone():
    schedule, images = linear(), torch.rand(5, 1, 4, 4) * 2 - 1
    denoiser, times = Clipped(Denoiser(Wavy(), schedule)), time_grid(schedule, 12)
    together = encode(denoiser, ddim, images, times)
    for row in range(5):
        assert torch.equal(encode(denoiser, ddim, images[row : row + 1], times), together[row : row + 1])


def test_labels_go_along(gaussian: Gaussian):
    """Images that are done leave the batch, with their labels."""
    seen: list[Tensor] = []

    class Labelled(Denoiser):
        def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None):
            assert y is not None
            assert len(y) == len(x_t)
            seen.append(y)
            return Gaussian(column(MEAN) * (1 + y.reshape(-1, 1, 1, 1)), column(STD)).denoiser(linear())(x_t, t)

    denoiser, times = Labelled(Wavy(), linear(), predictions.eps), time_grid(linear(), 50)
    for y in torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1]]):
        noise = encode(denoiser, ddim, IMAGES, times, y)
        assert float((last(ddim(denoiser, noise, times, y)) - IMAGES).abs().max()) < GREY_LEVEL
        alone = [encode(denoiser, ddim, IMAGES[row : row + 1], times, y[row : row + 1]) for row in range(3)]
        torch.testing.assert_close(noise, torch.cat(alone))
    assert {len(labels) for labels in seen} == {1, 2, 3}


def test_what_a_wrapper_has_for_each_image_goes_along(gaussian: Gaussian):
    """Images that are done leave the batch, with what belongs to them."""
    times, y = time_grid(linear(), 50), torch.zeros(3, dtype=torch.long)
    denoiser = Added(gaussian.denoiser(linear()), torch.tensor([0.1, 0.0, -0.2]))
    together = encode(denoiser, ddim, IMAGES, times, y)
    for row in range(3):
        rows = torch.tensor([row])
        torch.testing.assert_close(encode(denoiser.of(rows), ddim, IMAGES[rows], times, y[rows]), together[rows])


def test_replacement_alone_is_deterministic_with_a_deterministic_sampler():
    """The known pixels of x_t are the image with the noise that x_T began with: DDIM's path to it."""
    image, known = masked((1, 1, 2, 2))
    schedule, times = linear(), time_grid(linear(), 20)
    x = normal64(3, 1, 1, 2, 2)
    denoiser = KnownPixels(Denoiser(Wavy(), schedule), image, known)
    alpha, sigma = schedule.alpha_sigma(times)
    eps = (x - alpha[0] * image) / sigma[0]
    for place, found in enumerate(ddim(denoiser, x, times), 1):
        expected = alpha[place] * image + sigma[place] * eps
        there = known.expand_as(image)
        torch.testing.assert_close(found[there], expected[there])


def test_ancestral_with_the_small_variance_draws_the_known_pixels_from_the_forward_process():
    """Their variance at each time is sigma^2, by the coefficients of every noise."""
    schedule, times = linear(), time_grid(linear(), 6)
    rows, count = 8, 0

    def noise(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        z = torch.zeros_like(x)
        z[count + 1] = 1
        return z

    x = torch.zeros(rows, 1, 1, 1, dtype=torch.float64)
    x[1] = 1
    image = torch.full((1, 1, 1, 1), 0.4, dtype=torch.float64)
    denoiser = KnownPixels(Denoiser(Wavy(), schedule), image, torch.ones(1, 1, 1, 1, dtype=torch.bool))
    # x_T itself has variance 1, where the forward process has sigma_T^2 = 1 - 4e-5.
    for place, found in enumerate(ancestral(denoiser, x, times, variance=fixed_small, noise=noise), 1):
        alpha, sigma = schedule.alpha_sigma(times[place])
        np.testing.assert_allclose(found[0].item() - alpha * 0.4, 0, atol=1e-2)
        np.testing.assert_allclose(((found[1:] - found[0]) ** 2).sum().sqrt(), sigma, rtol=1e-3, atol=1e-12)
