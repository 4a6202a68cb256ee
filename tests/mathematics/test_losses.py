"""What is regressed, against the papers' formulas written out a second time for one image after the other."""

import math

import pytest
import torch
from scipy.stats import norm
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from diffuse.mathematics import likelihood, losses, predictions
from diffuse.mathematics.continuous import VE
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.likelihood import bits_per_dim, gaussian_density
from diffuse.mathematics.spacings import time_grid
from diffuse.mathematics.tables import linear
from diffuse.mathematics.variances import fixed_large, fixed_small, learned
from diffuse.networks.dropout import Dropout, use_keys
from tests.support.predictions import Constant, close

LEVELS, DIMS = 12, 3 * 4 * 4
FLOAT64 = {"dtype": torch.float64}


class Linear(torch.nn.Module):
    """net(x, time) = a x + b time, and in the other half of the channels, where there is one, c x - d time."""

    def __init__(self, learned_variance: bool = False):
        super().__init__()
        self.learned_variance = learned_variance

    def forward(self, x, time, y=None):
        self.labels = y
        time = time.reshape(-1, 1, 1, 1)
        prediction = 0.5 * x + 0.01 * time
        return torch.cat([prediction, 0.3 * x - 0.02 * time], 1) if self.learned_variance else prediction


@pytest.fixture
def schedule():
    """Few levels, from little noise to much."""
    return linear(LEVELS, 0.001, 0.5)


@pytest.fixture
def x0():
    """8-bit pixels, among them the two values at the ends, whose bins reach to infinity."""
    values = torch.randint(0, 256, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    values[:, 0, 0, 0], values[:, 0, 0, 1] = 0, 255
    return values.double() / 127.5 - 1


@pytest.fixture
def noise():
    return torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def reverse_variances(betas: list[float], level: int, between: Tensor) -> dict[object, Tensor]:
    """Those of Ho et al. 2020, section 3.2, and Nichol and Dhariwal 2021, equation 15; at 1 beta-tilde is that of 2."""

    def tilde(level: int) -> float:
        alpha_bar, before = math.prod(1 - b for b in betas[:level]), math.prod(1 - b for b in betas[: level - 1])
        return (1 - before) / (1 - alpha_bar) * betas[level - 1]

    small, beta = tilde(max(level, 2)), betas[level - 1]
    return {
        fixed_small: torch.tensor(small, **FLOAT64),
        fixed_large: torch.tensor(beta if level > 1 else small, **FLOAT64),
        learned: beta**between * small ** (1 - between),
    }


def bound_in_bits(schedule, x0: Tensor, level: int, noise: Tensor, variance, density: bool) -> float:
    """L_{t-1}, or L_0 for t = 1, of one image with the network `Linear`: Ho et al. 2020, equations 5 to 8 and 13."""
    betas = schedule.beta.tolist()[1:]
    alpha_bar, before = math.prod(1 - b for b in betas[:level]), math.prod(1 - b for b in betas[: level - 1])
    beta = betas[level - 1]
    x_t = math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * noise
    eps, between = 0.5 * x_t + 0.01 * (level - 1), (0.3 * x_t - 0.02 * (level - 1) + 1) / 2
    mean = (x_t - beta / math.sqrt(1 - alpha_bar) * eps) / math.sqrt(1 - beta)  # equation 11
    reverse = Normal(mean, reverse_variances(betas, level, between)[variance].sqrt())
    if level > 1:
        of_x0, of_x_t = math.sqrt(before) * beta / (1 - alpha_bar), math.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar)
        true = Normal(of_x0 * x0 + of_x_t * x_t, math.sqrt((1 - before) / (1 - alpha_bar) * beta))
        nats = kl_divergence(true, reverse).sum().item()
    elif density:
        nats = -norm.logpdf(x0, mean, reverse.stddev).sum()
    else:
        upper = torch.where(x0 == 1, math.inf, x0 + 1 / 255)
        lower = torch.where(x0 == -1, -math.inf, x0 - 1 / 255)
        mass = norm.cdf(upper, mean, reverse.stddev) - norm.cdf(lower, mean, reverse.stddev)
        nats = -torch.as_tensor(mass).log().sum().item()
    return nats / math.log(2) / DIMS


