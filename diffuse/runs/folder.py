"""A run folder: one training, explained by what lies in it.

config.yaml                  the record of what was asked for; resuming reads it and nothing of today's YAML
train.log  .hydra/           what was typed each time and what happened; what was typed last
metrics.jsonl  tensorboard/  every scalar, twice: for scripts and for eyes
images/                      the forward process, and grids from the EMA weights, the same noise each time
checkpoints/                 step_00001000.pt ..., last.pt links to the newest; best.pt, by the first of eval.metrics
hparams/                     for TensorBoard: what was chosen and the final values
failure.pt                   where training broke off for want of a finite number: that step, to be replayed
.lock                        held by the process that trains here
samples/  eval/              a folder for each time `diffuse sample` and `diffuse eval` were asked
"""

import json
import os
import shutil
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from diffuse.options.schema import SCHEMAS, checked
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
    locked,
    make_folder,
    remove_leftovers,
    write_whole,
)

IMAGES = "images"
NAMED = 8  # keys that a message lists
SHORT = 60  # letters of a value that it shows
# What may differ when a run is continued, since it changes no weight of the steps already done. That the images are
# the same, wherever they lie now, is held against a hash in the checkpoint.
FREE = (
    *("steps", "max_hours", "log.", "images.", "checkpoint.", "device.", "trust"),
    *("data_dir", "dataset.path", "dataset.test_path", "dataset.skip_bad", "eval.every"),
)


class Run:
    """The folder of a training run, open for writing from `step` on. Use as a context."""

    def __init__(self, folder: Path, step: int = 0):
        self.folder = folder
        self.checkpoints = folder / checkpoint.FOLDER
        self._metrics, events = folder / METRICS, folder / "tensorboard"
        if self._metrics.exists():
            forget_after(self._metrics, step)
        if step == 0:
            shutil.rmtree(events, ignore_errors=True)  # of a beginning that came to nothing
        self._tensorboard = SummaryWriter(str(events), purge_step=step or None)
        if step:
            self._show_again(step)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._tensorboard.close()

    def _show_again(self, step: int) -> None:
        """Give TensorBoard what belongs to the step that is continued from: a crash may have kept some of it away."""
        for _, line in whole_lines(self._metrics):
            if line.pop("step") == step:
                self._show_scalars(step, line)
        if (path := grid_path(self.folder, step)).exists():
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
            flush_folder(self.folder)
        self._show_scalars(step, values)

    def _show_scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()

    def picture(self, name: str, picture: Tensor, step: int, file_name: str) -> None:
        """Write images/file_name and show the same picture in TensorBoard."""
        save_png(self.folder / IMAGES / file_name, picture, survives_power_cut=True)
        self._tensorboard.add_image(name, picture, step)

    def text(self, name: str, text: str) -> None:
        """Show a text, as it is, in TensorBoard."""
        self._tensorboard.add_text(name, "    " + text.replace("\n", "\n    "), 0)

    def save_checkpoint(self, step: int, content: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Save a checkpoint, once everything up to its step is on the disk; options are the keys `checkpoint.*`."""
        self._tensorboard.flush()
        for events in (self.folder / "tensorboard").iterdir():
            flush_file(events)
        checkpoint.save(self.checkpoints, step, content, options["keep"], options["milestone_every"])


def grid_path(folder: Path, step: int) -> Path:
    """The file that the grid of samples of a step is written to."""
    return folder / IMAGES / f"step_{step:08d}.png"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, made if need be. Raises UserError at once where another process has it."""

    def refuse() -> None:
        raise UserError(
            f"{folder} is in use: another process is training there (its train.log says which).\n"
            "Wait until it ends, or stop it; a process that was killed keeps no folder"
        )

    make_folder(folder)
    with locked(folder / ".lock", if_taken=refuse):
        for place in (folder, folder / IMAGES, folder / checkpoint.FOLDER, folder / ".hydra"):
            remove_leftovers(place)
        yield


def is_run(folder: Path) -> bool:
    """Whether a run was begun in this folder. Raises UserError where it holds something else."""
    if (folder / RECORD).is_file():
        return True
    if folder.exists() and (not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir())):
        kind = "is no run of this program"
        if (folder / checkpoint.FOLDER).exists():
            kind = f"is a run that has lost its {RECORD}"
        elif (folder / SWEEP_RECORD).exists():
            kind = "holds a sweep"
        raise UserError(f"{folder} exists already and {kind}: choose another name=")
    return False


