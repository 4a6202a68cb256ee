"""The loop of a training: its steps, which several processes take together."""

import math
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from diffuse.networks.norm import use_norm
from diffuse.runs.folder import RunFolder
from diffuse.system.progress import Progress
from diffuse.system.signals import Stop
from diffuse.training.between import Between
from diffuse.training.fitting import choose_norm, does_not_fit, fits
from diffuse.training.forecast import Forecast
from diffuse.training.setup import Training
from diffuse.training.trainer import NotFinite


def lead(training: Training, folder: Path, deadline: float, recorded: Mapping[str, Any], smaller: str = "") -> None:
    """Train into the folder until all steps are done, time is up, or a signal asks to stop.

    recorded: the content of the checkpoint that training continues from; smaller: a command line that trains in less
    time, for a CPU on which this training would take hours.

    The checkpoint of a step is saved after everything else of that step. Resuming does again what came after it.
    """
    with closing(RunFolder(folder, training.trainer.step, training.shown.name)) as run, Stop() as stop:
        with training.processes.in_step("train", agreed=NotFinite):
            take_steps(training, Between(training, run, stop, deadline), recorded, smaller)
        stop.obey()


def follow(training: Training, recorded: Mapping[str, Any]) -> None:
    """Take the same steps in a process that does not lead."""
    with Stop() as stop, suppress(NotFinite):
        take_steps(training, Between(training, None, stop, math.inf), recorded)


def take_steps(training: Training, between: Between, recorded: Mapping[str, Any], smaller: str = "") -> None:
    """All steps from here on, until one after which training stops."""
    config, trainer = training.config, training.trainer
    with Progress("train", config.steps, "step", trainer.step, config.batch_size, "images") as progress:
        if between.before_first_step():
            return
        with progress.paused():
            use_norm(trainer.net, training.processes.from_leader(choose_norm(trainer, recorded.get("norm"))))
            training.threads.begin(recorded.get("threads"))
        forecast = Forecast(trainer, config.steps, progress, smaller)
        stops = False
        while trainer.step < config.steps and not stops:
            started = time.monotonic()
            if not fits(trainer.advance):
                raise does_not_fit(trainer)
            training.threads.after_step(time.monotonic() - started)
            progress.advance()
            forecast.after_step()
            stops = between.after_step(progress)
