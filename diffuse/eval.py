"""`diffuse eval`: how well a trained network describes the test split."""

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.errors import UsageError, UserError
from diffuse.files import write_json, write_whole
from diffuse.job import Job, shown
from diffuse.likelihood import bits_per_dim
from diffuse.pictures import plot_terms
from diffuse.prepared import Prepared
from diffuse.progress import duration, log
from diffuse.scores import BoundScore, Moments, OdeScore, ScoredImages

AFFORDED_SECONDS = 180.0


class EvalJob(Prepared):
    """All that `diffuse eval` needs, built and checked."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        self.data_sha256 = self.data.sha256
        if self.data_sha256 != self.trained.data_sha256:
            log.warning(
                f"the images of {self.data.kind.name} are not the ones of the training (their hash differs): "
                "what is a test image now may have been trained on"
            )
        if config["n"] is not None and config["n"] > len(self.data.test.images):
            raise UsageError(
                f"n must be at most {len(self.data.test.images)}, the size of the test split, not {config['n']}"
            )
        if len(self.data.test.images) < 2:
            raise UserError(f"the test split of {self.data.kind.name} has a single image; a standard error needs two")
        metrics = config["metrics"]
        self.bound = BoundScore(self, config) if "bound" in metrics else None
        self.ode = OdeScore(self, config) if "ode" in metrics else None

    @property
    def evaluations(self) -> int:
        """About how many calls of the network the scores of one image cost."""
        return sum(score.evaluations for score in (self.bound, self.ode) if score)

    def images_per_second(self) -> float:
        """How many images a second the network takes, measured on one full call after another that warms up."""
        images = ScoredImages(self, len(self.data.test.images), self.config["seed"])
        x, y = images.batch(np.arange(self.chunk) % len(images.order))
        denoiser, t = self.denoiser(clip=False), torch.ones((), dtype=torch.float64)
        for _ in range(2):
            self.device.synchronize()
            started = time.monotonic()
            with torch.no_grad():
                denoiser(x, t, y)
            self.device.synchronize()
        return self.chunk / (time.monotonic() - started)

    def afforded(self, images_per_second: float) -> int:
        """n, or without it what takes about three minutes: at least one call of the network, at most the test split."""
        if self.config["n"] is not None:
            return int(self.config["n"])
        afforded = int(AFFORDED_SECONDS * images_per_second / self.evaluations) // self.chunk * self.chunk
        return min(max(afforded, self.chunk), len(self.data.test.images))


def run(config: Mapping[str, Any], job: Job) -> dict[str, float]:
    """Score the run on the test split into a new folder of it; returns the scores by name, in bits/dim."""
    scoring = EvalJob(config)
    images_per_second = scoring.images_per_second()
    n = scoring.afforded(images_per_second)
    expected = -(-n // scoring.chunk) * scoring.chunk * scoring.evaluations / images_per_second
    images = ScoredImages(scoring, n, config["seed"])
    with job.new_folder(scoring.trained.home / "eval", config["name"], "eval.log") as folder:
        what = f"{n} of {len(images.test.images)} test images of {scoring.kind.name}"
        log.info(f"{what}: {' and '.join(config['metrics'])}, about {duration(expected)} on {scoring.where}")
        found: dict[str, dict[str, Any]] = {}
        facts: dict[str, Any] = {"bits_per_dim": found, "protocol": protocol(scoring, n), "seconds": {}}

        def keep(name: str) -> None:
            """Say and write a score as soon as it is known: whoever interrupts the next one keeps it."""
            write_json(folder / "eval.json", {**facts, **scoring.trained.provenance})
            log.info(told(scoring, name, found[name]))

        started = time.monotonic()
        if scoring.bound:
            totals, terms = scoring.bound.score(images)
            found["bound"] = bound_in_parts(totals, terms)
            facts["terms"] = by_level(scoring.bound.times.tolist(), terms)
            write_table(folder / "terms.csv", facts["terms"])
            title = f"{scoring.kind.name}: {totals.mean:.3f} bits/dim in all"
            plot_terms(folder / "terms.png", facts["terms"]["t"][1:], facts["terms"]["bits_per_dim"][1:], title)
            facts["seconds"]["bound"] = round(time.monotonic() - started, 3)
            keep("bound")
        if scoring.ode:
            between = time.monotonic()
            totals, evaluations = scoring.ode.score(images)
            found["ode"] = {**mean_and_error(totals), "network_evaluations": round(evaluations, 1)}
            facts["seconds"]["ode"] = round(time.monotonic() - between, 3)
            keep("ode")
        if log_density := scoring.data.log_density:
            found["exact"] = mean_and_error(exact(log_density, images))
            keep("exact")
        beside = ", terms.csv and terms.png beside it" if scoring.bound else ""
        log.info(f"written: {shown(folder / 'eval.json')}{beside}")
    return {name: float(found[name]["total"]) for name in config["metrics"]}


def exact(log_density: Callable[[Tensor], Tensor], images: ScoredImages) -> Moments:
    """-log of the density that the data were drawn from, in bits/dim: what no model can beat on average."""
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


def told(scoring: EvalJob, name: str, score: Mapping[str, Any]) -> str:
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


def protocol(scoring: EvalJob, n: int) -> dict[str, Any]:
    """What the numbers depend on."""
    config, kind = scoring.config, scoring.kind
    scores = {"bound": scoring.bound, "ode": scoring.ode}
    return {
        "dataset": kind.name,
        "split": "test",
        "data_sha256": scoring.data_sha256["test"],
        "data_as_in_training": scoring.data_sha256 == scoring.trained.data_sha256,
        "n": n,
        "n_in_split": len(scoring.data.test.images),
        "dimensions": kind.dimensions,
        "pad": kind.pad,
        "n_chosen_by": "n=" if config["n"] is not None else "what takes about three minutes",
        "weights": "ema",
        **{name: score.facts for name, score in scores.items() if score},
        "seed": config["seed"],
        "device": scoring.device.torch.type,
        "precision": scoring.trained.formulas.precision(scoring.device),
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
