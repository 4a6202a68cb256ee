"""`diffuse eval`: how well a trained network describes the test split."""

import csv
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.build import build_dataset
from diffuse.drawing import Prepared
from diffuse.errors import UsageError, UserError, pick
from diffuse.files import write_json, write_whole
from diffuse.images import ImageKind
from diffuse.job import Job, shown
from diffuse.likelihood import bits_per_dim, discretised_gaussian, gaussian_density, prior_term, reverse_terms
from diffuse.pictures import plot_terms
from diffuse.progress import Progress, duration, log
from diffuse.randomness import ImageNoise, generator
from diffuse.samplers import VARIANCES, time_grid

AFFORDED_SECONDS = 120.0


class EvalJob(Prepared):
    """All that `diffuse eval` needs, built and checked."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        self.config = config
        self.variance = pick(VARIANCES, "variance", config["variance"])
        try:
            self.times = time_grid(self.trained.schedule, config["levels"])
        except ValueError as error:
            raise UsageError(str(error).replace("steps", "levels", 1)) from error
        data = build_dataset(moved(self.trained.config, config), config["trust"])
        refuse_other_kind(data.kind, self.kind)
        self.test, self.data_sha256 = data.test, data.sha256
        if self.data_sha256 != self.trained.data_sha256:
            log.warning(
                f"the images of {data.kind.name} are not the ones of the training (their hash differs): "
                "what is a test image now may have been trained on"
            )
        self.clip = self.kind.bounded if config["clip"] is None else config["clip"]
        self.decoder = discretised_gaussian if self.kind.bounded else gaussian_density
        if config["n"] is not None and config["n"] > len(self.test.images):
            raise UsageError(
                f"n must be at most {len(self.test.images)}, the size of the test split, not {config['n']}"
            )

    @property
    def evaluations(self) -> int:
        return len(self.times) - 1

    def images_per_second(self) -> float:
        """How many images a second the network takes, measured on one full call after another that warms up."""
        denoiser, rows = self.denoiser(self.clip), np.arange(self.chunk) % len(self.test.images)
        (x, _), t, y = self.batch(rows), torch.ones((), dtype=torch.float64), self.labels(rows)
        for _ in range(2):
            self.device.synchronize()
            started = time.monotonic()
            with torch.no_grad():
                denoiser(x, t, y)
            self.device.synchronize()
        return self.chunk / (time.monotonic() - started)

    def afforded(self, images_per_second: float) -> int:
        """n, or without it what takes about two minutes: at least one network call's worth, at most the test split."""
        if self.config["n"] is not None:
            return int(self.config["n"])
        afforded = int(AFFORDED_SECONDS * images_per_second / self.evaluations) // self.chunk * self.chunk
        return min(max(afforded, self.chunk), len(self.test.images))

    def batch(self, rows: np.ndarray) -> tuple[Tensor, ImageNoise]:
        """These rows of the test split in [-1, 1], each with noise of its own."""
        x0 = self.kind.to_network(torch.from_numpy(self.test.images[rows])).to(self.device.torch)
        return x0, ImageNoise(self.config["seed"], "eval", rows.tolist())

    def labels(self, rows: np.ndarray) -> Tensor | None:
        """The rows' classes, for a class-conditional network."""
        if not self.conditional or self.test.labels is None:
            return None
        return torch.from_numpy(self.test.labels[rows]).to(self.device.torch)

    def terms(self, n: int) -> np.ndarray:
        """The bound of n images in bits/dim, [n, steps + 1]: L_T, then the L_{t-1} from the noisiest, then L_0."""
        order = generator(self.config["seed"], "test order").permutation(len(self.test.images))[:n]
        levels = partial(reverse_terms, variance=self.variance, decoder=self.decoder)
        denoiser, parts = self.denoiser(self.clip), []
        with Progress("eval", n * self.evaluations, "evaluation") as progress:
            for start in range(0, n, self.batch_size):
                rows = order[start : start + self.batch_size]
                x0, noise = self.batch(rows)
                terms = [prior_term(self.trained.schedule, x0)]
                for term in levels(denoiser, x0, self.times, noise, self.labels(rows)):
                    terms.append(term)
                    progress.advance(len(rows))
                parts.append(bits_per_dim(torch.stack(terms, dim=1), self.kind.dimensions).cpu().double().numpy())
        return np.concatenate(parts)


def refuse_other_kind(now: ImageKind, then: ImageKind) -> None:
    """Raise UserError where a data set is not what the network was trained on, whatever it is called now."""
    for field in ("channels", "size", "pad", "classes"):
        found, expected = getattr(now, field), getattr(then, field)
        if found != expected:
            found, expected = (str(value)[:60] for value in (found, expected))
            raise UserError(
                f"the images of {now.name} are not of the kind that the network was trained on: "
                f"{field} is {found}, and was {expected}; see dataset.path and data_dir"
            )


