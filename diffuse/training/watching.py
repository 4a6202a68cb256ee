"""Scores of the EMA weights while training: a few samples now and then, a curve, and the best checkpoint kept."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.data.images import to_uint8
from diffuse.options.build import build_with
from diffuse.options.score_names import LESS_IS_BETTER
from diffuse.runs import checkpoint
from diffuse.runs.folder import Run
from diffuse.runs.scalars import SCORES as PREFIX
from diffuse.runs.scalars import scores_so_far
from diffuse.scoring.feature_rows import Rows
from diffuse.scoring.features import Features
from diffuse.scoring.imagesets import ImageSet, of_split, refuse_no_pictures
from diffuse.scoring.sample_scores import described, described_once, needed, refuse_too_few, scored, values_only
from diffuse.system.files import folder_of_data
from diffuse.system.progress import log
from diffuse.training.trainer import Trainer

BEST, IN_FLIGHT = "best.pt", 256  # images, if the training itself has as many


class Watcher:
    """Draws eval.n images from the EMA weights, always from the same noise, and scores them against training images.

    Values of few images serve to compare steps of one run, and runs with the same keys; for any other purpose there is
    `diffuse eval`.
    """

    def __init__(self, trainer: Trainer):
        config = trainer.config
        self.trainer, self.options = trainer, config["eval"]
        refuse_no_pictures(trainer.data.kind)
        data_dir = folder_of_data(config["data_dir"])
        given = {"device": trainer.device, "data": lambda: trainer.data, "data_dir": data_dir}
        self.features: Features = build_with(config["features"], "features", config["trust"], **given)
        self.outputs = needed(self.options["metrics"], self.features)
        refuse_too_few(self.options["metrics"], self.options["n"], len(trainer.data.train.images))
        self.features.width(trainer.data.kind.size)
        self.in_flight = min(IN_FLIGHT, max(config["batch_size"], config["images"]["count"]))
        real = of_split(trainer.data.kind, "train", trainer.data.train)
        self.real = described_once(real, self.features, self.outputs, data_dir)

    def is_due(self, step: int) -> bool:
        return step % self.options["every"] == 0 or step == self.trainer.config["steps"]

    def scores(self, each_step: Callable[[], None]) -> dict[str, float]:
        """The values of all scores, by name; each_step is called between the steps of the sampler."""
        n = self.options["n"]

        def batches(first: int) -> Iterator[np.ndarray]:
            for start in range(first, n, self.in_flight):
                numbers = range(start, min(start + self.in_flight, n))
                yield to_uint8(self.trainer.draw(numbers, each_step)).cpu().numpy()

        drawn = ImageSet(f"samples at step {self.trainer.step:,}", n, self.trainer.data.kind.size, "", batches)
        with tempfile.TemporaryDirectory() as folder:
            side = described(drawn, self.features, self.outputs, Rows(Path(folder) / "features", {}))
            found: dict[str, Any] = {}
            for name in self.options["metrics"]:
                found |= scored(name, self.features, side, self.real)
        return values_only(found)

    def look(self, run: Run, each_step: Callable[[], None]) -> None:
        """Score, log, and keep the checkpoint of this step as the best one if none before it was better."""
        step, values = self.trainer.step, self.scores(each_step)
        name, value = next(iter(values.items()))
        before = [score for at, score in scores_so_far(run.folder, name).items() if at < step]
        run.scalars(step, {PREFIX + key: found for key, found in values.items()})
        told = ", ".join(f"{key} {found:.4g}" for key, found in values.items())
        sign = 1 if self.options["metrics"][0] in LESS_IS_BETTER else -1
        best = all(sign * value <= sign * score for score in before)
        log.info(f"step {step:,}: {told}" + (f", the best so far: {checkpoint.FOLDER}/{BEST}" if best else ""))
        if best:
            checkpoint.write(run.checkpoints / BEST, step, self.trainer.state())
