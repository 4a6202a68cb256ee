"""The likelihood part of `diffuse eval`: how well a trained network describes the test split."""

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.mathematics.likelihood import bits_per_dim
from diffuse.options.score_names import LIKELIHOODS
from diffuse.runs.pictures import plot_terms
from diffuse.runs.trained import Prepared
from diffuse.scoring.likelihoods import BoundScore, Moments, OdeScore, ScoredImages
from diffuse.scoring.report import Report, Values, asked
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import write_whole
from diffuse.system.progress import duration, log

AFFORDED_SECONDS = 180.0
SECTION = "bits_per_dim"  # of eval.json


class LikelihoodPart:
    """Bound and exact likelihood of the test split, built and checked."""

    def __init__(self, config: Mapping[str, Any], prepared: Prepared):
        self.config, self.prepared, self.data = config, prepared, prepared.data
        if len(self.data.test.images) < 2:
            raise UserError(f"the test split of {self.data.kind.name} has a single image; a standard error needs two")
        names = asked(config)
        if config["n"] is not None and config["n"] > len(self.data.test.images) and not set(names) - set(LIKELIHOODS):
            raise UsageError(
                f"n must be at most {len(self.data.test.images)}, the size of the test split, not {config['n']}"
            )
        self.bound = BoundScore(prepared, config) if "bound" in names else None
        self.ode = OdeScore(prepared, config) if "ode" in names else None

    @property
    def evaluations(self) -> int:
        """About how many calls of the network the scores of one image cost."""
        return sum(score.evaluations for score in (self.bound, self.ode) if score)

    def images_per_second(self) -> float:
        """How many images a second the network takes, measured on one full call after another that warms up."""
        images = ScoredImages(self.prepared, len(self.data.test.images), self.config["seed"])
        x, y = images.batch(np.arange(self.prepared.chunk) % len(images.order))
        denoiser, t = self.prepared.denoiser(clip=False), torch.ones((), dtype=torch.float64)
        for _ in range(2):
            self.prepared.device.synchronize()
            started = time.monotonic()
            with torch.no_grad():
                denoiser(x, t, y)
            self.prepared.device.synchronize()
        return self.prepared.chunk / (time.monotonic() - started)

    def afforded(self, images_per_second: float) -> int:
        """n, or without it what takes about three minutes: at least one call of the network, at most the test split."""
        if self.config["n"] is not None:
            return min(int(self.config["n"]), len(self.data.test.images))
        afforded = (
            int(AFFORDED_SECONDS * images_per_second / self.evaluations) // self.prepared.chunk * self.prepared.chunk
        )
        return min(max(afforded, self.prepared.chunk), len(self.data.test.images))

    def score(self, report: Report) -> None:
        """Add each score to the report as soon as it is known: whoever interrupts the next one keeps it."""
        images_per_second = self.images_per_second()
        n = report.facts.get("protocol", {}).get("n") or self.afforded(images_per_second)  # as before, when it goes on
        images, facts = ScoredImages(self.prepared, n, self.config["seed"]), protocol(self, n)
        scores = {"bound": self.score_bound, "ode": self.score_ode}
        names = [name for name in asked(self.config) if name in scores]
        calls = -(-n // self.prepared.chunk) * self.prepared.chunk * self.evaluations
        what = f"{n} of {len(images.test.images)} test images of {self.prepared.kind.name}"
        log.info(f"{what}: {' and '.join(names)}, about {duration(calls / images_per_second)} on {self.prepared.where}")
        report.note("protocol", facts)
        for name in names:
            report.add(SECTION, name, partial(scores[name], images, report), partial(told, self))
        if log_density := self.data.log_density:
            find = partial(exact_score, log_density, images)
            report.add(SECTION, "exact", find, partial(told, self))

    def score_bound(self, images: ScoredImages, report: Report) -> Values:
        """The bound in parts, and its terms level by level in a table and a picture."""
        assert self.bound
        totals, terms = self.bound.score(images)
        table = by_level(self.bound.times.tolist(), terms)
        report.note("terms", table)
        write_table(report.folder / "terms.csv", table)
        title = f"{self.prepared.kind.name}: {totals.mean:.3f} bits/dim in all"
        plot_terms(report.folder / "terms.png", table["t"][1:], table["bits_per_dim"][1:], title)
        return {"bound": bound_in_parts(totals, terms)}

    def score_ode(self, images: ScoredImages, _: Report) -> Values:
        """The exact likelihood, and what it cost."""
        assert self.ode
        totals, evaluations = self.ode.score(images)
        return {"ode": {**mean_and_error(totals), "network_evaluations": round(evaluations, 1)}}


def exact_score(log_density: Callable[[Tensor], Tensor], images: ScoredImages) -> Values:
    """What no model can beat on average."""
    return {"exact": mean_and_error(exact(log_density, images))}


def exact(log_density: Callable[[Tensor], Tensor], images: ScoredImages) -> Moments:
    """-log of the density that the data were drawn from, in bits/dim."""
    totals = Moments()
    for x0, _, _ in images:
        nats = -log_density(x0.cpu().double())
        totals.add(bits_per_dim(nats, images.prepared.kind.dimensions).numpy())
    return totals


def mean_and_error(totals: Moments) -> dict[str, float]:
    """The mean over images and its standard error."""
    return {"total": float(totals.mean), "standard_error": float(totals.standard_error)}


def bound_in_parts(totals: Moments, terms: Moments) -> dict[str, float]:
    """The bound and its three parts."""
    parts = {"L_T": terms.mean[0], "L_t_minus_1": terms.mean[1:-1].sum(), "L_0": terms.mean[-1]}
    return {**mean_and_error(totals), **{name: float(value) for name, value in parts.items()}}


def told(scoring: LikelihoodPart, name: str, score: Mapping[str, Any]) -> str:
    """A score in a line, with what it depends on most."""
    how = "the density that the data were drawn from"
    if name == "bound" and scoring.bound:
        parts = f"L_T {score['L_T']:.4f} + sum of L_{{t-1}} {score['L_t_minus_1']:.4f} + L_0 {score['L_0']:.4f}"
        how = f"{scoring.bound.evaluations} levels, {scoring.bound.facts['variance']}: {parts}"
    elif name == "ode" and scoring.ode:
        facts = scoring.ode.facts
        effort = f"tolerance {facts['tolerance']:g}" if "tolerance" in facts else f"{facts['steps']} steps"
        calls = f"{score['network_evaluations']:.0f} evaluations an image"
        how = f"{facts['solver']}, {effort}, down to t = {facts['t_min']:g}: {calls}"
    return f"{name:5} {score['total']:.4f} +- {score['standard_error']:.4f} bits/dim  ({how})"


def protocol(scoring: LikelihoodPart, n: int) -> dict[str, Any]:
    """What the numbers depend on."""
    config, kind = scoring.config, scoring.prepared.kind
    scores = {"bound": scoring.bound, "ode": scoring.ode}
    return {
        "dataset": kind.name,
        "split": "test",
        "data_sha256": scoring.data.sha256["test"],
        "data_as_in_training": scoring.data.sha256 == scoring.prepared.trained.data_sha256,
        "n": n,
        "n_in_split": len(scoring.data.test.images),
        "dimensions": kind.dimensions,
        "pad": kind.pad,
        "n_chosen_by": "n=" if config["n"] is not None else "what takes about three minutes",
        "weights": "ema",
        **{name: score.facts for name, score in scores.items() if score},
        "seed": config["seed"],
        "device": scoring.prepared.device.torch.type,
        "precision": scoring.prepared.trained.formulas.precision(scoring.prepared.device),
    }


def by_level(times: list[float], terms: Moments) -> dict[str, list[Any]]:
    """Each term of the bound: its name, the step it is about (from t to s), mean and standard error over images."""
    return {
        "term": ["L_T", *["L_t_minus_1"] * (len(times) - 2), "L_0"],
        "t": [times[0], *times[:-1]],
        "s": [None, *times[1:]],
        "bits_per_dim": terms.mean.tolist(),
        "standard_error": terms.standard_error.tolist(),
    }


def write_table(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Columns as CSV, a line for each term."""

    def write(file: Any) -> None:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))

    write_whole(path, write)
