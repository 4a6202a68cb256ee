"""Every table and posterior against the papers' formulas, written out here a second time in numpy."""

import json
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuse.mathematics.schedules import Schedule, TableSchedule
from diffuse.mathematics.tables import (
    betas,
    cosine,
    linear,
    quad,
    read_betas,
    rescale_to_zero_snr,
    scaled_linear,
    sigmoid,
)
from diffuse.system.errors import Refused

FORMULAS: dict[str, Callable[..., TableSchedule]] = {
    "linear": linear,
    "cosine": cosine,
    "scaled_linear": scaled_linear,
    "quad": quad,
    "sigmoid": sigmoid,
}


@pytest.fixture(params=[*FORMULAS, "linear to pure noise", "cosine to pure noise"])
def schedule(request: pytest.FixtureRequest) -> TableSchedule:
    """Every table, in place of the two that the other tests share."""
    name, *to_pure_noise = request.param.split(maxsplit=1)
    return FORMULAS[name](1000, zero_terminal_snr=bool(to_pure_noise))


@pytest.fixture(params=FORMULAS)
def to_pure_noise(request: pytest.FixtureRequest) -> TableSchedule:
    return FORMULAS[request.param](1000, zero_terminal_snr=True)


def real(*t: float) -> Tensor:
    return torch.tensor(t[0] if len(t) == 1 else t, dtype=torch.float64)


def betas_of_the_paper(name: str, T: int) -> np.ndarray:
    evenly = np.array([(t - 1) / (T - 1) for t in range(1, T + 1)])
    scale = 1000 / T  # Nichol and Dhariwal 2021, improved_diffusion/gaussian_diffusion.py
    if name == "linear":  # Ho et al. 2020, section 4
        return scale * 1e-4 + (scale * 0.02 - scale * 1e-4) * evenly
    if name == "scaled_linear":  # Rombach et al. 2022, ldm/modules/diffusionmodules/util.py
        return (np.sqrt(scale * 0.00085) * (1 - evenly) + np.sqrt(scale * 0.012) * evenly) ** 2
    if name == "quad":  # Ho et al. 2020, diffusion_tf/diffusion_utils_2.py
        return (np.sqrt(scale * 1e-4) * (1 - evenly) + np.sqrt(scale * 0.02) * evenly) ** 2
    if name == "sigmoid":  # Song, Meng and Ermon 2021, ddim/models/diffusion.py
        return scale * (0.02 - 1e-4) / (np.exp(-(12 * evenly - 6)) + 1) + scale * 1e-4

    def f(t: int) -> float:  # Nichol and Dhariwal 2021, equation 17
        return np.cos((t / T + 0.008) / 1.008 * np.pi / 2) ** 2

    return np.array([min(1 - f(t) / f(t - 1), 0.999) for t in range(1, T + 1)])


def rescaled_as_in_the_paper(betas: np.ndarray) -> np.ndarray:
    """Algorithm 1 of Lin et al. 2024, line by line."""
    alphas = 1 - betas
    alphas_bar_sqrt = np.sqrt(alphas.cumprod())
    first, last = alphas_bar_sqrt[0], alphas_bar_sqrt[-1]
    alphas_bar_sqrt = (alphas_bar_sqrt - last) * first / (first - last)
    alphas_bar = alphas_bar_sqrt**2
    alphas = np.concatenate([alphas_bar[:1], alphas_bar[1:] / alphas_bar[:-1]])
    return 1 - alphas


@pytest.mark.parametrize("T", [1000, 100, 4000])
@pytest.mark.parametrize("name", FORMULAS)
def test_beta_and_alpha_bar_are_the_papers(name, T):
    schedule, betas = FORMULAS[name](T), betas_of_the_paper(name, T)
    np.testing.assert_allclose(schedule.beta[1:], betas, rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha_bar[1:], np.cumprod(1 - betas), rtol=1e-12)
    assert schedule.beta[0] == 0
    assert schedule.alpha_bar[0] == 1


