"""What a training will cost: said before it begins, and once a few steps have been measured."""

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuse.runs import checkpoint
from diffuse.system.errors import UserError
from diffuse.system.files import size_in_words
from diffuse.system.progress import Progress, duration, log
from diffuse.training.trainer import Trainer

WARMING_STEPS, MEASURED_STEPS = 5, 25
# Networks that take seconds a step are measured on fewer steps than these.
WARMING_SECONDS, MEASURED_SECONDS = 5.0, 20.0


def most_checkpoints(config: Mapping[str, Any]) -> int:
    """The largest number of checkpoints on disk at once: those kept, the one being written, and all milestones.

    If the run is not stopped in between: each stop may add one, to keep + 1. The best one by a score is a copy.
    """
    steps, options = config["steps"], config["checkpoint"]
    every, milestone_every = options["every"], options["milestone_every"]
    milestones = steps // milestone_every if milestone_every else 0
    best = 2 if config["eval"]["every"] else 0  # and the one that takes its place
    return min(math.ceil(steps / every), options["keep"] + 1) + milestones + best


def free_space(folder: Path) -> int:
    """The bytes that are free where the folder is, or will be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def refuse_small_disk(trainer: Trainer, folder: Path) -> None:
    """Raise UserError where the disk under the folder cannot hold the checkpoints that are still to come."""
    size, most = trainer.checkpoint_bytes, most_checkpoints(trainer.config)
    present = sum(path.stat().st_size for path in checkpoint.all_in(folder / checkpoint.FOLDER))
    needed, free = max(0, size * most - present), free_space(folder.absolute())
    if needed > free:
        fewer = ", raise checkpoint.milestone_every" if trainer.config["checkpoint"]["milestone_every"] else ""
        raise UserError(
            f"the checkpoints need {size_in_words(needed)} more ({most} of {size_in_words(size)}), "
            f"and the disk of {folder} has {size_in_words(free)} free.\n"
            f"Make room, lower checkpoint.keep{fewer} or choose a smaller unet"
        )


def cost_on_disk(trainer: Trainer, folder: Path) -> str:
    """What the checkpoints take, in words."""
    size, most = trainer.checkpoint_bytes, most_checkpoints(trainer.config)
    room = f"{size_in_words(size * most)} on disk at most, {size_in_words(free_space(folder.absolute()))} free"
    return f"checkpoints of {size_in_words(size)}, {room}"


class Forecast:
    """Says once, from the first steps, how fast training goes, how long it will take and how much memory it needs."""

    def __init__(self, trainer: Trainer, progress: Progress):
        self.trainer, self.progress, self.steps = trainer, progress, trainer.config["steps"]
        self.first, self.began = trainer.step, time.monotonic()
        self.warm = self.said = False

    def look(self) -> None:
        """Call after every step."""
        if self.said:
            return
        done, seconds = self.trainer.step - self.first, time.monotonic() - self.began
        last = self.trainer.step == self.steps
        if not self.warm and (done >= WARMING_STEPS or seconds > WARMING_SECONDS) and not last:
            self.trainer.device.synchronize()
            self.progress.count_from_here()
            self.warm = True
        elif done >= MEASURED_STEPS or seconds > MEASURED_SECONDS or last:
            self.trainer.device.synchronize()
            self.say()
            self.said = True

    def say(self) -> None:
        """Speed, time left and memory, as measured so far."""
        left, rate = self.steps - self.trainer.step, self.progress.per_second()
        batch_size = self.trainer.config["batch_size"]
        memory = size_in_words(self.trainer.device.peak_memory())
        time_left = f"{left:,} steps will take about {duration(left / rate)}" if left else "all steps are done"
        log.info(f"{rate * batch_size:,.0f} images/s: {time_left}; peak memory {memory}")
