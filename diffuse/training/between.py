"""Between two steps of a training: metrics, what is shown, scores and checkpoints, in this order.

Of several processes the leader does all of it, and the others draw for it meanwhile. Before, they agree on whether
there is anything to do: a signal may have reached one of them alone.
"""

import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from diffuse.data.images import to_float
from diffuse.runs import averages
from diffuse.runs.checkpoint_files import is_milestone
from diffuse.runs.folder import RunFolder, grid_path
from diffuse.runs.pictures import forward_process
from diffuse.runs.record import as_yaml
from diffuse.runs.scalars import SCORE_PREFIX, read_metrics
from diffuse.system.errors import UserError
from diffuse.system.progress import Progress, log
from diffuse.system.randomness import ImageNoise
from diffuse.system.signals import Stop
from diffuse.training.setup import Training


class NoTime(Exception):
    """A signal asks to stop: there is time to write a checkpoint, but not for pictures and scores."""


class Between:
    """What happens between the steps of a training. run: its folder, which the leader alone has."""

    def __init__(self, training: Training, run: RunFolder | None, stop: Stop, deadline: float):
        self.training, self.stop, self.deadline = training, stop, deadline
        self.trainer, self.config, self.processes = training.trainer, training.config, training.processes
        self._run = run
        self.tasks = {**training.shown.tasks, "fingerprint": self.trainer.fingerprint}

    @property
    def run(self) -> RunFolder:
        """The folder, where this process leads."""
        assert self._run
        return self._run

    def before_first_step(self) -> bool:
        """Show a run's beginning, or what a stopped one had no time for. Returns whether to stop."""
        return self.processes.led(self.begin, self.tasks)

    def begin(self) -> bool:
        """Show a new run's config and forward process; show and score what a stopped run had no time for."""
        run, trainer, start, is_due = self.run, self.trainer, self.trainer.step, self.training.is_due
        if start == 0:
            run.show_config(as_yaml(self.config))
            x0 = to_float(torch.from_numpy(trainer.data.train.images[:8]))
            noise = ImageNoise(trainer.seed, "forward", range(len(x0)))(x0)
            picture = forward_process(trainer.time_sampling.schedule, x0, noise)
            run.picture("schedule/forward_process", picture, 0, "forward_process.png")  # after the samples
        else:
            if is_due(self.config.images.every) and not grid_path(run.path, start).exists():
                self.show()
            if is_due(self.config.eval.every) and not is_scored(run.path, start):
                self.score()
        return self.stop.signal is not None

    def after_step(self, progress: Progress) -> bool:
        """Report, show, score and save what is due. Returns whether to stop, which it does only at a saved step."""
        asked, config = self.agreed(), self.config
        every = (config.log.every, config.images.every, config.eval.every)
        if not (asked or self.saves() or self.keeps_averages() or any(map(self.training.is_due, every))):
            return False
        return self.processes.led(partial(self.pause, progress), self.tasks)

    def agreed(self) -> bool:
        """Whether any process has a reason to stop, or to save; a signal to one of them is then one to all."""
        late, threads = time.monotonic() >= self.deadline, self.training.threads
        signal, other = self.processes.largest(self.stop.signal or 0, late or threads.wants_checkpoint)
        self.stop.take(signal)
        return bool(signal or other)

    def saves(self) -> bool:
        """Whether a checkpoint is due."""
        options = self.config.checkpoint
        return self.training.is_due(options.every) or is_milestone(self.trainer.step, options.milestone_every)

    def keeps_averages(self) -> bool:
        """Whether the power averages are to be kept, if there are any."""
        return bool(self.trainer.averages) and averages.is_due(
            self.trainer.step, self.config.steps, self.config.ema.snapshots
        )

    def pause(self, progress: Progress) -> bool:
        """What the leader does after a step."""
        config, trainer, step, threads = self.config, self.trainer, self.trainer.step, self.training.threads
        if self.training.is_due(config.log.every):
            values = trainer.report()
            speed = progress.per_second_since_last_asked() * config.batch_size
            self.run.scalars(step, {**values, "images_per_second": speed})
            progress.note = f"loss {values['loss']:.4f}"
        if self.keeps_averages():
            trainer.refuse_failure()
            found = [averages.Average(length, each.net.state_dict()) for length, each in trainer.averages.items()]
            averages.write(self.run.path, step, found)
        with progress.paused():
            if self.training.is_due(config.images.every):
                trainer.refuse_failure()
                self.show()
            if self.training.is_due(config.eval.every):
                trainer.refuse_failure()
                self.score()
            time_is_up = time.monotonic() >= self.deadline
            stops = time_is_up or self.stop.signal is not None
            if not (self.saves() or stops or threads.wants_checkpoint):
                return False
            trainer.refuse_failure()
            self.refuse_other_weights()
            if step < config.steps and not stops:
                threads.before_checkpoint()
            options = config.checkpoint
            self.run.save_checkpoint(step, self.training.content(), options.keep, options.milestone_every)
            threads.change()
            return time_is_up or self.stop.signal is not None

    def refuse_other_weights(self) -> None:
        """Raise UserError where a process has other weights than the leader: what it computes is wrong."""
        if self.processes.count == 1:
            return
        first, *others = self.processes.of_each("fingerprint", self.trainer.fingerprint)
        if wrong := [str(rank) for rank, found in enumerate(others, start=1) if found != first]:
            raise UserError(
                f"the weights of rank {', '.join(wrong)} differ from those of rank 0 at step {self.trainer.step}: a "
                "device or a connection computes wrongly.\nThe checkpoints before it are as they should be; look at "
                "that machine, and continue with resume="
            )

    def show(self) -> None:
        """Write the picture of this step, and the values in it as scalars, unless a signal asks to stop."""
        step, shown = self.trainer.step, self.training.shown
        with suppress(NoTime):
            picture, values = shown.show(self.check_time)
            if values:
                self.run.scalars(step, {SCORE_PREFIX + name: value for name, value in values.items()})
                log.info(f"step {step:,}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
            self.run.picture(shown.name, picture, step, grid_path(self.run.path, step).name)

    def score(self) -> None:
        """Score samples and keep the best checkpoint, unless a signal asks to stop."""
        training = self.training
        assert training.watcher
        try:
            with suppress(NoTime):
                training.watcher.score(self.run, self.trainer.step, training.content, self.check_time)
        except (OSError, torch.OutOfMemoryError) as error:  # not a reason to lose the training
            log.warning(f"the samples of step {self.trainer.step:,} could not be scored: {error}")

    def check_time(self, found: object) -> None:
        """Raise NoTime if a signal has come; called after every call of the network."""
        if self.stop.signal:
            raise NoTime


def is_scored(folder: Path, step: int) -> bool:
    """Whether the samples of this step are scored in the run's metrics."""
    return any(line["step"] == step and name.startswith(SCORE_PREFIX) for line in read_metrics(folder) for name in line)