@pytest.mark.parametrize("name", ["linear", "quad", "scaled_linear", "sigmoid"])
def test_as_little_is_left_of_the_image_whatever_the_number_of_levels(name):
    """As of a thousand, or less: log (1 - beta) is below -beta, and betas are larger where there are fewer."""
    alpha_bar = [float(FORMULAS[name](T).alpha_bar[-1]) for T in (25, 100, 400, 1000, 4000)]
    assert alpha_bar == sorted(alpha_bar)
    assert alpha_bar[-1] == pytest.approx(alpha_bar[-2], rel=0.15)


@pytest.mark.parametrize(("name", "least"), [("linear", 20), ("quad", 20), ("sigmoid", 20), ("scaled_linear", 12)])
def test_so_few_levels_that_a_beta_would_reach_1_are_refused(name, least):
    FORMULAS[name](least + 1)
    with pytest.raises(Refused, match=f"^levels must be above {least} where beta_end is null, not {least}"):
        FORMULAS[name](least)
    FORMULAS[name](least, beta_end=0.5)


def test_a_given_end_is_taken_as_it_is():
    assert linear(100, beta_start=1e-4).beta[[1, -1]].tolist() == [1e-4, pytest.approx(0.2)]
    assert linear(100, beta_end=0.02).beta[[1, -1]].tolist() == [pytest.approx(1e-3), 0.02]


def test_linear_ends_at_the_papers_betas():
    """0.002 for 0.02 is a slip found in popular notes."""
    schedule = linear()
    assert schedule.T == 1000
    assert schedule.beta[1] == 1e-4
    assert schedule.beta[1000] == 0.02


@pytest.mark.parametrize("name", FORMULAS)
def test_tables_have_a_thousand_levels_unless_it_is_said_otherwise(name):
    assert FORMULAS[name]().T == 1000


def test_the_betas_of_sigmoid_are_steepest_and_symmetric_in_the_middle():
    """Of width w, the first is sigmoid(-w) of the way up and the last as far from the top."""
    beta = sigmoid(101, beta_start=0.1, beta_end=0.3, width=2.0).beta[1:]
    assert beta.diff().argmax() in (49, 50)
    torch.testing.assert_close(beta + beta.flip(0), torch.full_like(beta, 0.4), rtol=1e-12, atol=0)
    torch.testing.assert_close(beta[0], 0.1 + 0.2 / (1 + real(2.0).exp()), rtol=1e-12, atol=0)


def test_the_ends_of_a_table_are_options():
    middle = ((1e-4**0.5 + 0.02**0.5) / 2) ** 2
    for make in (scaled_linear, quad):
        beta = make(3, beta_start=1e-4, beta_end=0.02).beta[1:]
        torch.testing.assert_close(beta, real(1e-4, middle, 0.02), rtol=1e-12, atol=0)
    torch.testing.assert_close(linear(3, beta_start=0.1, beta_end=0.5).beta[1:], real(0.1, 0.3, 0.5))


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_a_narrow_sigmoid_is_one_too(width):
    beta = sigmoid(5, beta_start=0.1, beta_end=0.3, width=width).beta[1:]
    expected = 0.1 + 0.2 / (1 + torch.exp(-width * real(-1.0, -0.5, 0.0, 0.5, 1.0)))
    torch.testing.assert_close(beta, expected, rtol=1e-12, atol=0)


def test_cosine_without_its_offset_is_a_quarter_of_a_wave():
    """s = 0 in equation 17 of Nichol and Dhariwal 2021; beta_T would be 1 but for the cap."""
    alpha_bar = cosine(10, s=0.0, max_beta=0.9).alpha_bar
    np.testing.assert_allclose(alpha_bar[:10], np.cos(np.arange(10) / 10 * np.pi / 2) ** 2, rtol=1e-12)
    assert alpha_bar[10] / alpha_bar[9] == pytest.approx(0.1)


