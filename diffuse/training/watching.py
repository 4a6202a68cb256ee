"""Scores while training: a few samples from the EMA weights now and then, as a curve; the best checkpoint is kept."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.data.images import Dataset
from diffuse.mathematics.wrappers import Seen
from diffuse.options.build import build_with
from diffuse.options.schema import TrainConfig
from diffuse.options.score_names import LESS_IS_BETTER
from diffuse.runs import checkpoint
from diffuse.runs.checkpoint_files import BEST, CHECKPOINTS
from diffuse.runs.drawing import Drawing
from diffuse.runs.folder import RunFolder
from diffuse.runs.scalars import SCORE_PREFIX, score_by_step
from diffuse.scoring.feature_rows import Rows
from diffuse.scoring.features import Features
from diffuse.scoring.imagesets import ImageSet, open_split
from diffuse.scoring.report import values_only
from diffuse.scoring.sample_scores import (
    cached_features,
    compute_score,
    cost_of_real,
    extract_features,
    needed_outputs,
    refuse_unlabelled,
)
from diffuse.system.files import data_folder
from diffuse.system.progress import log, log_cost

SCORED_TOGETHER = 256  # the most images drawn at a time, if the training itself holds as many


class Watcher:
    """Draws eval.n images from the EMA weights, always from the same noise, and scores them against training images.

    The scores of few images are for comparing the steps of one run, or runs with the same keys; use `diffuse eval` for
    anything else.
    """

    def __init__(self, config: TrainConfig, data: Dataset, drawing: Drawing):
        self.options, self.drawing, data_dir = config.eval, drawing, data_folder(config.data_dir)
        self.batch_size = min(SCORED_TOGETHER, max(config.batch_size, config.images.count))
        self.batch_size *= drawing.device.processes.count
        train = open_split(data.kind, "train", data.train)
        offered = {"device": drawing.device, "data": lambda: data, "data_dir": data_dir}
        self.features: Features = build_with(config.features, "features", config.trust, **offered)
        self.outputs = needed_outputs(self.options.metrics, self.features, self.options.n, train.count)
        self.labels = drawing.condition.labels(self.options.n)
        refuse_unlabelled(self.options.metrics, "the run", self.labels, self.features)
        self.features.width(train.size)
        log_cost(cost_of_real(train, self.features, self.outputs, data_dir))
        self.real = cached_features(train, self.features, self.outputs, data_dir)

    def scores(self, step: int, each_evaluation: Seen) -> dict[str, float]:
        """The values of all scores, by name; each_evaluation is called with every prediction."""
        n = self.options.n

        def batches(first: int) -> Iterator[np.ndarray]:
            for start in range(first, n, self.batch_size):
                drawn = self.drawing.draw_by_all(range(n)[start : start + self.batch_size], each_evaluation)
                yield self.drawing.kind.to_values(drawn).cpu().numpy()

        drawn = ImageSet(f"samples at step {step:,}", n, self.drawing.kind.size, "", batches, labels=self.labels)
        with tempfile.TemporaryDirectory() as folder:
            side = extract_features(drawn, self.features, self.outputs, Rows(Path(folder) / "features", {}))
            found = [values_only(compute_score(name, self.features, side, self.real)) for name in self.options.metrics]
        return {name: value for values in found for name, value in values.items()}

    def score(self, run: RunFolder, step: int, state: Callable[[], dict[str, Any]], each_evaluation: Seen) -> None:
        """Score, log, and keep a checkpoint with this state as the best one if none before it was better."""
        values = self.scores(step, each_evaluation)
        name, value = next(iter(values.items()))
        before = [score for at, score in score_by_step(run.path, name).items() if at < step]
        run.scalars(step, {SCORE_PREFIX + key: found for key, found in values.items()})
        sign = 1 if self.options.metrics[0] in LESS_IS_BETTER else -1
        best = all(sign * value <= sign * score for score in before)
        summary = ", ".join(f"{key} {found:.4g}" for key, found in values.items())
        kept = f", the best so far: {CHECKPOINTS}/{BEST}" if best else ""
        log.info(f"step {step:,}: {summary}{kept}")
        if best:
            checkpoint.write(run.checkpoints / BEST, step, state())
