"""The likelihood scores of `diffuse eval`: bound and exact likelihood over a test split, streamed through memory."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.mathematics import ode
from diffuse.mathematics.likelihood import bits_per_dim, prior_term, reverse_terms
from diffuse.mathematics.spacings import time_grid
from diffuse.mathematics.variances import FIXED, fixed_small, reverse_steps
from diffuse.options.schema import Ode
from diffuse.runs.analytic import analytic
from diffuse.runs.trained import TrainedNetwork
from diffuse.system.errors import Refused, UsageError, UserError
from diffuse.system.progress import Progress
from diffuse.system.randomness import ImageNoise, generator
from diffuse.system.signals import raise_pending

BIN = 2 / 255  # the distance between two values of an 8-bit pixel in [-1, 1]
EXPECTED_CALLS = 400  # of the network at tolerance 1e-5, where the ODE's solver chooses its steps: 209 to 395 on digits
COST_OF_A_DERIVATIVE = 2  # in network calls


class Moments:
    """Mean and standard error of rows that come one after another: Welford 1962.

    What is kept does not grow with the number of rows, and the result does not depend on how they are batched.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, rows: np.ndarray) -> None:
        """Rows [b, ...]."""
        for row in rows:
            self.count += 1
            difference = row - self.mean
            self.mean = self.mean + difference / self.count
            self.squares = self.squares + difference * (row - self.mean)

    @property
    def standard_error(self) -> Any:
        return np.sqrt(self.squares / (self.count - 1) / self.count)


class ScoredImages:
    """The test images that are scored: in an order that the seed decides, each with its own randomness."""

    def __init__(self, network: TrainedNetwork, n: int, seed: int):
        self.network, self.seed, self.test = network, seed, network.data.test
        self.order = generator(seed, "test order").permutation(len(self.test.images))[:n]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None, np.ndarray]]:
        """(images in [-1, 1], what they are conditioned on, their rows in the split) of one batch after the other."""
        for start in range(0, len(self.order), self.network.batch_size):
            rows = self.order[start : start + self.network.batch_size]
            yield *self.batch(rows), rows

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """These rows of the split, as the network sees them, and what they are conditioned on."""
        x0 = self.network.kind.to_network(torch.from_numpy(self.test.images[rows]))
        device = self.network.device.torch
        return x0.to(device), self.network.condition.of_split(self.test, rows, device)

    def noise(self, purpose: str, rows: np.ndarray) -> ImageNoise:
        """Noise for these images, a stream for each."""
        return ImageNoise(self.seed, purpose, rows.tolist())


class BoundScore:
    """The variational bound over a grid of `levels` levels."""

    def __init__(
        self,
        network: TrainedNetwork,
        levels: int | None = None,
        variance: str | None = None,
        clip: bool | None = None,
    ):
        self.network, formulas = network, network.formulas
        try:
            self.times = time_grid(formulas.schedule, levels)
        except Refused as error:
            raise UsageError(f"levels {error.reason}") from error
        self.variance = partial(formulas.reverse_variance, variance, "variance")
        self.variance(lambda: fixed_small)  # asks whether the run can have it; an estimate comes when it is needed
        self.clip = network.kind.bounded if clip is None else clip
        name = formulas.variance if variance is None else variance
        self.facts = {
            "levels": self.evaluations,
            "draws_per_level": 1,
            "variance": name,
            **({"variance_of_last_step": "posterior variance of the step before it"} if name in FIXED else {}),
            "clip": self.clip,
            "decoder": formulas.decoder.__name__,
        }

    @property
    def evaluations(self) -> int:
        return len(self.times) - 1

    def score(self, images: ScoredImages) -> tuple[Moments, Moments]:
        """In bits/dim, the whole bound and its terms [steps + 1]: L_T, then the L_{t-1} from the noisiest, then L_0."""
        formulas, dims = self.network.formulas, self.network.kind.dimensions
        denoiser, steps = self.network.denoiser(self.clip), reverse_steps(formulas.schedule, self.times)
        variance = self.variance(partial(analytic, self.network, self.times.tolist()))
        totals, terms = Moments(), Moments()
        with Progress("bound", len(images.order) * self.evaluations, "evaluation") as progress:
            for x0, y, rows in images:
                found, noise = [prior_term(formulas.schedule, x0)], images.noise("eval", rows)
                for term in reverse_terms(denoiser, x0, steps, y, variance, formulas.decoder, noise):
                    found.append(term)
                    raise_pending()
                    progress.advance(len(rows))
                bits = bits_per_dim(torch.stack(found, dim=1).cpu().double(), dims).numpy()
                totals.add(bits.sum(1))
                terms.add(bits)
        if not np.isfinite(totals.mean):
            raise UserError("the bound is NaN or infinite: the network's answers are, or a variance is 0")
        return totals, terms


