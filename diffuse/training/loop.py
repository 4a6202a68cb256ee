"""The loop of a training: steps, and between them metrics, what is shown, scores and checkpoints, in this order."""

import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffuse.data.images import to_float
from diffuse.networks.norm import norm_of
from diffuse.options.schema import TrainConfig, plain
from diffuse.runs.checkpoint_files import is_milestone
from diffuse.runs.folder import RunFolder, grid_path
from diffuse.runs.pictures import forward_process
from diffuse.runs.record import as_yaml
from diffuse.runs.scalars import SCORE_PREFIX, read_metrics
from diffuse.system.progress import Progress, log
from diffuse.system.randomness import ImageNoise
from diffuse.system.signals import Stop
from diffuse.training.fitting import choose_norm, does_not_fit
from diffuse.training.forecast import Forecast
from diffuse.training.shown import Shown
from diffuse.training.threads import ThreadChoice
from diffuse.training.trainer import Trainer
from diffuse.training.watching import Watcher


class NoTime(Exception):
    """A signal asks to stop: there is time to write a checkpoint, but not for pictures and scores."""


@dataclass(frozen=True)
class Training:
    """A training: the trainer, what is shown of its steps, what scores its samples; the config says how often.

    where: the device and the network's precision on it.
    """

    config: TrainConfig
    trainer: Trainer
    shown: Shown
    watcher: Watcher | None
    threads: ThreadChoice
    where: str

    def run(self, folder: Path, deadline: float, recorded: Mapping[str, Any], smaller: str = "") -> None:
        """Train into the folder until all steps are done, time is up, or a signal asks to stop.

        recorded: the content of the checkpoint that training continues from; smaller: a command line that trains in
        less time, for a CPU on which this training would take hours.

        The checkpoint of a step is saved after everything else of that step. Resuming does again what came after it.
        """
        config, trainer, start = self.config, self.trainer, self.trainer.step
        with (
            closing(RunFolder(folder, start, self.shown.name)) as run,
            Progress("train", config.steps, "step", start, config.batch_size, "images") as progress,
            Stop() as stop,
        ):
            self.before_first_step(run, stop)
            stop.obey()
            with progress.paused():
                choose_norm(trainer, recorded.get("norm"))
                self.threads.begin(recorded.get("threads"))
            forecast = Forecast(trainer, config.steps, progress, smaller)
            while trainer.step < config.steps:
                started = time.monotonic()
                try:
                    trainer.advance()
                except torch.OutOfMemoryError as error:
                    raise does_not_fit(trainer) from error
                self.threads.after_step(time.monotonic() - started)
                progress.advance()
                forecast.after_step()
                if self.after_step(run, progress, stop, deadline):
                    break
            stop.obey()

    def before_first_step(self, run: RunFolder, stop: Stop) -> None:
        """Show a new run's config and forward process; show and score what a stopped run had no time for."""
        trainer, start = self.trainer, self.trainer.step
        if start == 0:
            run.show_config(as_yaml(self.config))
            x0 = to_float(torch.from_numpy(trainer.data.train.images[:8]))
            noise = ImageNoise(trainer.seed, "forward", range(len(x0)))(x0)
            picture = forward_process(trainer.time_sampling.schedule, x0, noise)
            run.picture("schedule/forward_process", picture, 0, "forward_process.png")  # after the samples
            return
        if self.is_due(self.config.images.every) and not grid_path(run.path, start).exists():
            self.show(run, stop)
        if self.is_due(self.config.eval.every) and not is_scored(run.path, start):
            self.score(run, stop)

    def is_due(self, every: int | None) -> bool:
        """Whether this step is a multiple of `every`, or the last one; never for None."""
        return every is not None and (self.trainer.step % every == 0 or self.trainer.step == self.config.steps)

    def after_step(self, run: RunFolder, progress: Progress, stop: Stop, deadline: float) -> bool:
        """Report, show, score and save what is due. Returns whether to stop, which it does only at a saved step."""
        config, trainer, step, options = self.config, self.trainer, self.trainer.step, self.config.checkpoint
        if self.is_due(config.log.every):
            values = trainer.report()
            speed = progress.per_second_since_last_asked() * config.batch_size
            run.scalars(step, {**values, "images_per_second": speed})
            progress.note = f"loss {values['loss']:.4f}"
        with progress.paused():
            if self.is_due(config.images.every):
                trainer.refuse_failure()
                self.show(run, stop)
            if self.is_due(config.eval.every):
                trainer.refuse_failure()
                self.score(run, stop)
            time_is_up = time.monotonic() >= deadline
            due = self.is_due(options.every) or is_milestone(step, options.milestone_every)
            if not (due or time_is_up or stop.signal is not None or self.threads.wants_checkpoint):
                return False
            trainer.refuse_failure()
            if step < config.steps and not time_is_up and stop.signal is None:
                self.threads.before_checkpoint()
            run.save_checkpoint(step, self.content(), options.keep, options.milestone_every)
            self.threads.change()
            return time_is_up or stop.signal is not None

    def content(self) -> dict[str, Any]:
        """The content of a checkpoint: the trainer's state, how steps are computed, and the config and kind of images.

        With the last two, sampling does not need the data set.
        """
        computed = {"threads": self.threads.next, "norm": norm_of(self.trainer.net)}
        described = {"config": plain(self.config), "kind": asdict(self.trainer.data.kind)}
        return {**described, **computed, **self.trainer.state()}

    def show(self, run: RunFolder, stop: Stop) -> None:
        """Write the picture of this step, and the values in it as scalars, unless a signal asks to stop."""
        step = self.trainer.step
        with suppress(NoTime):
            picture, values = self.shown.show(partial(check_time, stop))
            if values:
                run.scalars(step, {SCORE_PREFIX + name: value for name, value in values.items()})
                log.info(f"step {step:,}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
            run.picture(self.shown.name, picture, step, grid_path(run.path, step).name)

    def score(self, run: RunFolder, stop: Stop) -> None:
        """Score samples and keep the best checkpoint, unless a signal asks to stop."""
        assert self.watcher
        try:
            with suppress(NoTime):
                self.watcher.score(run, self.trainer.step, self.content, partial(check_time, stop))
        except (OSError, torch.OutOfMemoryError) as error:  # not a reason to lose the training
            log.warning(f"the samples of step {self.trainer.step:,} could not be scored: {error}")


def check_time(stop: Stop, found: object) -> None:
    """Raise NoTime if a signal has come; called after every call of the network."""
    if stop.signal:
        raise NoTime


def is_scored(folder: Path, step: int) -> bool:
    """Whether the samples of this step are scored in the run's metrics."""
    return any(line["step"] == step and name.startswith(SCORE_PREFIX) for line in read_metrics(folder) for name in line)
