"""What a network's output means: its exact answer, written out from the papers, gives back x0, eps, v and the score."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from diffuse import losses, predictions
from diffuse.denoiser import Denoiser
from diffuse.paths import VE, VP, Flow
from diffuse.schedules import Schedule, cosine, linear

PATHS: dict[str, Schedule] = {
    "linear": linear(),
    "cosine": cosine(),
    "zero_snr": linear(zero_terminal_snr=True),
    "vp": VP(),
    "ve": VE(),
    "flow": Flow(),
}
TABLES, PURE_NOISE_AT_T = ("linear", "cosine", "zero_snr"), ("zero_snr", "flow")
TYPES = ("eps", "x0", "v", "flow", "mean", "edm")
DEFINED = [(path, kind) for path in PATHS for kind in TYPES if kind != "mean" or path in TABLES]
SIGMA_DATA = 0.5

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


class Constant(torch.nn.Module):
    """A network that answers the same whatever it is shown, and remembers what that was."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output

    def forward(self, x, time, y=None):
        self.shown = (x, time, y)
        return self.output


def images(*seeds: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """For each seed four images of noise, [4, 3, 2, 2]."""
    return [torch.randn(4, 3, 2, 2, dtype=dtype, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


def times(path: str, kind: str) -> Tensor:
    """From the first time of training to the last at which there is a definition to solve: x0 is not in pure noise."""
    pure = path in PURE_NOISE_AT_T and kind in ("eps", "edm")
    last = 999 if pure else 1000
    return torch.tensor([1, 2, 500, last] if path in TABLES else [PATHS[path].t_min, 3.7, 500.25, last]).double()


def alpha_sigma(path: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """How much image and how much noise there is, from the papers' formulas, ready to multiply images."""
    t = t.reshape(-1, 1, 1, 1)
    if path in TABLES:
        log_alpha_bar = torch.log1p(-PATHS[path].beta).cumsum(0)[t.long()]
        return torch.exp(log_alpha_bar / 2), torch.sqrt(-torch.expm1(log_alpha_bar))
    u = t / 1000
    if path == "vp":  # Song et al. 2021, equation 33
        integral = 0.1 * u + 19.9 * u**2 / 2
        return torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))
    if path == "ve":
        return torch.ones_like(t), 0.02 * 5000 ** ((t - 1) / 999)
    return 1 - u, u


def answer(path: str, kind: str, t: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """What is predicted, by its definition, where the image is x0 and the noise is `noise`."""
    alpha, sigma = alpha_sigma(path, t)
    x_t = alpha * x0 + sigma * noise
    if kind == "mean":  # mu-tilde, Ho et al. 2020, equation 7
        beta = PATHS[path].beta[t.long()].reshape(-1, 1, 1, 1)
        alpha_before, sigma_before = alpha_sigma(path, t - 1)
        return alpha_before * beta / sigma**2 * x0 + (1 - beta).sqrt() * sigma_before**2 / sigma**2 * x_t
    if kind == "edm":  # Karras et al. 2022, equation 8 and table 1
        rho, d = sigma / alpha, SIGMA_DATA
        c_skip, c_out = d**2 / (rho**2 + d**2), rho * d / (rho**2 + d**2).sqrt()
        return (x0 - c_skip * (x0 + rho * noise)) / c_out
    return {"eps": noise, "x0": x0, "v": alpha * noise - sigma * x0, "flow": noise - x0}[kind]


def in_one_batch_and_alone(t: Tensor) -> list[Tensor]:
    """A time for each image, and each time as that of all images."""
    return [t, *t]


@pytest.mark.parametrize(("path", "kind"), DEFINED)
def test_a_network_that_answers_the_definition_is_understood(path: str, kind: str):
    x0, noise = images(1, 2)
    for t in in_one_batch_and_alone(times(path, kind)):
        alpha, sigma = alpha_sigma(path, t)
        denoiser = Denoiser(Constant(answer(path, kind, t, x0, noise)), PATHS[path], getattr(predictions, kind))
        guess = denoiser(alpha * x0 + sigma * noise, t)
        close(guess.x0, x0)
        close(guess.eps, noise)
        close(guess.v, alpha * noise - sigma * x0)  # Salimans and Ho 2022, section 4
        close(guess.score, -noise / sigma)  # the gradient of log N(x_t; alpha x0, sigma^2)


@pytest.mark.parametrize(("path", "kind"), DEFINED)
def test_what_the_network_is_shown(path: str, kind: str):
    """x_t, but scaled down where its variance explodes, and the level's 0-based index; EDM has rules of its own."""
    x_t, output = images(1, 2)
    for t in in_one_batch_and_alone(times(path, kind)):
        alpha, sigma = alpha_sigma(path, t)
        net = Constant(output)
        Denoiser(net, PATHS[path], getattr(predictions, kind))(x_t, t)
        if kind == "edm":
            rho = sigma / alpha
            shown, time = x_t / alpha / (rho**2 + SIGMA_DATA**2).sqrt(), rho.log() / 4
        else:
            shown, time = x_t / (1 + sigma**2).sqrt() if path == "ve" else x_t, t - 1
        close(net.shown[0], shown)
        close(net.shown[1], time.flatten().expand(4))


class Halved(VE):
    """A path on which the noise explodes and the image fades too, as on none of ours."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = super().alpha_sigma(t)
        return alpha / 2, sigma


def test_inputs_that_explode_are_scaled_by_both_alpha_and_sigma():
    t = torch.tensor([1.0, 600.0, 1000.0], dtype=torch.float64)
    sigma = 0.02 * 5000 ** ((t - 1) / 999)
    close(predictions.eps(Halved(), t).c_in, (1 / 4 + sigma**2).rsqrt().clamp(max=1))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edms_input_and_target_have_variance_one(path: str, sigma_data: float):
    """For data of that standard deviation: the two demands of Karras et al. 2022 that c_in and c_out come from."""
    t = times(path, "edm")
    alpha, sigma = (number.flatten() for number in alpha_sigma(path, t))
    c_skip, c_out, c_in, _ = predictions.edm(PATHS[path], t, sigma_data=sigma_data)
    ones = torch.ones_like(t)
    close(c_in**2 * ((alpha * sigma_data) ** 2 + sigma**2), ones)
    of_x0, of_noise = (1 - c_skip * alpha) / c_out, -c_skip * sigma / c_out  # the target is (x0 - c_skip x_t) / c_out
    close((of_x0 * sigma_data) ** 2 + of_noise**2, ones)


@pytest.mark.parametrize("path", TABLES)
def test_prediction_of_the_mean_is_prediction_of_x0_or_eps_but_for_the_weight(path: str):
    """Ho et al. 2020: the difference of two means is of_x0 times that of x0 (equation 7), and equation 12 for eps."""
    x0, noise, wrong = images(1, 2, 3)
    t = times(path, "eps")
    alpha, sigma = alpha_sigma(path, t)
    wrong_noise = (alpha * x0 + sigma * noise - alpha * wrong) / sigma
    denoiser = Denoiser(Constant(answer(path, "mean", t, wrong, wrong_noise)), PATHS[path], predictions.mean)
    found = losses.simple(denoiser, x0, t, noise)
    beta, before = PATHS[path].beta[t.long()], PATHS[path].alpha_bar[t.long() - 1]
    alpha_bar = alpha.flatten() ** 2
    of_x0 = before.sqrt() * beta / (1 - alpha_bar)
    close(found, of_x0**2 * (x0 - wrong).square().mean((1, 2, 3)))
    of_eps = beta**2 / ((1 - beta) * (1 - alpha_bar))
    close(found, of_eps * (noise - wrong_noise).square().mean((1, 2, 3)))


@pytest.mark.parametrize("sigma_data", [0.0, -0.5, math.nan])
def test_sigma_data_must_be_positive(sigma_data: float):
    with pytest.raises(ValueError, match="^sigma_data must be positive"):
        predictions.edm(linear(), torch.tensor(1.0), sigma_data=sigma_data)