def test_l_simple_is_the_papers():
    """mean || eps - net(sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps, t) ||^2: Ho et al. 2020, equation 14."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64, generator=generator)
    t = torch.tensor([1, 2, 400, 999, 1000])
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t - 1].reshape(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    expected = (noise - 0.5 * x_t - 0.01 * (t - 1).double().reshape(-1, 1, 1, 1)).pow(2).mean((1, 2, 3))
    close(losses.simple(Denoiser(Linear(), linear()), x0, t, noise), expected)
    halves = Denoiser(Linear(learned_variance=True), linear(), learned_variance=True)
    close(losses.simple(halves, x0, t, noise), expected)


@pytest.mark.parametrize("density", [False, True], ids=["8-bit", "density"])
@pytest.mark.parametrize("variance", [fixed_small, fixed_large, learned])
def test_l_vlb_is_t_times_the_papers_term_in_bits_per_dimension(schedule, x0, noise, variance, density):
    """Image by image, in batches with and without the last step."""
    learns = variance is learned
    denoiser = Denoiser(Linear(learns), schedule, learned_variance=learns)
    options = {"variance": variance} | ({"decoder": gaussian_density} if density else {})
    for levels in ([1, 2, 7, 1, LEVELS], [3, 2, 7, 4, LEVELS], [1, 1, 1, 1, 1]):
        expected = [
            LEVELS * bound_in_bits(schedule, x0[i], level, noise[i], variance, density)
            for i, level in enumerate(levels)
        ]
        close(losses.vlb(denoiser, x0, torch.tensor(levels), noise, **options), torch.tensor(expected, **FLOAT64))


@pytest.mark.parametrize("loss", [losses.simple, losses.vlb, losses.hybrid])
def test_an_image_alone_costs_what_it_costs_among_others(schedule, x0, noise, loss):
    denoiser = Denoiser(Linear(learned_variance=True), schedule, learned_variance=True)
    t = torch.tensor([1, 2, 7, 1, LEVELS])
    alone = [loss(denoiser, x0[[i]], t[[i]], noise[[i]]) for i in range(5)]
    close(torch.cat(alone), loss(denoiser, x0, t, noise))


@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
def test_the_only_step_there_is_adds_noise_of_variance_beta(x0, noise, variance):
    """There is no step before it whose beta-tilde it could take."""
    x_t = math.sqrt(0.7) * x0 + math.sqrt(0.3) * noise
    guess = (x_t - math.sqrt(0.3) * 0.5 * x_t) / math.sqrt(0.7)
    expected = -norm.logpdf(x0, guess, math.sqrt(0.3)).mean((1, 2, 3)) / math.log(2)
    denoiser = Denoiser(Linear(), linear(1, 0.3, 0.3))
    found = losses.vlb(denoiser, x0, torch.ones(5), noise, variance=variance, decoder=gaussian_density)
    close(found, torch.tensor(expected))


def test_the_mean_of_l_vlb_over_all_levels_is_the_bound_that_is_evaluated(schedule, x0, noise):
    """But for the prior's term, which nothing can be learned from: Nichol and Dhariwal 2021, section 3.1."""
    denoiser = Denoiser(Linear(learned_variance=True), schedule, learned_variance=True)
    each = [losses.vlb(denoiser, x0, torch.full((5,), level), noise) for level in range(1, LEVELS + 1)]
    bound = likelihood.variational_bound(
        denoiser, x0, time_grid(schedule, None), noise=lambda _: noise, variance=learned
    )
    expected = bits_per_dim(bound.total - bound.prior, DIMS)
    torch.testing.assert_close(torch.stack(each).mean(0), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("options", [{}, {"vlb_weight": 0.7}, {"decoder": gaussian_density}])
def test_hybrid_is_simple_plus_a_thousandth_of_vlb_for_the_variance_alone(schedule, x0, noise, options):
    """Nichol and Dhariwal 2021, equation 16: the gradients of each half of the network's output, exactly."""
    t = torch.tensor([1, 2, 7, 1, LEVELS])
    output = torch.cat([noise, x0], 1).mul(0.8).requires_grad_()
    denoiser = Denoiser(Constant(output), schedule, learned_variance=True)
    decoder = {key: value for key, value in options.items() if key == "decoder"}
    found = {
        "hybrid": losses.hybrid(denoiser, x0, t, noise, **options),
        "simple": losses.simple(denoiser, x0, t, noise),
        "vlb": losses.vlb(denoiser, x0, t, noise, **decoder),
    }
    weight = options.get("vlb_weight", 0.001)
    torch.testing.assert_close(found["hybrid"], found["simple"] + weight * found["vlb"], rtol=1e-14, atol=0)
    gradients = {name: torch.autograd.grad(loss.sum(), output)[0].chunk(2, 1) for name, loss in found.items()}
    assert torch.equal(gradients["hybrid"][0], gradients["simple"][0])
    torch.testing.assert_close(gradients["hybrid"][1], weight * gradients["vlb"][1], rtol=1e-13, atol=0)
    assert all((gradient != 0).any((1, 2, 3)).all() for gradient in gradients["vlb"])  # which alone trains both


def test_hybrid_weighs_the_simple_part(schedule, x0, noise):
    def constant(snr, c_out):
        return torch.full_like(snr, 3.0)

    t = torch.tensor([1, 2, 7, 1, LEVELS])
    denoiser = Denoiser(Linear(learned_variance=True), schedule, learned_variance=True)
    simple = losses.simple(denoiser, x0, t, noise, weight=constant)
    expected = simple + 0.001 * losses.vlb(denoiser, x0, t, noise)
    close(losses.hybrid(denoiser, x0, t, noise, weight=constant), expected)
    close(simple, 3 * (noise - denoiser(denoiser.schedule.diffuse(x0, t, noise), t).eps).square().mean((1, 2, 3)))


@pytest.mark.parametrize("loss", [losses.vlb, losses.hybrid])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_gradients_are_numbers_at_every_level(x0, noise, loss, dtype, size, zero_snr):
    """Where bins reach to infinity and probabilities are beyond all floats; with a network that says nothing, as one
    does before training, and with a wild one; down to pure noise."""
    schedule = linear(zero_terminal_snr=zero_snr)
    x0, noise = x0.to(dtype), noise.to(dtype)
    for t in (torch.tensor([1, 1, 2, 999, 1000]), torch.tensor([1] * 5), torch.tensor(1), torch.tensor(1000)):
        output = (size * torch.cat([noise.roll(1, 0), noise.roll(2, 0)], 1)).requires_grad_()
        found = loss(Denoiser(Constant(output), schedule, predictions.v, learned_variance=True), x0, t, noise)
        assert found.dtype == dtype
        assert found.isfinite().all()
        found.sum().backward()
        assert output.grad.isfinite().all()


@pytest.mark.parametrize("loss", [losses.simple, losses.vlb, losses.hybrid])
def test_one_time_for_all_is_that_time_for_each_and_labels_reach_the_network(schedule, x0, noise, loss):
    net = Linear(learned_variance=True)
    denoiser = Denoiser(net, schedule, learned_variance=True)
    labels = torch.arange(5)
    for level in (1, 2, LEVELS):
        together = loss(denoiser, x0, torch.tensor(level), noise, labels)
        assert net.labels is labels
        close(together, loss(denoiser, x0, torch.full((5,), level), noise, labels))


@pytest.mark.parametrize("vlb_weight", [0.0, -0.001, math.nan])
def test_vlb_weight_must_be_positive(schedule, x0, noise, vlb_weight):
    denoiser = Denoiser(Linear(learned_variance=True), schedule, learned_variance=True)
    with pytest.raises(ValueError, match="^vlb_weight must be positive"):
        losses.hybrid(denoiser, x0, torch.tensor(1), noise, vlb_weight=vlb_weight)


class Waves(torch.nn.Module):
    """A network in general position, which counts its calls and can be differentiated."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.7, **FLOAT64))

    def forward(self, x, time, y=None):
        return torch.tanh(self.a * x) + 0.1 * self.a**2 * time.reshape(-1, 1, 1, 1)


CLOSENESS, STAGES = 4.0, 3


@pytest.mark.parametrize(("progress", "stage"), [(0.0, 1), (0.3, 1), (0.34, 2), (0.7, 3), (1.0, 3)])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_consistency_is_the_distance_of_two_predictions(progress: float, stage: int, smoothing: float):
    """EDM's denoiser written out a second time, at five noise levels; the first two end below the smallest one."""
    path, net = VE(sigma_min=0.002, sigma_max=80.0), Waves()
    x0, noise = (torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(seed), **FLOAT64) for seed in (0, 1))
    rho = torch.tensor([0.00201, 0.0023, 0.3, 2.0, 60.0], **FLOAT64)
    options = {"progress": torch.tensor(progress), "closeness": CLOSENESS, "stages": STAGES, "smoothing": smoothing}
    denoiser = Denoiser(net, path, predictions.edm)
    found = losses.consistency(denoiser, x0, path.time(-2 * rho.log()), noise, **options)

    def predicted(image: Tensor, z: Tensor, rho: float, a: Tensor) -> Tensor:
        x, variance = image + rho * z, rho**2 + 0.25
        output = torch.tanh(a * x / variance**0.5) + 0.1 * a**2 * math.log(rho) / 4
        return 0.25 / variance * x + 0.5 * rho / variance**0.5 * output

    expected = []
    for image, z, upper in zip(x0, noise, rho.tolist(), strict=True):
        lower = upper * (1 - (1 + 8 / (1 + math.exp(upper))) / CLOSENESS**stage)
        target = predicted(image, z, lower, net.a).detach() if lower > 0.002 else image
        distance = (predicted(image, z, upper, net.a) - target).square().sum()
        smooth = (distance + smoothing**2).sqrt() - smoothing
        expected.append(smooth / (upper - (lower if lower > 0.002 else 0)))
    expected = torch.stack(expected)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(each.sum(), net.a)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_both_predictions_of_consistency_have_one_dropout_mask():
    """Of a network that is one dropout, the difference is that of its inputs where it keeps them."""
    path, dropout = VE(sigma_min=0.002, sigma_max=80.0), Dropout(0.5)
    seen = []

    def net(x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        seen.append(dropout(torch.ones_like(x)))
        return seen[-1]

    use_keys([dropout], torch.arange(6, dtype=torch.int32).reshape(3, 2))
    x0 = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    losses.consistency(
        Denoiser(net, path, predictions.edm), x0, torch.full((3,), 500.0), x0.flip(0), progress=torch.zeros(())
    )
    assert len(seen) == 2
    assert torch.equal(*seen)
    assert 0.3 < (seen[0] == 0).float().mean() < 0.7
