"""A run folder: one training, explained by what lies in it.

config.yaml                  the record of what was asked for; resuming reads it and nothing of today's YAML
train.log  .hydra/           what was typed each time and what happened; what was typed last
metrics.jsonl  tensorboard/  every scalar, twice: for scripts and for eyes
images/                      the forward process, and grids from the EMA weights, the same noise each time
checkpoints/                 step_00001000.pt ..., last.pt links to the newest; best.pt, by the first of eval.metrics
hparams/                     for TensorBoard: what was chosen and the final values
failure.pt                   the step at which training stopped with a NaN or infinite loss, to be done again
.lock                        held by the process that trains here
samples/  eval/              a folder for each call of `diffuse sample` and `diffuse eval`
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from diffuse.options.build import with_defaults
from diffuse.options.schema import TrainConfig, flat, groups, may_change, plain, stored_config
from diffuse.runs import checkpoint
from diffuse.runs.pictures import save_png
from diffuse.runs.scalars import METRICS, forget_after, whole_lines
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import (
    OUTPUTS,
    RECORD,
    SWEEP_RECORD,
    flush_file,
    flush_folder,
    hold_lock,
    make_folder,
    remove_leftovers,
    write_atomic,
)

IMAGES = "images"
KEYS_LISTED, VALUE_LENGTH = 8, 60  # in a message


class RunFolder:
    """The folder of a training run, open for writing from `step` on. Use as a context."""

    def __init__(self, path: Path, step: int = 0):
        self.path = path
        self.checkpoints = path / checkpoint.FOLDER
        self._metrics, events = path / METRICS, path / "tensorboard"
        if self._metrics.exists():
            forget_after(self._metrics, step)
        if step == 0:
            shutil.rmtree(events, ignore_errors=True)  # of a run that was stopped before its first checkpoint
        self._tensorboard = SummaryWriter(str(events), purge_step=step or None)
        if step:
            self._show_again(step)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._tensorboard.close()

    def _show_again(self, step: int) -> None:
        """Give TensorBoard what belongs to the step that is continued from: a crash may have lost some of it."""
        for _, line in whole_lines(self._metrics):
            if line.pop("step") == step:
                self._show_scalars(step, line)
        if (path := grid_path(self.path, step)).exists():
            with Image.open(path) as image:
                self._tensorboard.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one line to metrics.jsonl and the same values to TensorBoard."""
        new = not self._metrics.exists()
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            flush_folder(self.path)
        self._show_scalars(step, values)

    def _show_scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()

    def picture(self, name: str, picture: Tensor, step: int, file_name: str) -> None:
        """Write images/file_name and show the same picture in TensorBoard."""
        save_png(self.path / IMAGES / file_name, picture, survives_power_cut=True)
        self._tensorboard.add_image(name, picture, step)

    def text(self, name: str, text: str) -> None:
        """Show a text, as it is, in TensorBoard."""
        self._tensorboard.add_text(name, "    " + text.replace("\n", "\n    "), 0)

    def save_checkpoint(self, step: int, content: Mapping[str, Any], keep: int, milestone_every: int | None) -> None:
        """Save a checkpoint, once everything up to its step is on the disk."""
        self._tensorboard.flush()
        for events in (self.path / "tensorboard").iterdir():
            flush_file(events)
        checkpoint.save(self.checkpoints, step, content, keep, milestone_every)


def grid_path(folder: Path, step: int) -> Path:
    """The file that the sample grid of a step is written to."""
    return folder / IMAGES / f"step_{step:08d}.png"


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is made if need be. Raises UserError at once if another process has it."""

    def refuse() -> None:
        raise UserError(
            f"{folder} is in use: another process is training there (its train.log says which).\n"
            "Wait until it ends, or stop it; a killed process keeps no folder"
        )

    make_folder(folder)
    with hold_lock(folder / ".lock", if_taken=refuse):
        for place in (folder, folder / IMAGES, folder / checkpoint.FOLDER, folder / ".hydra"):
            remove_leftovers(place)
        yield


def is_run(folder: Path) -> bool:
    """Whether a run was begun in this folder. Raises UserError where it holds something else."""
    if (folder / RECORD).is_file():
        return True
    if folder.exists() and (not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir())):
        kind = "is not a run of this program"
        if (folder / checkpoint.FOLDER).exists():
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
    """Raise UserError where there are no checkpoints although there must have been some: nothing is overwritten."""
    lines = whole_lines(folder / METRICS)
    reached = lines[-1][1]["step"] if lines else 0
    if reached > most_steps_between:
        raise UserError(
            f"{folder} has reached step {reached}, and its checkpoints are gone from {folder / checkpoint.FOLDER}.\n"
            "Bring them back to continue, or choose another name= to begin again"
        )


def write_record(folder: Path, config: TrainConfig) -> None:
    """Write config.yaml: every value, in the order in which the keys are declared."""
    write_atomic(folder / RECORD, lambda file: file.write(as_yaml(config)))


def read_record(folder: Path) -> TrainConfig:
    """The config that the run in this folder began with."""
    path = folder / RECORD
    if not folder.is_dir():
        raise UserError(f"resume={folder} is not a folder; give the folder of a run")
    if not path.is_file():
        raise UserError(f"resume={folder} is not the folder of a run: it has no {RECORD}")
    try:
        return stored_config(OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]
    except Exception as error:  # a damaged file raises errors of many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} does not hold the config of a run: {reason}\n"
            "Bring it back as it was; every checkpoint of the run holds it too, under 'config'"
        ) from error


def as_yaml(config: TrainConfig) -> str:
    """The config as YAML, in its own order."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(config)))


def shortened(value: Any) -> str:
    """A value of a config, or its beginning: it may be a table of betas."""
    text = str(value)
    return text if len(text) <= VALUE_LENGTH else f"{text[:VALUE_LENGTH]} ..."


def compared(config: TrainConfig) -> dict[str, Any]:
    """Every value by its dotted key, options that a node does not mention included."""
    values = plain(config)
    nodes = {name: with_defaults(values[name], name, config.trust) for name in groups("train") if name in values}
    return flat({**values, **nodes})


def refuse_changes(record: TrainConfig, config: TrainConfig, folder: Path) -> None:
    """Raise UsageError where continuing with this config would not be the run that was begun."""
    then, now = compared(record), compared(config)
    changed = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key) and not may_change(key)]
    if changed == ["name"]:
        raise UsageError(f"resume={folder} continues that run under its own name; leave name={config.name} out")
    if changed:
        listed = ", ".join(
            f"{key} (was {shortened(then.get(key))}, now {shortened(now.get(key))})" for key in changed[:KEYS_LISTED]
        )
        more = f" and {len(changed) - KEYS_LISTED} more" if changed[KEYS_LISTED:] else ""
        raise UsageError(
            f"{folder} was begun with another config and cannot continue with this one: {listed}{more}.\n"
            "Leave these keys as they were, or choose another name="
        )
    if config.steps != record.steps and record.optim.decay != "none":
        raise UsageError(
            f"steps cannot change from {record.steps} to {config.steps}: with optim.decay={record.optim.decay} the "
            "learning rate of every step depends on it; choose another name= for a new run"
        )
    if config.steps < record.steps:
        raise UsageError(
            f"steps can grow from {record.steps} when a run is continued, not shrink to {config.steps}; choose "
            "another name="
        )
