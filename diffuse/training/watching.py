"""Scores of the EMA weights while training: a few samples now and then, a curve, and the best checkpoint kept."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffuse.data.images import Dataset, to_uint8
from diffuse.options.build import build_with
from diffuse.options.keys import Node
from diffuse.options.schema import EvalWhileTraining
from diffuse.options.score_names import LESS_IS_BETTER
from diffuse.runs import checkpoint
from diffuse.runs.drawing import Drawing
from diffuse.runs.folder import RunFolder
from diffuse.runs.scalars import SCORE_PREFIX, scores_so_far
from diffuse.scoring.feature_rows import Rows
from diffuse.scoring.features import Features
from diffuse.scoring.imagesets import ImageSet, of_split, refuse_no_pictures
from diffuse.scoring.sample_scores import described, described_once, needed, refuse_too_few, scored, values_only
from diffuse.system.progress import log

BEST = "best.pt"


class Watcher:
    """Draws eval.n images from the EMA weights, always from the same noise, and scores them against training images.

    Values of few images serve to compare steps of one run, and runs with the same keys; for any other purpose there is
    `diffuse eval`. batch_size: the images in flight.
    """

    def __init__(
        self,
        options: EvalWhileTraining,
        features: Node,
        data: Dataset,
        data_dir: Path,
        drawing: Drawing,
        batch_size: int,
        trust: Sequence[str] = (),
    ):
        self.options, self.kind, self.drawing, self.batch_size = options, data.kind, drawing, batch_size
        refuse_no_pictures(data.kind)
        offered = {"device": drawing.device, "data": lambda: data, "data_dir": data_dir}
        self.features: Features = build_with(features, "features", trust, **offered)
        self.outputs = needed(options.metrics, self.features)
        refuse_too_few(options.metrics, options.n, len(data.train.images))
        self.features.width(data.kind.size)
        self.real = described_once(of_split(data.kind, "train", data.train), self.features, self.outputs, data_dir)

    def scores(self, step: int, each_step: Callable[[Tensor], object]) -> dict[str, float]:
        """The values of all scores, by name; each_step is called between the steps of the sampler."""
        n = self.options.n

        def batches(first: int) -> Iterator[np.ndarray]:
            for start in range(first, n, self.batch_size):
                numbers = range(start, min(start + self.batch_size, n))
                yield to_uint8(self.drawing.draw(numbers, each_step=each_step)).cpu().numpy()

        drawn = ImageSet(f"samples at step {step:,}", n, self.kind.size, "", batches)
        with tempfile.TemporaryDirectory() as folder:
            side = described(drawn, self.features, self.outputs, Rows(Path(folder) / "features", {}))
            found: dict[str, Any] = {}
            for name in self.options.metrics:
                found |= scored(name, self.features, side, self.real)
        return values_only(found)

    def score(
        self, run: RunFolder, step: int, state: Callable[[], dict[str, Any]], each_step: Callable[[Tensor], object]
    ) -> None:
        """Score, log, and keep a checkpoint with this state as the best one if none before it was better."""
        values = self.scores(step, each_step)
        name, value = next(iter(values.items()))
        before = [score for at, score in scores_so_far(run.path, name).items() if at < step]
        run.scalars(step, {SCORE_PREFIX + key: found for key, found in values.items()})
        sign = 1 if self.options.metrics[0] in LESS_IS_BETTER else -1
        best = all(sign * value <= sign * score for score in before)
        summary = ", ".join(f"{key} {found:.4g}" for key, found in values.items())
        log.info(f"step {step:,}: {summary}" + (f", the best so far: {checkpoint.FOLDER}/{BEST}" if best else ""))
        if best:
            checkpoint.write(run.checkpoints / BEST, step, state())
