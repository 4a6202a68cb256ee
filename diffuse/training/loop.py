"""The loop of a training: steps, and between them metrics, sample grids, scores and checkpoints, in this order."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffuse.data.images import to_float
from diffuse.mathematics.schedules import Schedule
from diffuse.options.schema import TrainConfig, plain
from diffuse.runs import checkpoint
from diffuse.runs.drawing import Drawing
from diffuse.runs.folder import RunFolder, as_yaml, grid_path
from diffuse.runs.pictures import forward_process, image_grid
from diffuse.runs.scalars import METRICS, SCORE_PREFIX, whole_lines
from diffuse.system.progress import Progress, log
from diffuse.system.randomness import ImageNoise
from diffuse.system.signals import Stop
from diffuse.training.forecast import Forecast
from diffuse.training.threads import ThreadChoice
from diffuse.training.trainer import Trainer

if TYPE_CHECKING:
    from diffuse.training.watching import Watcher


class NoTime(Exception):
    """A signal has come: who stops us waits for a checkpoint, not for pictures and scores."""


@dataclass(frozen=True)
class Training:
    """A trainer, with what it draws and how it is scored on the way; the config says how often.

    where: the device and the precision of the network there, in words.
    """

    config: TrainConfig
    trainer: Trainer
    drawing: Drawing
    watcher: "Watcher | None"
    threads: ThreadChoice
    where: str

    def run(self, folder: Path, deadline: float, recorded_threads: int | None = None) -> None:
        """Train into the folder until all steps are done, or time is up, or a signal asks to stop.

        recorded_threads: the number in the checkpoint that is continued from.

        A checkpoint comes after everything else that belongs to its step: what it does not know of will be done again.
        """
        config, trainer, start = self.config, self.trainer, self.trainer.step
        with (
            RunFolder(folder, start) as run,
            Progress("train", config.steps, "step", start, config.batch_size, "images") as progress,
            Stop() as stop,
        ):
            forecast = Forecast(trainer, config.steps, progress)
            self.before_first_step(run, stop)
            stop.obey()
            with progress.paused():
                self.threads.begin(recorded_threads)
            while trainer.step < config.steps:
                started = time.monotonic()
                trainer.advance()
                self.threads.after_step(time.monotonic() - started)
                progress.advance()
                forecast.after_step()
                stopping = time.monotonic() >= deadline or stop.signal is not None
                self.after_step(run, progress, stop, stopping)
                if stopping or stop.signal is not None:
                    break
            stop.obey()

    def before_first_step(self, run: RunFolder, stop: Stop) -> None:
        """What a new run begins with, or what there was no time for when this one was stopped."""
        start, steps = self.trainer.step, self.config.steps
        if start == 0:
            run.text("config", as_yaml(self.config))
            picture = forward_picture(self.trainer, self.drawing.denoiser.schedule)
            run.picture("forward_process", picture, 0, "forward_process.png")
            return
        if (start % self.config.images.every == 0 or start == steps) and not grid_path(run.path, start).exists():
            self.draw_grid(run, stop)
        if self.is_scored_at(start) and not is_scored(run.path, start):
            self.score(run, stop)

    def after_step(self, run: RunFolder, progress: Progress, stop: Stop, stopping: bool) -> None:
        """Report, draw, score and save, whatever is due."""
        config, trainer, step = self.config, self.trainer, self.trainer.step
        done = step == config.steps
        if step % config.log.every == 0 or done:
            trainer.refuse_failure()
            values = trainer.report()
            speed = progress.per_second_since_last_asked() * config.batch_size
            run.scalars(step, {**values, "images_per_second": speed})
            progress.tell({"loss": f"{values['loss']:.4f}"})
        if step % config.images.every == 0 or done:
            with progress.paused():
                trainer.refuse_failure()
                self.draw_grid(run, stop)
        if self.is_scored_at(step):
            with progress.paused():
                trainer.refuse_failure()
                self.score(run, stop)
        options = config.checkpoint
        milestone = checkpoint.is_milestone(step, options.milestone_every)
        due = step % options.every == 0 or milestone or done or stopping or stop.signal is not None
        if due or self.threads.wants_checkpoint:
            with progress.paused():
                trainer.refuse_failure()
                if not done:
                    self.threads.before_checkpoint()
                run.save_checkpoint(step, self.content(), options.keep, options.milestone_every)
                self.threads.change()

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds: the trainer's state, what sampling without the data set needs, and the threads."""
        kind = asdict(self.trainer.data.kind)
        return {"config": plain(self.config), "kind": kind, "threads": self.threads.next, **self.trainer.state()}

    def draw_grid(self, run: RunFolder, stop: Stop) -> None:
        """Draw a grid of samples, if there is time."""
        try:
            drawn = image_grid(self.drawing.draw(range(self.config.images.count), each_step=unless(stop)))
        except NoTime:
            return
        step = self.trainer.step
        run.picture("samples", drawn, step, grid_path(run.path, step).name)

    def is_scored_at(self, step: int) -> bool:
        """Whether samples of this step are scored."""
        every = self.config.eval.every
        return self.watcher is not None and every is not None and (step % every == 0 or step == self.config.steps)

    def score(self, run: RunFolder, stop: Stop) -> None:
        """Score samples and keep the best checkpoint, if there is time."""
        assert self.watcher
        try:
            self.watcher.score(run, self.trainer.step, self.content, unless(stop))
        except NoTime:
            pass
        except (OSError, torch.OutOfMemoryError) as error:  # not a reason to lose the training
            log.warning(f"the samples of step {self.trainer.step:,} could not be scored: {error}")


def unless(stop: Stop) -> Callable[[Tensor], None]:
    """What raises NoTime once a signal has come."""

    def check(_: Tensor) -> None:
        if stop.signal:
            raise NoTime

    return check


def forward_picture(trainer: Trainer, schedule: Schedule) -> Tensor:
    """What the network is asked to undo: eight training images, from x_0 to x_T."""
    x0 = to_float(torch.from_numpy(trainer.data.train.images[:8]))
    return forward_process(schedule, x0, ImageNoise(trainer.seed, "forward", range(len(x0)))(x0))


def is_scored(folder: Path, step: int) -> bool:
    """Whether the samples of this step were scored before the run was stopped."""
    lines: list[Mapping[str, Any]] = [values for _, values in whole_lines(folder / METRICS)]
    return any(values["step"] == step and any(name.startswith(SCORE_PREFIX) for name in values) for values in lines)