def refuse_inside_others(folder: Path) -> None:
    """Raise UserError where a new run would lie inside another run, or inside a sweep that it is no job of."""
    for parent in takewhile(lambda parent: parent != OUTPUTS, folder.parents):
        if any((parent / record).exists() for record in (RECORD, SWEEP_RECORD)):
            raise UserError(f"{folder} would lie inside {parent}, which is a run or a sweep: choose another name=")


def refuse_lost_checkpoints(folder: Path, config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Raise UserError where there are no checkpoints although there must have been some: nothing is begun over them."""
    lines = whole_lines(folder / METRICS)
    reached = lines[-1][1]["step"] if lines else 0
    if reached > max(config["checkpoint"]["every"], record["checkpoint"]["every"]):
        raise UserError(
            f"{folder} has come to step {reached}, and its checkpoints are gone from {folder / checkpoint.FOLDER}.\n"
            "Bring them back to continue, or choose another name= to begin again"
        )


def write_record(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.yaml: plain values, in the order in which the command's keys are declared."""
    write_whole(folder / RECORD, lambda file: file.write(as_yaml(config)))


def read_record(folder: Path) -> dict[str, Any]:
    """The config that the run in this folder began with."""
    path = folder / RECORD
    if not folder.is_dir():
        raise UserError(f"resume={folder} is not a folder; give the folder of a run")
    if not path.is_file():
        raise UserError(f"resume={folder} is not the folder of a run: it has no {RECORD}")
    schema = SCHEMAS["train"]
    try:
        record = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(path))
        return checked(typing.cast(DictConfig, record), schema)
    except Exception as error:  # whatever becomes of a damaged file, and what is left of its keys
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} does not hold the config of a run: {reason}\n"
            "Bring it back as it was; every checkpoint of the run holds it too, under 'config'"
        ) from error


def as_yaml(config: Mapping[str, Any]) -> str:
    """The config as YAML, in its own order."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def in_short(value: Any) -> str:
    """A value of a config, or how it begins: one may be a table of betas."""
    words = str(value)
    return words if len(words) <= SHORT else f"{words[:SHORT]} ..."


def refuse_changes(record: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
    """Raise UsageError where continuing with this config would not be the run that was begun."""
    then, today = flat(record), flat(config)
    changed = [key for key in sorted({*then, *today}) if then.get(key) != today.get(key) and not key.startswith(FREE)]
    if changed == ["name"]:
        raise UsageError(f"resume={folder} continues that run under its own name; leave name={config['name']} out")
    if changed:
        listed = ", ".join(
            f"{key} (was {in_short(then.get(key))}, now {in_short(today.get(key))})" for key in changed[:NAMED]
        )
        more = f" and {len(changed) - NAMED} more" if changed[NAMED:] else ""
        raise UsageError(
            f"{folder} was begun with another config and cannot continue with this one: {listed}{more}.\n"
            "Leave these keys as they were, or choose another name="
        )
    before, now = record["steps"], config["steps"]
    if now != before and record["optim"]["decay"] != "none":
        raise UsageError(
            f"steps cannot change from {before} to {now}: with optim.decay={record['optim']['decay']} the learning "
            "rate of every step depends on it; choose another name= for a new run"
        )
    if now < before:
        raise UsageError(
            f"steps can grow from {before} when a run is continued, not shrink to {now}; choose another name="
        )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones: {"optim": {"lr": 1}} becomes {"optim.lr": 1}."""
    pairs: dict[str, Any] = {}
    for key, value in config.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return pairs
