"""`diffuse eval`: how well a trained network describes the test split."""

import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.build import build, build_dataset
from diffuse.checkpoint import Trained, load_trained
from diffuse.datasets import to_float
from diffuse.denoiser import Denoiser
from diffuse.device import Device
from diffuse.errors import UsageError, UserError, pick
from diffuse.files import write_json, write_whole
from diffuse.job import Job, shown
from diffuse.likelihood import bits_per_dim, discretised_gaussian, gaussian_density, prior_term, reverse_terms
from diffuse.pictures import plot_terms
from diffuse.progress import Progress, duration, log
from diffuse.randomness import ImageNoise, generator
from diffuse.samplers import VARIANCES, time_grid

AFFORDED_SECONDS = 120.0


class EvalJob:
    """All that `diffuse eval` needs, built and checked."""

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        self.device: Device = build(config["device"], "device", config["trust"])
        self.trained: Trained = load_trained(config["ckpt"], config["trust"])
        self.variance = pick(VARIANCES, "variance", config["variance"])
        try:
            self.times = time_grid(self.trained.schedule, config["levels"])
        except ValueError as error:
            raise UsageError(str(error).replace("steps", "levels", 1)) from error
        kind = self.trained.kind
        self.test = build_dataset(self.trained.config, config["trust"]).test
        self.clip = kind.bounded if config["clip"] is None else config["clip"]
        self.decoder = discretised_gaussian if kind.bounded else gaussian_density
        self.rows = self.device.rows(kind.size, config["batch_size"])
        self.batch_size = -(-config["batch_size"] // self.rows) * self.rows
        net = self.device.place(self.trained.net)
        self.denoiser = Denoiser(self.device.network(net, self.rows), self.trained.schedule, clip=self.clip)
        if config["n"] is not None and config["n"] > len(self.test.images):
            raise UsageError(
                f"n must be at most {len(self.test.images)}, the size of the test split, not {config['n']}"
            )

    @property
    def evaluations(self) -> int:
        return len(self.times) - 1

    def images_per_second(self) -> float:
        """How many images a second the network takes, measured over one batch after another that warms up."""
        x, _ = self.batch(np.arange(min(self.batch_size, len(self.test.images))))
        t, y = torch.ones((), dtype=torch.float64), self.labels(np.arange(len(x)))
        for _ in range(2):
            self.device.synchronize()
            started = time.monotonic()
            with torch.no_grad():
                self.denoiser(x, t, y)
            self.device.synchronize()
        return self.batch_size / (time.monotonic() - started)

    def afforded(self, images_per_second: float) -> int:
        """n, or without it what takes about two minutes: at least one network call's worth, at most the test split."""
        if self.config["n"] is not None:
            return int(self.config["n"])
        afforded = int(AFFORDED_SECONDS * images_per_second / self.evaluations) // self.rows * self.rows
        return min(max(afforded, self.rows), len(self.test.images))

    def batch(self, rows: np.ndarray) -> tuple[Tensor, ImageNoise]:
        """These rows of the test split in [-1, 1], each with noise of its own."""
        x0 = to_float(torch.from_numpy(self.test.images[rows])).to(self.device.torch)
        return x0, ImageNoise(self.config["seed"], "eval", rows.tolist())

    def labels(self, rows: np.ndarray) -> Tensor | None:
        """The rows' classes, for a class-conditional network."""
        if not self.trained.config["class_conditional"] or self.test.labels is None:
            return None
        return torch.from_numpy(self.test.labels[rows]).to(self.device.torch)

    def terms(self, n: int) -> np.ndarray:
        """The bound of n images in bits/dim, [n, steps + 1]: L_T, then the L_{t-1} from the noisiest, then L_0."""
        order = generator(self.config["seed"], "test order").permutation(len(self.test.images))[:n]
        dims = self.trained.kind.channels * self.trained.kind.size**2
        parts = []
        with Progress("eval", -(-n // self.batch_size) * self.evaluations, "level") as progress:
            for start in range(0, n, self.batch_size):
                rows = order[start : start + self.batch_size]
                x0, noise = self.batch(rows)
                terms = [prior_term(self.trained.schedule, x0)]
                for term in reverse_terms(
                    self.denoiser,
                    x0,
                    self.times,
                    noise,
                    self.labels(rows),
                    variance=self.variance,
                    decoder=self.decoder,
                ):
                    terms.append(term)
                    progress.advance()
                parts.append(bits_per_dim(torch.stack(terms, dim=1), dims).cpu().double().numpy())
        return np.concatenate(parts)


def run(config: Mapping[str, Any], job: Job) -> float:
    """Compute the variational bound on the test split into a new folder of the run; returns it in bits/dim."""
    scoring = EvalJob(config)
    images_per_second = scoring.images_per_second()
    n = scoring.afforded(images_per_second)
    expected = n * scoring.evaluations / images_per_second
    with job.new_folder(scoring.trained.home / "eval", config["name"], "eval.log") as folder:
        log.info(
            "variational bound of %s of %s test images of %s at %s levels: %s network evaluations, about %s on %s",
            n,
            len(scoring.test.images),
            scoring.trained.kind.name,
            scoring.evaluations,
            f"{n * scoring.evaluations:,}",
            duration(expected),
            scoring.device,
        )
        started = time.monotonic()
        terms = scoring.terms(n)
        seconds = time.monotonic() - started
        bound = summary(terms)
        if not np.isfinite(bound["total"]):
            raise UserError("the bound is not a finite number; with bfloat16, try device.precision=float32")
        table = by_level(scoring.times.tolist(), terms)
        write_table(folder / "terms.csv", table)
        title = f"{scoring.trained.kind.name}: {bound['total']:.3f} bits/dim in all"
        plot_terms(folder / "terms.png", table["t"][1:], table["bits_per_dim"][1:], title)
        facts = {"bits_per_dim": bound, "protocol": protocol(scoring, n), "seconds": round(seconds, 3)}
        write_json(folder / "eval.json", {**facts, **scoring.trained.provenance, "terms": table})
        log.info(
            "%.4f +- %.4f bits/dim = L_T %.4f + sum of L_{t-1} %.4f + L_0 %.4f",
            *(bound[key] for key in ("total", "standard_error", "L_T", "L_t_minus_1", "L_0")),
        )
        log.info("written: %s, terms.csv and terms.png beside it", shown(folder / "eval.json"))
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
        "dataset": scoring.trained.kind.name,
        "split": "test",
        "n": n,
        "n_in_split": len(scoring.test.images),
        "n_chosen_by": "n=" if config["n"] is not None else "what takes about two minutes",
        "weights": "ema",
        "levels": scoring.evaluations,
        "draws_per_level": 1,
        "variance": config["variance"],
        "variance_of_last_step": "posterior variance of the step before it",
        "clip": scoring.clip,
        "decoder": scoring.decoder.__name__,
        "seed": config["seed"],
        "device": str(scoring.device),
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
