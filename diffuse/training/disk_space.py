"""The disk space that the checkpoints of a training need, known before it begins."""

import math
import shutil
from pathlib import Path

from diffuse.runs.averages import kept_in
from diffuse.runs.checkpoint_files import CHECKPOINTS, all_in
from diffuse.system.errors import UserError
from diffuse.system.files import format_bytes
from diffuse.training.setup import Training
from diffuse.training.trainer import Trainer

BYTES_PER_TENSOR = 300  # in a checkpoint, beside its values: its name, type and shape


def most_checkpoints(training: Training, stops: int = 0) -> int:
    """The largest number of checkpoints on disk at once: those kept, the one being written, and all milestones.

    Each stop may add one, up to keep + 1. The best one by a score is a copy.
    """
    steps, options = training.config.steps, training.config.checkpoint
    milestones = steps // options.milestone_every if options.milestone_every else 0
    best = 2 if training.watcher else 0  # with the one that replaces it
    return min(math.ceil(steps / options.every) + stops, options.keep + 1) + milestones + best


def free_space(folder: Path) -> int:
    """The free bytes on the disk of a folder, which may not exist yet."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def refuse_small_disk(training: Training, folder: Path) -> None:
    """Raise UserError where the disk has no room for the checkpoints that are still to come."""
    most, size = most_checkpoints(training), checkpoint_bytes(training.trainer)
    present = sum(path.stat().st_size for path in (*all_in(folder / CHECKPOINTS), *kept_in(folder)))
    needed, free = max(0, size * most + all_snapshots(training) - present), free_space(folder.absolute())
    if needed > free:
        fewer = ", raise checkpoint.milestone_every" if training.config.checkpoint.milestone_every else ""
        raise UserError(
            f"the checkpoints need {format_bytes(needed)} more ({most} of {format_bytes(size)}), "
            f"and the disk of {folder} has {format_bytes(free)} free.\n"
            f"Make room, lower checkpoint.keep{fewer} or choose a smaller unet"
        )


def cost_on_disk(training: Training, folder: Path) -> str:
    """A line about the disk space of the checkpoints."""
    size, free = checkpoint_bytes(training.trainer), format_bytes(free_space(folder.absolute()))
    total = format_bytes(size * most_checkpoints(training, stops=1) + all_snapshots(training))
    averages = f" and averages of {format_bytes(all_snapshots(training))}" if all_snapshots(training) else ""
    return f"checkpoints of {format_bytes(size)}{averages}, {total} on disk at most, {free} free"


def all_snapshots(training: Training) -> int:
    """The size of all averages that are kept for after the training."""
    return snapshot_bytes(training.trainer) * training.config.ema.snapshots


def checkpoint_bytes(trainer: Trainer) -> int:
    """The approximate size of a checkpoint in bytes: weights, averages, AdamW's moments and step, in a zip file."""
    weights, count = trainer.net.state_dict().values(), len(trainer.averages)
    return (4 + count) * sum(weight.nbytes for weight in weights) + (5 + count) * len(weights) * BYTES_PER_TENSOR


def snapshot_bytes(trainer: Trainer) -> int:
    """The approximate size of a file of averages, in half precision."""
    return len(trainer.averages) * sum(weight.nbytes // 2 for weight in trainer.net.state_dict().values())
