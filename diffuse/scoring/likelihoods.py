"""The likelihood scores of `diffuse eval`: the variational bound and the exact likelihood of test images.

Images are read in batches, and only running moments are kept: memory does not grow with the number of images.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.mathematics import ode
from diffuse.mathematics.likelihood import bits_per_dim, prior_term, reverse_terms
from diffuse.mathematics.spacings import time_grid
from diffuse.mathematics.variances import FIXED, Variance, fixed_small, reverse_steps
from diffuse.options.schema import EvalConfig
from diffuse.runs.analytic import analytic
from diffuse.runs.pictures import plot_terms
from diffuse.runs.trained import TrainedNetwork
from diffuse.scoring.report import Report, Values, write_csv
from diffuse.system.errors import Refused, UsageError, UserError
from diffuse.system.progress import Progress
from diffuse.system.randomness import ImageNoise, generator
from diffuse.system.signals import raise_pending

BIN = 2 / 255  # the distance between neighbouring values of an 8-bit pixel in [-1, 1]
EXPECTED_CALLS = 400  # of the network by rk45 at tolerance 1e-5: 209 to 395 were measured on digits
COST_OF_A_DERIVATIVE = 2  # in network calls


class Moments:
    """Mean and standard error of rows that come one after another: Welford 1962.

    Memory does not grow with the number of rows, and the result does not depend on how they are batched.
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

    @property
    def facts(self) -> dict[str, float]:
        """The values of a score for eval.json."""
        return {"total": float(self.mean), "standard_error": float(self.standard_error)}


class ScoredImages:
    """The first n test images in a random order, which depends on the seed; each has its own streams of noise."""

    def __init__(self, network: TrainedNetwork, n: int, seed: int):
        self.network, self.seed, self.test = network, seed, network.data.test
        self.order = generator(seed, "test order").permutation(len(self.test.images))[:n]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None, np.ndarray]]:
        """Batches of images in [-1, 1], their conditions, and their row numbers in the split."""
        for rows in self.parts(self.network.batch_size):
            yield *self.batch(rows), rows

    def parts(self, size: int) -> list[np.ndarray]:
        """The row numbers, `size` at a time."""
        return [self.order[start : start + size] for start in range(0, len(self.order), size)]

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """These rows of the split as the network's input, and their conditions."""
        x0 = self.network.kind.to_network(torch.from_numpy(self.test.images[rows]))
        device = self.network.device.torch
        return x0.to(device), self.network.condition.of_split(self.test, rows, device)

    def noise(self, purpose: str, rows: np.ndarray) -> ImageNoise:
        """Noise for these images, a stream for each."""
        return ImageNoise(self.seed, purpose, rows.tolist())