@pytest.mark.parametrize("name", FORMULAS)
def test_posterior_of_neighbours_is_the_papers(name):
    """mu-tilde and beta-tilde of Ho et al. 2020, equation 7, with the paper's alpha_t = 1 - beta_t."""
    schedule, T = FORMULAS[name](1000), 1000
    beta = np.concatenate([[0], betas_of_the_paper(name, T)])
    alpha_bar = np.cumprod(1 - beta)
    for t in [1, 2, 3, 10, 500, 999, 1000]:
        found = schedule.posterior(real(t), real(t - 1))
        of_x0 = np.sqrt(alpha_bar[t - 1]) * beta[t] / (1 - alpha_bar[t])
        of_x_t = np.sqrt(1 - beta[t]) * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
        variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta[t]
        np.testing.assert_allclose([found.of_x0, found.of_x_t, found.variance], [of_x0, of_x_t, variance], rtol=1e-12)
        np.testing.assert_allclose(schedule.transition_variance(real(t), real(t - 1)), beta[t], rtol=1e-12)


def test_posterior_is_bayes_rule_for_any_pair(schedule: Schedule):
    """q(x_s given x_t, x0) from the product of the two Gaussians q(x_s given x0) and q(x_t given x_s)."""
    for t, s in [(1000, 999), (700, 123), (50, 1), (1000, 1), (0.75, 0.25), (999.75, 999.5)]:
        alpha_t, sigma_t = (value.item() for value in schedule.alpha_sigma(real(t)))
        alpha_s, sigma_s = (value.item() for value in schedule.alpha_sigma(real(s)))
        a = alpha_t / alpha_s
        v = sigma_t**2 - a**2 * sigma_s**2
        precision = 1 / sigma_s**2 + a**2 / v
        found = schedule.posterior(real(t), real(s))
        expected = [a / v / precision, alpha_s / sigma_s**2 / precision, 1 / precision]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_posterior_at_zero_is_x0(schedule: Schedule):
    assert tuple(schedule.posterior(real(5), real(0))) == (0, 1, 0)
    assert tuple(schedule.posterior(real(1000), real(0))) == (0, 1, 0)


def test_alpha_and_sigma_are_the_square_roots(schedule: TableSchedule):
    alpha, sigma = schedule.alpha_sigma(torch.arange(1001, dtype=torch.float64))
    torch.testing.assert_close(alpha, schedule.alpha_bar.sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma, (1 - schedule.alpha_bar).sqrt(), rtol=1e-12, atol=0)


