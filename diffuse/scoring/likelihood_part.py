"""The likelihood part of `diffuse eval`: how well a trained network models the test split."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from diffuse.mathematics.likelihood import bits_per_dim
from diffuse.options.schema import EvalConfig
from diffuse.runs.trained import TrainedNetwork
from diffuse.scoring.likelihoods import BoundScore, Moments, OdeScore, ScoredImages
from diffuse.scoring.report import Report, Values, expand_metrics
from diffuse.system.distributed import Task
from diffuse.system.errors import UsageError, UserError
from diffuse.system.progress import duration, log

TIME_BUDGET = 180.0  # seconds
BITS_PER_DIM = "bits_per_dim"  # the section of eval.json
LIKELIHOOD_SCORES: dict[str, type[BoundScore] | type[OdeScore]] = {"bound": BoundScore, "ode": OdeScore}


class LikelihoodPart:
    """The bound and the exact likelihood of the test split, built and checked."""

    def __init__(self, config: EvalConfig, network: TrainedNetwork):
        self.n, self.seed, self.network, self.data = config.n, config.seed, network, network.data
        self.size, metrics = len(self.data.test.images), expand_metrics(config.metrics)
        if self.size < 2:
            raise UserError(f"the test split of {self.data.kind.name} has a single image; a standard error needs two")
        self.names = [name for name in metrics if name in LIKELIHOOD_SCORES]
        if config.n is not None and config.n > self.size and self.names == metrics:
            raise UsageError(f"n must be at most {self.size}, the size of the test split, not {config.n}")
        self.scores = {name: make(network, config) for name, make in LIKELIHOOD_SCORES.items() if name in self.names}
        self.evaluations = sum(score.evaluations for score in self.scores.values())  # about, for one image

    @property
    def tasks(self) -> dict[str, Task]:
        """What other processes compute for it."""
        images = ScoredImages(self.network, 0, self.seed)  # the rows come with each task
        return {name: partial(score.of_rows, images) for name, score in self.scores.items()}

    def choose_n(self, images_per_second: float) -> int:
        """n, or by default what takes about three minutes: at least one network call, at most the test split."""
        rows = self.network.rows
        affordable = int(TIME_BUDGET * images_per_second / self.evaluations) // rows * rows
        return min(self.n or max(affordable, rows), self.size)

    def score(self, report: Report) -> None:
        """Add each score to the report as soon as it is known: an interruption of the next one loses nothing."""
        images_per_second = self.network.images_per_second() * self.network.device.processes.count
        n = report.facts.get("protocol", {}).get("n") or self.choose_n(images_per_second)  # as before, when continued
        images, rows = ScoredImages(self.network, n, self.seed), self.network.rows
        seconds = -(-n // rows) * rows * self.evaluations / images_per_second
        what = f"{n} of {self.size} test images of {self.network.kind.name}"
        log.info(f"{what}: {' and '.join(self.names)}, about {duration(seconds)} on {self.network.where}")
        report.note("protocol", self.protocol(n))
        for name in self.names:
            report.score(BITS_PER_DIM, name, partial(self.scores[name].score, images, report), self.summary)
        if self.data.log_density:
            score = partial(score_true_density, self.data.log_density, images)
            report.score(BITS_PER_DIM, "exact", score, self.summary)

    def summary(self, name: str, score: Mapping[str, Any]) -> str:
        """A score in a line, with what it depends on most."""
        by = self.scores[name].summary(score) if name in self.scores else "the density that the data were drawn from"
        return f"{name:5} {score['total']:.4f} +- {score['standard_error']:.4f} bits/dim  ({by})"

    def sources(self) -> dict[str, str]:
        """What the values come from beside the network, with the SHA-256 of each."""
        return {f"{self.network.kind.name}:test": self.data.sha256["test"]}

    def protocol(self, n: int) -> dict[str, Any]:
        """What the values depend on."""
        kind = self.network.kind
        return {
            "dataset": kind.name,
            "split": "test",
            "data_sha256": self.data.sha256["test"],
            "data_as_in_training": self.data.sha256 == self.network.data_sha256,
            "n": n,
            "n_in_split": self.size,
            "dimensions": kind.dimensions,
            "pad": kind.pad,
            "n_chosen_by": "n=" if self.n is not None else "what takes about three minutes",
            "weights": self.network.weights,
            **{name: score.facts for name, score in self.scores.items()},
            "seed": self.seed,
            "device": self.network.device.torch.type,
            "precision": self.network.formulas.precision(self.network.device),
        }


def score_true_density(log_density: Callable[[Tensor], Tensor], images: ScoredImages) -> Values:
    """-log of the density that the data were drawn from, in bits/dim: on average, no model is below it."""
    totals = Moments()
    for x0, _, _ in images:
        totals.add(bits_per_dim(-log_density(x0.cpu().double()), images.network.kind.dimensions).numpy())
    return {"exact": totals.facts}