def moved(trained: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The training config, with its data where this config says that they are now."""
    places = {key: place for key, place in config["dataset"].items() if place is not None}
    for key in places.keys() - trained["dataset"].keys():
        raise UsageError(f"dataset.{key} is for runs on images of one's own, and this one was trained on other data")
    data_dir = trained["data_dir"] if config["data_dir"] is None else config["data_dir"]
    return {**trained, "data_dir": data_dir, "dataset": {**trained["dataset"], **places}}


def run(config: Mapping[str, Any], job: Job) -> float:
    """Compute the variational bound on the test split into a new folder of the run; returns it in bits/dim."""
    scoring = EvalJob(config)
    images_per_second = scoring.images_per_second()
    n = scoring.afforded(images_per_second)
    expected = -(-n // scoring.chunk) * scoring.chunk * scoring.evaluations / images_per_second
    with job.new_folder(scoring.trained.home / "eval", config["name"], "eval.log") as folder:
        what = f"{n} of {len(scoring.test.images)} test images of {scoring.kind.name} at {scoring.evaluations} levels"
        cost = f"{n * scoring.evaluations:,} network evaluations, about {duration(expected)} on {scoring.device}"
        log.info(f"variational bound of {what}: {cost}")
        started = time.monotonic()
        terms = scoring.terms(n)
        seconds = time.monotonic() - started
        bound = summary(terms)
        if not np.isfinite(bound["total"]):
            raise UserError("the bound is not a finite number: the network's answers are not, or the variances are 0")
        table = by_level(scoring.times.tolist(), terms)
        write_table(folder / "terms.csv", table)
        title = f"{scoring.kind.name}: {bound['total']:.3f} bits/dim in all"
        plot_terms(folder / "terms.png", table["t"][1:], table["bits_per_dim"][1:], title)
        facts = {"bits_per_dim": bound, "protocol": protocol(scoring, n), "seconds": round(seconds, 3)}
        write_json(folder / "eval.json", {**facts, **scoring.trained.provenance, "terms": table})
        parts = f"L_T {bound['L_T']:.4f} + sum of L_{{t-1}} {bound['L_t_minus_1']:.4f} + L_0 {bound['L_0']:.4f}"
        log.info(f"{bound['total']:.4f} +- {bound['standard_error']:.4f} bits/dim = {parts}")
        log.info(f"written: {shown(folder / 'eval.json')}, terms.csv and terms.png beside it")
    return bound["total"]


def summary(terms: np.ndarray) -> dict[str, float]:
    """The bound and its three parts, the mean over images; the standard error is that of the total over images."""
    totals = terms.sum(1)
    return {
        "total": float(totals.mean()),
        "standard_error": float(totals.std(ddof=1) / np.sqrt(len(totals))),
        "L_T": float(terms[:, 0].mean()),
        "L_t_minus_1": float(terms[:, 1:-1].sum(1).mean()),
        "L_0": float(terms[:, -1].mean()),
    }


def protocol(scoring: EvalJob, n: int) -> dict[str, Any]:
    """What the number depends on."""
    config = scoring.config
    return {
        "dataset": scoring.kind.name,
        "split": "test",
        "data_sha256": scoring.data_sha256["test"],
        "data_as_in_training": scoring.data_sha256 == scoring.trained.data_sha256,
        "n": n,
        "n_in_split": len(scoring.test.images),
        "dimensions": scoring.kind.dimensions,
        "pad": scoring.kind.pad,
        "n_chosen_by": "n=" if config["n"] is not None else "what takes about two minutes",
        "weights": "ema",
        "levels": scoring.evaluations,
        "draws_per_level": 1,
        "variance": config["variance"],
        "variance_of_last_step": "posterior variance of the step before it",
        "clip": scoring.clip,
        "decoder": scoring.decoder.__name__,
        "seed": config["seed"],
        "device": scoring.device.torch.type,
        "precision": "bfloat16" if scoring.device.bfloat16 else "float32",
    }


def by_level(times: list[float], terms: np.ndarray) -> dict[str, list[Any]]:
    """Each term of the bound: its name, the step it is about (from t to s), mean and standard error over images."""
    return {
        "term": ["L_T", *["L_t_minus_1"] * (len(times) - 2), "L_0"],
        "t": [times[0], *times[:-1]],
        "s": [None, *times[1:]],
        "bits_per_dim": terms.mean(0).tolist(),
        "standard_error": (terms.std(0, ddof=1) / np.sqrt(len(terms))).tolist(),
    }


def write_table(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Columns as CSV, a line for each term."""

    def write(file: Any) -> None:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))

    write_whole(path, write)
