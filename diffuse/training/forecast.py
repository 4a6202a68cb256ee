"""What a training will cost: on disk before it begins, in time and memory after its first steps."""

import math
import shutil
import time
from pathlib import Path

from diffuse.options.schema import TrainConfig
from diffuse.runs import checkpoint
from diffuse.system.errors import UserError
from diffuse.system.files import format_bytes
from diffuse.system.progress import Progress, duration, log
from diffuse.training.trainer import Trainer

WARMING_STEPS, MEASURED_STEPS = 5, 25
# Networks that take seconds a step are measured on fewer steps than these.
WARMING_SECONDS, MEASURED_SECONDS = 5.0, 20.0


def most_checkpoints(config: TrainConfig) -> int:
    """The largest number of checkpoints on disk at once: those kept, the one being written, and all milestones.

    If the run is not stopped in between: each stop may add one, up to keep + 1. The best one by a score is a copy.
    """
    milestones = config.steps // config.checkpoint.milestone_every if config.checkpoint.milestone_every else 0
    best = 2 if config.eval.every else 0  # and the one that replaces it
    return min(math.ceil(config.steps / config.checkpoint.every), config.checkpoint.keep + 1) + milestones + best


def free_space(folder: Path) -> int:
    """The bytes that are free where the folder is, or will be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def refuse_small_disk(config: TrainConfig, size: int, folder: Path) -> None:
    """Raise UserError where the disk under the folder cannot hold the checkpoints, of `size` bytes, still to come."""
    most = most_checkpoints(config)
    present = sum(path.stat().st_size for path in checkpoint.all_in(folder / checkpoint.FOLDER))
    needed, free = max(0, size * most - present), free_space(folder.absolute())
    if needed > free:
        fewer = ", raise checkpoint.milestone_every" if config.checkpoint.milestone_every else ""
        raise UserError(
            f"the checkpoints need {format_bytes(needed)} more ({most} of {format_bytes(size)}), "
            f"and the disk of {folder} has {format_bytes(free)} free.\n"
            f"Make room, lower checkpoint.keep{fewer} or choose a smaller unet"
        )


def cost_on_disk(config: TrainConfig, size: int, folder: Path) -> str:
    """What the checkpoints, of `size` bytes each, take on disk, as a sentence."""
    total, free = format_bytes(size * most_checkpoints(config)), format_bytes(free_space(folder.absolute()))
    return f"checkpoints of {format_bytes(size)}, {total} on disk at most, {free} free"


class Forecast:
    """Says once, from the first steps, how fast training is, how long it will take and how much memory it needs."""

    def __init__(self, trainer: Trainer, steps: int, progress: Progress):
        self.trainer, self.progress, self.steps = trainer, progress, steps
        self.first, self.began = trainer.step, time.monotonic()
        self.warm = self.said = False

    def after_step(self) -> None:
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
        memory = format_bytes(self.trainer.device.peak_memory())
        time_left = f"{left:,} steps will take about {duration(left / rate)}" if left else "all steps are done"
        log.info(f"{rate * self.trainer.batch_size:,.0f} images/s: {time_left}; peak memory {memory}")