class BoundScore:
    """The variational bound over a grid of `levels` noise levels."""

    def __init__(self, network: TrainedNetwork, config: EvalConfig):
        self.network, formulas = network, network.formulas
        try:
            self.times = time_grid(formulas.schedule, config.levels)
        except Refused as error:
            raise UsageError(f"levels {error.reason}") from error
        self.evaluations = len(self.times) - 1  # network calls for an image
        self.variance = partial(formulas.reverse_variance, config.variance, "variance")
        self.variance(lambda: fixed_small)  # only a check: the analytic variance is estimated when it is needed
        self.clip = network.kind.bounded if config.clip is None else config.clip
        name = config.variance or formulas.variance
        self.facts: dict[str, Any] = {"levels": self.evaluations, "draws_per_level": 1, "variance": name}
        if name in FIXED:
            self.facts["variance_of_last_step"] = "posterior variance of the step before it"
        self.facts |= {"clip": self.clip, "decoder": formulas.decoder.__name__}

    def score(self, images: ScoredImages, report: Report) -> Values:
        """The bound and its three parts in bits/dim; its terms go into eval.json, a table and a plot."""
        totals, terms = self.moments(images)
        times = self.times.tolist()
        table = {
            "term": ["L_T", *["L_t_minus_1"] * (len(times) - 2), "L_0"],
            "t": [times[0], *times[:-1]],
            "s": [None, *times[1:]],
            "bits_per_dim": terms.mean.tolist(),
            "standard_error": terms.standard_error.tolist(),
        }
        report.note("terms", table)
        write_csv(report.folder / "terms.csv", table)
        title = f"{self.network.kind.name}: {totals.mean:.3f} bits/dim in all"
        plot_terms(report.folder / "terms.png", table["t"][1:], table["bits_per_dim"][1:], title)
        parts = {"L_T": terms.mean[0], "L_t_minus_1": terms.mean[1:-1].sum(), "L_0": terms.mean[-1]}
        return {"bound": {**totals.facts, **{name: float(value) for name, value in parts.items()}}}

    def moments(self, images: ScoredImages) -> tuple[Moments, Moments]:
        """In bits/dim, the whole bound and its terms [steps + 1]: L_T, the L_{t-1} from the noisiest one on, L_0."""
        totals, terms = Moments(), Moments()
        processes, parts = self.network.device.processes, images.parts(self.network.batch_size)
        self.reverse_variance()  # estimated once, before the other processes need it
        with Progress("bound", len(images.order) * self.evaluations, "evaluation") as progress:
            own = partial(self.of_rows, images, seen=progress.advance if processes.count == 1 else None)
            for rows, bits in processes.map("bound", parts, own):
                totals.add(bits.sum(1))
                terms.add(bits)
                if processes.count > 1:
                    progress.advance(len(rows) * self.evaluations)
        if not np.isfinite(totals.mean):
            raise UserError("the bound is NaN or infinite: so is the network's output, or a variance is 0")
        return totals, terms

    def reverse_variance(self) -> Variance:
        """The variance of the reverse steps."""
        return self.variance(partial(analytic, self.network, self.times.tolist()))

    def of_rows(
        self, images: ScoredImages, rows: np.ndarray, seen: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """The terms of the bound of these images in bits/dim, float64 [b, steps + 1]; seen: called for each."""
        formulas, dims = self.network.formulas, self.network.kind.dimensions
        denoiser, steps = self.network.denoiser(self.clip), reverse_steps(formulas.schedule, self.times)
        (x0, y), noise = images.batch(rows), images.noise("eval", rows)
        found = [prior_term(formulas.schedule, x0)]
        for term in reverse_terms(denoiser, x0, steps, y, self.reverse_variance(), formulas.decoder, noise):
            found.append(term)
            raise_pending()
            if seen:
                seen(len(rows))
        return bits_per_dim(torch.stack(found, dim=1).cpu().double(), dims).numpy()

    def summary(self, score: Mapping[str, Any]) -> str:
        """What the value depends on most, in a line."""
        parts = f"L_T {score['L_T']:.4f} + sum of L_{{t-1}} {score['L_t_minus_1']:.4f} + L_0 {score['L_0']:.4f}"
        return f"{self.evaluations} levels, {self.facts['variance']}: {parts}"


class OdeScore:
    """The exact log-likelihood by the probability-flow ODE, of 8-bit images with uniform dequantisation.

    Of images that are not 8-bit it is their density, in the units of the data set.

    log P(x) >= E log p(x + u) + D log(2 / 255) with u uniform over the bin of x, 2 / 255 wide: Theis et al. 2016.
    """

    def __init__(self, network: TrainedNetwork, config: EvalConfig):
        self.network, self.options, schedule, options = network, config.ode, network.schedule, config.ode
        self.t_min = schedule.t_min if options.t_min is None else options.t_min
        if not schedule.t_min <= self.t_min < schedule.T:
            raise UsageError(
                f"ode.t_min must be at least {schedule.t_min:g}, the smallest time that the network was trained at, "
                f"and below {schedule.T}, not {self.t_min:g}"
            )
        solver = {"rk45": ode.rk45(options.tolerance), "rk4": ode.rk4, "heun": ode.heun}[options.solver]
        self.log_likelihood = partial(ode.log_likelihood, solver=solver, t_min=self.t_min, steps=options.steps)
        self.estimated = options.divergence == "hutchinson"
        effort = {"tolerance": options.tolerance} if options.solver == "rk45" else {"steps": options.steps}
        self.facts: dict[str, Any] = {"solver": options.solver, **effort, "t_min": self.t_min}
        self.facts["divergence"] = options.divergence
        if self.estimated:
            self.facts["probes"] = options.probes
        self.facts["dequantisation"] = "uniform, one draw an image" if network.kind.eight_bit else "none"
        if network.kind.pad:
            self.facts["border"] = "Gaussian of the width at t_min, its density taken off"
        self.facts["clip"] = False

    @property
    def evaluations(self) -> int:
        """About how many network calls the score of an image costs, derivatives included."""
        adaptive = int(EXPECTED_CALLS * (1e-5 / self.options.tolerance) ** 0.2)  # rk45 is of order 5
        steps = self.options.steps
        calls = {"rk45": adaptive, "rk4": 4 * steps, "heun": 2 * steps}[self.options.solver]
        if self.estimated:
            return int(calls * (1 + COST_OF_A_DERIVATIVE) * self.options.probes)
        return calls * (1 + COST_OF_A_DERIVATIVE * math.prod(self.network.kind.shape))

    def score(self, images: ScoredImages, report: Report) -> Values:
        """-log P in bits/dim, and the mean number of evaluations of the network and its derivative for an image.

        Images are solved `rows` at a time, so that the steps of an adaptive solver do not depend on batch_size.
        """
        totals, evaluations, processes = Moments(), 0, self.network.device.processes
        with Progress("ode", len(images.order), "image") as progress:
            parts = images.parts(self.network.batch_size)
            for _, found in processes.map("ode", parts, partial(self.of_rows, images)):
                raise_pending()
                for nats, calls in found:
                    totals.add(bits_per_dim(nats, self.network.kind.dimensions).numpy())
                    evaluations += calls * len(nats)
                    progress.advance(len(nats))
        if not np.isfinite(totals.mean):
            raise UserError("the ODE's likelihood is NaN or infinite: so is the network's output")
        return {"ode": {**totals.facts, "network_evaluations": round(evaluations / totals.count, 1)}}

    def of_rows(self, images: ScoredImages, rows: np.ndarray) -> list[tuple[Tensor, int]]:
        """`nats` of these images, as many at a time as a call of the network takes."""
        size = self.network.rows
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        try:
            return self.network.device.spread(partial(self.nats, images), parts)
        except ArithmeticError as error:
            raise UserError(f"{error}; try a larger ode.tolerance, or ode.solver=rk4") from error

    def nats(self, images: ScoredImages, rows: np.ndarray) -> tuple[Tensor, int]:
        """-log P of some images, [b] in float64, the mean over probes; and the number of evaluations."""
        x0, y = images.batch(rows)
        x0, log_q = self.dequantise(x0, images.noise("dequantise", rows))
        offset = log_q + self.network.kind.log_volume
        probes = images.noise("hutchinson", rows)
        denoiser, found, calls = self.network.denoiser(), [], 0
        for _ in range(self.options.probes if self.estimated else 1):
            signs = torch.where(probes(x0) < 0, -1.0, 1.0)
            divergence = ode.hutchinson(signs) if self.estimated else ode.exact_divergence
            solution = self.log_likelihood(denoiser, x0, y, divergence=divergence)
            found.append(-solution.log_density + offset)
            calls += solution.evaluations
        return torch.stack(found).mean(0), calls

    def dequantise(self, x0: Tensor, noise: ImageNoise) -> tuple[Tensor, Tensor]:
        """x0 + u, which has a density, and the log density log q(u) of the noise u, [b].

        log P(x) >= E log p(x + u) - log q(u) for any q. Here it is uniform over the bin of an 8-bit pixel; numbers that
        are not 8-bit have a density without it. On the border that the network sees around an image, which is not data,
        it is a Gaussian with the flow's standard deviation at t_min.
        """
        normal, kind = noise(x0), self.network.kind
        alpha, sigma = self.network.schedule.alpha_sigma(torch.tensor(self.t_min, dtype=torch.float64))
        width = float(sigma / alpha)
        inside = torch.zeros_like(x0, dtype=torch.bool)
        kind.crop(inside).fill_(True)
        of_bin, log_of_bin = (torch.special.ndtr(normal) - 0.5, -math.log(BIN)) if kind.eight_bit else (0 * normal, 0.0)
        u = torch.where(inside, BIN * of_bin, width * normal)
        log_normal = -0.5 * (normal.square() + math.log(2 * math.pi * width**2))
        log_q = torch.where(inside, log_of_bin, log_normal)
        return x0 + u, log_q.flatten(1).sum(1).cpu().double()

    def summary(self, score: Mapping[str, Any]) -> str:
        """What the value depends on most, in a line."""
        facts = self.facts
        effort = f"tolerance {facts['tolerance']:g}" if "tolerance" in facts else f"{facts['steps']} steps"
        calls = f"{score['network_evaluations']:.0f} evaluations an image"
        return f"{facts['solver']}, {effort}, down to t = {facts['t_min']:g}: {calls}"