class OdeScore:
    """The exact log-likelihood by the probability-flow ODE, of 8-bit images with uniform dequantisation.

    log P(x) >= E log p(x + u) + D log(2 / 255) with u uniform over the bin of x, 2 / 255 wide: Theis et al. 2016.
    """

    def __init__(self, network: TrainedNetwork, options: Ode):
        self.network, self.options, schedule = network, options, network.schedule
        self.t_min = schedule.t_min if options.t_min is None else options.t_min
        if not schedule.t_min <= self.t_min < schedule.T:
            raise UsageError(
                f"ode.t_min must be at least {schedule.t_min:g}, the smallest time that the network was trained at, "
                f"and below {schedule.T}, not {self.t_min:g}"
            )
        self.solver = {"rk45": ode.rk45(options.tolerance), "rk4": ode.rk4, "heun": ode.heun}[options.solver]
        self.estimated = options.divergence == "hutchinson"
        effort = {"tolerance": options.tolerance} if options.solver == "rk45" else {"steps": options.steps}
        self.facts = {
            "solver": options.solver,
            **effort,
            "t_min": self.t_min,
            "divergence": options.divergence,
            **({"probes": options.probes} if self.estimated else {}),
            "dequantisation": "uniform, one draw an image" if network.kind.bounded else "none",
            **({"border": "Gaussian of the width at t_min, its density taken off"} if network.kind.pad else {}),
            "clip": False,
        }

    @property
    def evaluations(self) -> int:
        """About how many network calls the score of an image costs, its derivatives included."""
        adaptive = EXPECTED_CALLS * (1e-5 / self.options.tolerance) ** 0.2  # the solver's order is 5
        of_a_step = {"rk4": 4, "heun": 2}
        calls = (
            of_a_step[self.options.solver] * self.options.steps if self.options.solver in of_a_step else int(adaptive)
        )
        if self.estimated:
            return int(calls * (1 + COST_OF_A_DERIVATIVE) * self.options.probes)
        channels, side, _ = self.network.kind.shape
        return calls * (1 + COST_OF_A_DERIVATIVE * channels * side**2)

    def score(self, images: ScoredImages) -> tuple[Moments, float]:
        """In bits/dim, and the mean number of evaluations of the network and its derivative for each image.

        Images are solved `rows` at a time, so that the steps of an adaptive solver do not depend on batch_size.
        """
        totals, evaluations = Moments(), 0
        with Progress("ode", len(images.order), "image") as progress:
            for x0, y, rows in images:
                parts = [slice(start, start + self.network.rows) for start in range(0, len(rows), self.network.rows)]
                solve = partial(self.nats_of_part, x0, y, images, rows)
                try:
                    found = self.network.device.spread(solve, parts)
                except ArithmeticError as error:
                    raise UserError(f"{error}; try a larger ode.tolerance, or ode.solver=rk4") from error
                for (nats, calls), part in zip(found, parts, strict=True):
                    totals.add(bits_per_dim(nats, self.network.kind.dimensions).numpy())
                    evaluations += calls * len(rows[part])
                raise_pending()
                progress.advance(len(rows))
        if not np.isfinite(totals.mean):
            raise UserError("the ODE's likelihood is NaN or infinite: the network's answers are")
        return totals, evaluations / totals.count

    def nats_of_part(
        self, x0: Tensor, y: Tensor | None, images: ScoredImages, rows: np.ndarray, part: slice
    ) -> tuple[Tensor, int]:
        return self.nats(x0[part], None if y is None else y[part], images, rows[part])

    def nats(self, x0: Tensor, y: Tensor | None, images: ScoredImages, rows: np.ndarray) -> tuple[Tensor, int]:
        """-log P of each image, [b] in float64, the mean over probes, and the number of evaluations."""
        offset: Tensor | float = 0.0
        if self.network.kind.bounded:
            x0, offset = self.spread(x0, images.noise("dequantise", rows))
        probes = images.noise("hutchinson", rows)
        denoiser, found, calls = self.network.denoiser(clip=False), [], 0
        for _ in range(self.options.probes if self.estimated else 1):
            signs = torch.where(probes(x0) < 0, -1.0, 1.0)
            solved = ode.log_likelihood(
                denoiser,
                x0,
                y,
                solver=self.solver,
                divergence=ode.hutchinson(signs) if self.estimated else ode.exact,
                t_min=self.t_min,
                steps=self.options.steps,
            )
            found.append(-solved.log_density + offset)
            calls += solved.evaluations
        return torch.stack(found).mean(0), calls

    def spread(self, x0: Tensor, noise: ImageNoise) -> tuple[Tensor, Tensor]:
        """Images with noise that makes a density of them, and the log density of that noise, [b].

        log P(x) >= E log p(x + u) - log q(u) for any q: uniform over the bin of a pixel, and on the border that the
        network sees around an image, which is not data, Gaussian with the standard deviation that the flow begins with.
        """
        normal, kind = noise(x0), self.network.kind
        alpha, sigma = self.network.schedule.alpha_sigma(torch.tensor(self.t_min, dtype=torch.float64))
        width = float(sigma / alpha)
        inside = torch.zeros_like(x0, dtype=torch.bool)
        kind.from_network(inside).fill_(True)
        u = torch.where(inside, BIN * (torch.special.ndtr(normal) - 0.5), width * normal)
        of_border = -0.5 * (normal.square() + math.log(2 * math.pi * width**2))
        log_q = torch.where(inside, -math.log(BIN), of_border)
        return x0 + u, log_q.flatten(1).sum(1).cpu().double()
