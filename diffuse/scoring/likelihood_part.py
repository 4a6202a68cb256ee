"""The likelihood part of `diffuse eval`: how well a trained network describes the test split."""

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.mathematics.likelihood import bits_per_dim
from diffuse.options.schema import EvalConfig
from diffuse.options.score_names import LIKELIHOODS
from diffuse.runs.pictures import plot_terms
from diffuse.runs.trained import TrainedNetwork
from diffuse.scoring.likelihoods import BoundScore, Moments, OdeScore, ScoredImages
from diffuse.scoring.report import Report, Values, requested
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import write_atomic
from diffuse.system.progress import duration, log

AFFORDED_SECONDS = 180.0
BITS_PER_DIM = "bits_per_dim"  # the section of eval.json


class LikelihoodPart:
    """Bound and exact likelihood of the test split, built and checked."""

    def __init__(self, config: EvalConfig, network: TrainedNetwork):
        self.n, self.seed, self.network, self.data = config.n, config.seed, network, network.data
        if len(self.data.test.images) < 2:
            raise UserError(f"the test split of {self.data.kind.name} has a single image; a standard error needs two")
        self.names = [name for name in requested(config.metrics) if name in LIKELIHOODS]
        alone = self.names == requested(config.metrics)
        if config.n is not None and config.n > len(self.data.test.images) and alone:
            size = len(self.data.test.images)
            raise UsageError(f"n must be at most {size}, the size of the test split, not {config.n}")
        bound, ode = "bound" in self.names, "ode" in self.names
        self.bound = BoundScore(network, config.levels, config.variance, config.clip) if bound else None
        self.ode = OdeScore(network, config.ode) if ode else None

    @property
    def evaluations(self) -> int:
        """About how many network calls the scores of one image cost."""
        return sum(score.evaluations for score in (self.bound, self.ode) if score)

    def images_per_second(self) -> float:
        """How many images a second the network takes, measured on one full call after another that warms up."""
        images = ScoredImages(self.network, len(self.data.test.images), self.seed)
        x, y = images.batch(np.arange(self.network.rows) % len(images.order))
        denoiser, t = self.network.denoiser(clip=False), torch.ones((), dtype=torch.float64)
        for _ in range(2):
            self.network.device.synchronize()
            started = time.monotonic()
            with torch.no_grad():
                denoiser(x, t, y)
            self.network.device.synchronize()
        return self.network.rows / (time.monotonic() - started)

    def afforded(self, images_per_second: float) -> int:
        """n, or without it what takes about three minutes: at least one network call, at most the test split."""
        if self.n is not None:
            return min(self.n, len(self.data.test.images))
        rows = self.network.rows
        afforded = int(AFFORDED_SECONDS * images_per_second / self.evaluations) // rows * rows
        return min(max(afforded, rows), len(self.data.test.images))

    def score(self, report: Report) -> None:
        """Add each score to the report as soon as it is known: an interruption of the next one loses nothing."""
        images_per_second = self.images_per_second()
        n = report.facts.get("protocol", {}).get("n") or self.afforded(images_per_second)  # as before, when continued
        images, rows = ScoredImages(self.network, n, self.seed), self.network.rows
        seconds = -(-n // rows) * rows * self.evaluations / images_per_second
        what = f"{n} of {len(images.test.images)} test images of {self.network.kind.name}"
        log.info(f"{what}: {' and '.join(self.names)}, about {duration(seconds)} on {self.network.where}")
        report.note("protocol", self.protocol(n))
        for name in self.names:
            if not report.has(name):
                with report.timed(name):
                    found = self.score_bound(images, report) if name == "bound" else self.score_ode(images)
                report.add(BITS_PER_DIM, name, found)
            report.say(BITS_PER_DIM, name, self.summary)
        if self.data.log_density:
            if not report.has("exact"):
                report.add(BITS_PER_DIM, "exact", {"exact": mean_and_error(exact(self.data.log_density, images))})
            report.say(BITS_PER_DIM, "exact", self.summary)

    def score_bound(self, images: ScoredImages, report: Report) -> Values:
        """The bound in parts, and its terms level by level in a table and a picture."""
        assert self.bound
        totals, terms = self.bound.score(images)
        table = by_level(self.bound.times.tolist(), terms)
        report.note("terms", table)
        write_terms(report.folder / "terms.csv", table)
        title = f"{self.network.kind.name}: {totals.mean:.3f} bits/dim in all"
        plot_terms(report.folder / "terms.png", table["t"][1:], table["bits_per_dim"][1:], title)
        return {"bound": bound_in_parts(totals, terms)}

    def score_ode(self, images: ScoredImages) -> Values:
        """The exact likelihood, and what it cost."""
        assert self.ode
        totals, evaluations = self.ode.score(images)
        return {"ode": {**mean_and_error(totals), "network_evaluations": round(evaluations, 1)}}

    def summary(self, name: str, score: Mapping[str, Any]) -> str:
        """A score in a line, with what it depends on most."""
        how = "the density that the data were drawn from"
        if name == "bound" and self.bound:
            parts = f"L_T {score['L_T']:.4f} + sum of L_{{t-1}} {score['L_t_minus_1']:.4f} + L_0 {score['L_0']:.4f}"
            how = f"{self.bound.evaluations} levels, {self.bound.facts['variance']}: {parts}"
        elif name == "ode" and self.ode:
            facts = self.ode.facts
            effort = f"tolerance {facts['tolerance']:g}" if "tolerance" in facts else f"{facts['steps']} steps"
            calls = f"{score['network_evaluations']:.0f} evaluations an image"
            how = f"{facts['solver']}, {effort}, down to t = {facts['t_min']:g}: {calls}"
        return f"{name:5} {score['total']:.4f} +- {score['standard_error']:.4f} bits/dim  ({how})"

    def protocol(self, n: int) -> dict[str, Any]:
        """What the numbers depend on."""
        kind, scores = self.network.kind, {"bound": self.bound, "ode": self.ode}
        return {
            "dataset": kind.name,
            "split": "test",
            "data_sha256": self.data.sha256["test"],
            "data_as_in_training": self.data.sha256 == self.network.data_sha256,
            "n": n,
            "n_in_split": len(self.data.test.images),
            "dimensions": kind.dimensions,
            "pad": kind.pad,
            "n_chosen_by": "n=" if self.n is not None else "what takes about three minutes",
            "weights": "ema",
            **{name: score.facts for name, score in scores.items() if score},
            "seed": self.seed,
            "device": self.network.device.torch.type,
            "precision": self.network.formulas.precision(self.network.device),
        }


def exact(log_density: Callable[[Tensor], Tensor], images: ScoredImages) -> Moments:
    """-log of the density that the data were drawn from, in bits/dim: what no model can beat on average."""
    totals = Moments()
    for x0, _, _ in images:
        nats = -log_density(x0.cpu().double())
        totals.add(bits_per_dim(nats, images.network.kind.dimensions).numpy())
    return totals


def mean_and_error(totals: Moments) -> dict[str, float]:
    """The mean over images and its standard error."""
    return {"total": float(totals.mean), "standard_error": float(totals.standard_error)}


def bound_in_parts(totals: Moments, terms: Moments) -> dict[str, float]:
    """The bound and its three parts."""
    parts = {"L_T": terms.mean[0], "L_t_minus_1": terms.mean[1:-1].sum(), "L_0": terms.mean[-1]}
    return {**mean_and_error(totals), **{name: float(value) for name, value in parts.items()}}


def by_level(times: list[float], terms: Moments) -> dict[str, list[Any]]:
    """Each term of the bound: its name, the step it is about (from t to s), mean and standard error over images."""
    return {
        "term": ["L_T", *["L_t_minus_1"] * (len(times) - 2), "L_0"],
        "t": [times[0], *times[:-1]],
        "s": [None, *times[1:]],
        "bits_per_dim": terms.mean.tolist(),
        "standard_error": terms.standard_error.tolist(),
    }


def write_terms(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Columns as CSV, a line for each term."""

    def write(file: Any) -> None:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))

    write_atomic(path, write)
