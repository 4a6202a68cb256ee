"""A run folder: everything about one training.

config.yaml                  the config that the run began with; resuming reads it and not the YAML files of today
train.log  .hydra/           every command line and its messages; the last command line
history.jsonl                every command on the run, in order, with the code and the machine that it ran on
metrics.jsonl  tensorboard/  every scalar, twice: for scripts, and for people with options and pictures
images/                      the forward process, and grids from the EMA weights, the same noise each time; of a
                             classifier its accuracy by noise level
checkpoints/                 step_00001000.pt ..., last.pt links to the newest; best.pt, by the first of eval.metrics
averages/                    with ema.lengths: power averages of the weights, kept for ema.length after the training
failure.pt                   the step at which training stopped with a NaN or infinite loss, to compute it again
.lock                        held by the process that trains here
samples/  eval/              a folder for each call of `diffuse sample` and `diffuse eval`
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from diffuse.runs import averages, checkpoint
from diffuse.runs.checkpoint_files import CHECKPOINTS
from diffuse.runs.hparams import EVENTS, tag
from diffuse.runs.pictures import save_png
from diffuse.runs.scalars import METRICS_FILE, forget_after, read_metrics
from diffuse.system.errors import UserError
from diffuse.system.files import (
    OUTPUTS,
    RECORD,
    SWEEP_RECORD,
    flush,
    hold_lock,
    remove_leftovers,
)
from diffuse.system.progress import log

IMAGES = "images"  # the folder in a run


class RunFolder:
    """The folder of a training run, open for writing from `step` on, until it is closed.

    shown  the name in TensorBoard of the pictures that show a step
    """

    def __init__(self, path: Path, step: int = 0, shown: str = "samples"):
        self.path, self.shown = path, shown
        self.checkpoints = path / CHECKPOINTS
        self._metrics, self._events = path / METRICS_FILE, path / EVENTS
        if self._metrics.exists():
            forget_after(path, step)
        averages.forget_after(path, step)
        if step == 0:
            shutil.rmtree(self._events, ignore_errors=True)  # of a run that was stopped before its first checkpoint
        self._tensorboard = SummaryWriter(str(self._events), purge_step=step or None)
        if step:
            self._show_again(step)

    def close(self) -> None:
        self._tensorboard.close()

    def _show_again(self, step: int) -> None:
        """Write scalars and picture of the last saved step to TensorBoard: a crash may have lost some of them."""
        for line in read_metrics(self.path):
            if line.pop("step") == step:
                self._show_scalars(step, line)
        if (path := grid_path(self.path, step)).exists():
            try:
                with Image.open(path) as image:
                    self._tensorboard.add_image(self.shown, np.asarray(image.convert("RGB")), step, dataformats="HWC")
            except (OSError, SyntaxError, ValueError) as error:  # Pillow has all of them for a damaged file
                log.warning(f"{path} is damaged, and is not shown in TensorBoard again: {error}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one line to metrics.jsonl and the same values to TensorBoard."""
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        flush(self._metrics)
        flush(self.path)  # where the file is new
        self._show_scalars(step, values)

    def _show_scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._tensorboard.add_scalar(tag(name), value, step)
        self._tensorboard.flush()

    def picture(self, name: str, picture: Tensor, step: int, file_name: str) -> None:
        """Write images/file_name and show the same picture in TensorBoard."""
        save_png(self.path / IMAGES / file_name, picture, survives_power_cut=True)
        self._tensorboard.add_image(name, picture, step)

    def show_config(self, config: str) -> None:
        """Show a config as YAML in TensorBoard; indented, Markdown leaves it as it is."""
        self._tensorboard.add_text("config", indent(config, "    "), 0)

    def save_checkpoint(self, step: int, content: Mapping[str, Any], keep: int, milestone_every: int | None) -> None:
        """Save a checkpoint, after everything up to its step is on the disk."""
        self._tensorboard.flush()
        for events in self._events.iterdir():
            flush(events)
        checkpoint.save(self.checkpoints, step, content, keep, milestone_every)


def grid_path(folder: Path, step: int) -> Path:
    """The file of the picture that shows a step: a sample grid, or a classifier's accuracy."""
    return folder / IMAGES / f"step_{step:08d}.png"


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Make a run folder if need be, and hold its lock. Raises UserError at once if another process holds it."""
    in_use = f"{folder} is in use: another process is training there (its train.log says which).\n"
    with hold_lock(folder / ".lock", f"{in_use}Wait until it ends, or stop it; a killed process holds no lock"):
        for place in (folder, folder / IMAGES, folder / CHECKPOINTS, folder / ".hydra"):
            remove_leftovers(place)
        yield


def is_run(folder: Path) -> bool:
    """Whether a run was begun in this folder. Raises UserError where it holds something else."""
    if (folder / RECORD).is_file():
        return True
    if folder.exists() and (not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir())):
        kind = "is not a run of this program"
        if (folder / CHECKPOINTS).exists():
            kind = f"is a run that has lost its {RECORD}"
        elif (folder / SWEEP_RECORD).exists():
            kind = "holds a sweep"
        raise UserError(f"{folder} exists already and {kind}: choose another name=")
    return False


def refuse_inside_others(folder: Path) -> None:
    """Raise UserError where a new run would lie inside another run, or inside a sweep that it is not a job of."""
    for parent in takewhile(lambda parent: parent != OUTPUTS, folder.parents):
        if any((parent / record).exists() for record in (RECORD, SWEEP_RECORD)):
            raise UserError(f"{folder} would lie inside {parent}, which is a run or a sweep: choose another name=")


def refuse_lost_checkpoints(folder: Path, most_steps_between: int) -> None:
    """Raise UserError where a run without checkpoints must have had some: its metrics are not overwritten."""
    reached = max((line["step"] for line in read_metrics(folder)), default=0)
    if reached > most_steps_between:
        raise UserError(
            f"{folder} has reached step {reached}, and its checkpoints are gone from "
            f"{folder / CHECKPOINTS}.\nPut them back to continue, or choose another name= to begin again"
        )