def test_sigma_near_the_data_keeps_its_digits_in_float32(schedule: Schedule):
    """sqrt(1 - alpha_bar) in float32 is wrong by 1e-3 there."""
    t = torch.arange(1, 1001)
    for found, exact in zip(schedule.alpha_sigma(t.float()), schedule.alpha_sigma(t.double()), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


def test_time_inverts_log_snr(schedule: Schedule):
    t = torch.linspace(0, 1000, 777, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=1e-12, atol=1e-10)
    beyond = real(torch.inf, 1e9, -1e9, -torch.inf)
    torch.testing.assert_close(schedule.time(beyond), real(0, 0, 1000, 1000), rtol=0, atol=1e-6)


def test_integer_times_are_the_papers_levels(schedule: TableSchedule):
    alpha, _ = schedule.alpha_sigma(torch.tensor([1, 500, 1000]))
    torch.testing.assert_close(alpha, schedule.alpha_bar[[1, 500, 1000]].sqrt(), rtol=1e-12, atol=0)


def test_log_snr_falls(schedule: Schedule):
    t = torch.linspace(0, 1000, 4001, dtype=torch.float64)
    assert (schedule.log_snr(t).diff() < 0).all()
    assert schedule.log_snr(t[0]) == torch.inf


def test_between_levels_log_alpha_bar_is_linear(schedule: Schedule):
    alpha, _ = schedule.alpha_sigma(real(10, 10.25, 11))
    torch.testing.assert_close(alpha[1].log(), 0.75 * alpha[0].log() + 0.25 * alpha[2].log(), rtol=1e-11, atol=0)


def test_networks_are_trained_at_whole_levels_of_a_table(schedule: Schedule):
    assert (schedule.T, schedule.discrete, schedule.t_min, schedule.prior_std) == (1000, True, 1, 1)


@pytest.mark.parametrize("name", FORMULAS)
def test_rescaling_to_pure_noise_is_the_papers(name):
    betas = betas_of_the_paper(name, 1000)
    expected = rescaled_as_in_the_paper(betas)
    np.testing.assert_allclose(rescale_to_zero_snr(torch.from_numpy(betas)), expected, rtol=1e-9)
    np.testing.assert_allclose(FORMULAS[name](1000, zero_terminal_snr=True).beta[1:], expected, rtol=1e-9)


@pytest.mark.parametrize("name", FORMULAS)
def test_pure_noise_comes_last_and_the_first_level_stays(name):
    as_it_was, rescaled = FORMULAS[name](1000), FORMULAS[name](1000, zero_terminal_snr=True)
    assert rescaled.alpha_bar[1] == as_it_was.alpha_bar[1]
    assert rescaled.alpha_bar[1000] == 0
    assert rescaled.log_snr(real(1000)) == -torch.inf
    assert tuple(rescaled.alpha_sigma(real(1000))) == (0, 1)
    assert as_it_was.alpha_bar[1000] > 0


def test_rescaling_twice_is_rescaling_once(to_pure_noise: TableSchedule):
    torch.testing.assert_close(rescale_to_zero_snr(to_pure_noise.beta[1:]), to_pure_noise.beta[1:])


def test_in_the_last_interval_before_pure_noise_alpha_falls_linearly(to_pure_noise: TableSchedule):
    left = real(1.0, 0.75, 0.5, 0.01, 1e-6, 0.0)
    alpha, sigma = to_pure_noise.alpha_sigma(1000 - left)
    torch.testing.assert_close(alpha, left * to_pure_noise.alpha_bar[999].sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(sigma, (1 - alpha**2).sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(to_pure_noise.time(to_pure_noise.log_snr(1000 - left)), 1000 - left, rtol=1e-12, atol=0)


def test_pure_noise_says_nothing_of_the_level_before_it(to_pure_noise: TableSchedule):
    """The posterior from x_T is q(x_s given x0): x_T counts for nothing, and nothing is infinite."""
    for s in [1.0, 500.0, 999.0, 999.5]:
        alpha, sigma = to_pure_noise.alpha_sigma(real(s))
        found = to_pure_noise.posterior(real(1000), real(s))
        torch.testing.assert_close(torch.stack(found), torch.stack([0 * alpha, alpha, sigma**2]), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "text"),
    [("betas.txt", "0.1\n0.25\n5e-2\n"), ("betas.csv", "0.1, 0.25,0.05\n"), ("betas.json", "[0.1, 0.25, 0.05]"),
     ("betas", "0.1 0.25\n\n\t0.05,\n")],
)  # fmt: skip
def test_betas_are_read_from_text(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_betas(tmp_path / name) == [0.1, 0.25, 0.05]
    torch.testing.assert_close(betas(str(tmp_path / name)).beta, real(0, 0.1, 0.25, 0.05), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_betas_are_read_from_numpy(tmp_path, shape):
    np.save(tmp_path / "betas.npy", np.array([0.1, 0.25, 0.05]).reshape(shape))
    assert read_betas(tmp_path / "betas.npy") == [0.1, 0.25, 0.05]


def test_betas_go_through_a_file_and_come_back_the_same(tmp_path):
    """As JSON writes them, to the last bit; a tilde is the home folder."""
    (tmp_path / "betas.json").write_text(json.dumps(cosine().beta[1:].tolist()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        torch.testing.assert_close(betas("~/betas.json").log_alpha_bar, cosine().log_alpha_bar, rtol=0, atol=0)


def test_noted_values_count_and_the_file_may_be_gone():
    torch.testing.assert_close(betas("gone.npy", values=[0.1, 0.5]).alpha_bar, real(1, 0.9, 0.45))


def test_betas_from_a_file_can_be_rescaled_too(tmp_path):
    (tmp_path / "betas.txt").write_text("0.1 0.2 0.3")
    expected = rescaled_as_in_the_paper(np.array([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(betas(str(tmp_path / "betas.txt"), zero_terminal_snr=True).beta[1:], expected)


@pytest.mark.parametrize(
    ("name", "content"),
    [("betas.txt", b"0.1 two"), ("betas.txt", b"0.1; 0.2"), ("betas.txt", b"\xff\xfe"), ("betas.json", b"{"),
     ("betas.json", b'{"beta": 0.1}'), ("betas.json", b"0.1"), ("betas.json", b"[[0.1]]"), ("betas.json", b"[null]"),
     ("betas.npy", b""), ("betas.npy", b"0.1 0.2"), ("betas.npy", b"PK\3\4 an npz by another name"), ("gone", None)],
)  # fmt: skip
def test_unreadable_betas_are_said_with_their_file(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^path is .*{name}, which is not a list of numbers: "):
        betas(str(tmp_path / name))


def test_betas_in_a_pickle_are_not_run(tmp_path):
    np.save(tmp_path / "betas.npy", np.array([0.1, None]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"^path is .*betas.npy, which .* allow_pickle"):
        betas(str(tmp_path / "betas.npy"))


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("text", ["", "0.1 1.5", "0.1 -0.1", "0.1 0.2 -0.05", "0 0.1", "1 0.1", "0.1 nan"])
def test_impossible_betas_in_a_file_are_refused(tmp_path, text, zero_terminal_snr):
    """Before rescaling, which would make a table even of some of these."""
    (tmp_path / "betas.txt").write_text(text)
    with pytest.raises(ValueError, match=r"^path is .*betas.txt: betas must be .* between 0 and 1"):
        betas(str(tmp_path / "betas.txt"), zero_terminal_snr=zero_terminal_snr)
    with pytest.raises(ValueError, match=r"^values is a list of \d numbers: betas must be"):
        betas(values=read_betas(tmp_path / "betas.txt"), zero_terminal_snr=zero_terminal_snr)


def test_betas_need_a_file():
    with pytest.raises(ValueError, match="^path must be a file"):
        betas()


@pytest.mark.parametrize(
    "betas", [[], [0.0, 0.1], [1.0, 0.1], [1.0, 1.0], [0.1, 1.0, 1.0], [0.0, 1.0], [0.1, 1.1], [float("nan")], [[0.1]]]
)
def test_impossible_betas_are_refused(betas):
    with pytest.raises(ValueError, match="^betas"):
        TableSchedule(torch.tensor(betas))


def test_tables_are_float64_whatever_the_betas_are():
    beta = torch.tensor([0.1, 0.2])
    torch.testing.assert_close(TableSchedule(beta).alpha_bar[2], (1 - beta.double()).prod(), rtol=1e-15, atol=0)


def test_the_last_beta_may_be_one():
    assert TableSchedule(torch.ones(1)).alpha_bar.tolist() == [1, 0]
    assert TableSchedule(real(0.1, 1.0)).alpha_bar.tolist() == [1, pytest.approx(0.9), 0]


@pytest.mark.parametrize("name", FORMULAS)
def test_rescaling_needs_two_levels(name):
    make = partial(FORMULAS[name], **({} if name == "cosine" else {"beta_start": 0.1, "beta_end": 0.2}))
    assert make(2, zero_terminal_snr=True).beta[2] == 1
    with pytest.raises(ValueError, match="^zero_terminal_snr needs at least 2 levels"):
        make(1, zero_terminal_snr=True)


@pytest.mark.parametrize(
    ("make", "options"),
    [*((make, {"levels": levels}) for make in FORMULAS.values() for levels in (0, -1)),
     *((make, {end: beta}) for make in (linear, scaled_linear, quad, sigmoid) for end in ("beta_start", "beta_end")
       for beta in (0.0, 1.0, float("nan"))),
     *((sigmoid, {"width": width}) for width in (0.0, -1.0, float("inf"), float("nan"))),
     *((cosine, {"s": s}) for s in (-1.0, float("inf"))), *((cosine, {"max_beta": beta}) for beta in (0.0, 1.0))],
)  # fmt: skip
def test_options_out_of_range_are_named(make, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name} must "):
        make(**options)
    with pytest.raises(ValueError, match=f"^{name} must "):
        partial(make, zero_terminal_snr=True)(**options)
