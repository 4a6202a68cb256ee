"""A run folder: everything about one training.

config.yaml                  the config that the run began with; resuming reads it and not the YAML files of today
train.log  .hydra/           every command line and its messages; the last command line
metrics.jsonl  tensorboard/  every scalar, twice: for scripts and for people
images/                      the forward process, and grids from the EMA weights, the same noise each time
checkpoints/                 step_00001000.pt ..., last.pt links to the newest; best.pt, by the first of eval.metrics
hparams/                     for TensorBoard: the options and the final values
failure.pt                   the step at which training stopped with a NaN or infinite loss, to compute it again
.lock                        held by the process that trains here
samples/  eval/              a folder for each call of `diffuse sample` and `diffuse eval`
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from textwrap import indent
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
from diffuse.runs.scalars import METRICS_FILE, forget_after, read_metrics
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import (
    AT_BEST,
    OUTPUTS,
    RECORD,
    SWEEP_RECORD,
    flush,
    hold_lock,
    refuse_aliases,
    remove_leftovers,
    run_path,
    write_atomic,
)
from diffuse.system.progress import log

IMAGES = "images"  # the folder in a run
LISTED_KEYS, VALUE_LENGTH = 8, 60  # in a message


class RunFolder:
    """The folder of a training run, open for writing from `step` on, until it is closed."""

    def __init__(self, path: Path, step: int = 0):
        self.path = path
        self.checkpoints = path / checkpoint.CHECKPOINTS
        self._metrics, self._events = path / METRICS_FILE, path / "tensorboard"
        if self._metrics.exists():
            forget_after(path, step)
        if step == 0:
            shutil.rmtree(self._events, ignore_errors=True)  # of a run that was stopped before its first checkpoint
        self._tensorboard = SummaryWriter(str(self._events), purge_step=step or None)
        if step:
            self._show_again(step)

    def close(self) -> None:
        self._tensorboard.close()

    def _show_again(self, step: int) -> None:
        """Write the scalars and the grid of the last saved step to TensorBoard: a crash may have lost some of them."""
        for line in read_metrics(self.path):
            if line.pop("step") == step:
                self._show_scalars(step, line)
        if (path := grid_path(self.path, step)).exists():
            try:
                with Image.open(path) as image:
                    self._tensorboard.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")
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
            self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()

    def picture(self, name: str, picture: Tensor, step: int, file_name: str) -> None:
        """Write images/file_name and show the same picture in TensorBoard."""
        save_png(self.path / IMAGES / file_name, picture, survives_power_cut=True)
        self._tensorboard.add_image(name, picture, step)

    def show_config(self, config: TrainConfig) -> None:
        """Show the config in TensorBoard; indented, Markdown leaves it as it is."""
        self._tensorboard.add_text("config", indent(as_yaml(config), "    "), 0)

    def save_checkpoint(self, step: int, content: Mapping[str, Any], keep: int, milestone_every: int | None) -> None:
        """Save a checkpoint, after everything up to its step is on the disk."""
        self._tensorboard.flush()
        for events in self._events.iterdir():
            flush(events)
        checkpoint.save(self.checkpoints, step, content, keep, milestone_every)


def grid_path(folder: Path, step: int) -> Path:
    """The file of the sample grid of a step."""
    return folder / IMAGES / f"step_{step:08d}.png"


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Make a run folder if need be, and hold its lock. Raises UserError at once if another process holds it."""
    in_use = f"{folder} is in use: another process is training there (its train.log says which).\n"
    with hold_lock(folder / ".lock", f"{in_use}Wait until it ends, or stop it; a killed process holds no lock"):
        for place in (folder, folder / IMAGES, folder / checkpoint.CHECKPOINTS, folder / ".hydra"):
            remove_leftovers(place)
        yield


def is_run(folder: Path) -> bool:
    """Whether a run was begun in this folder. Raises UserError where it holds something else."""
    if (folder / RECORD).is_file():
        return True
    if folder.exists() and (not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir())):
        kind = "is not a run of this program"
        if (folder / checkpoint.CHECKPOINTS).exists():
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
            f"{folder / checkpoint.CHECKPOINTS}.\nPut them back to continue, or choose another name= to begin again"
        )


def write_record(folder: Path, config: TrainConfig) -> None:
    """Write config.yaml: every value, in the order of the keys in the schema."""
    write_atomic(folder / RECORD, lambda file: file.write(as_yaml(config)))


def read_record(folder: Path) -> TrainConfig:
    """The config that the run in this folder began with."""
    path = folder / RECORD
    if not folder.is_dir():
        raise UserError(f"resume={folder} is not a folder; give the folder of a run")
    if not path.is_file():
        raise UserError(f"resume={folder} is not the folder of a run: it has no {RECORD}")
    try:
        refuse_aliases(path)
        return stored_config(OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]
    except Exception as error:  # a damaged file raises errors of many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} does not hold the config of a run: {reason}\n"
            "Restore it; every checkpoint of the run holds it too, under 'config'"
        ) from error


def record_around(ckpt: str) -> TrainConfig | None:
    """The config of the run that `ckpt` names or lies in; None where that cannot be read."""
    path = run_path(ckpt.removesuffix(AT_BEST))
    for folder in (path, *path.parents[:2]):
        if (folder / RECORD).is_file():
            with suppress(UserError):
                return read_record(folder)
    return None


def as_yaml(config: TrainConfig) -> str:
    """The config as YAML, in the order of its keys."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(config)))


def shorten(value: Any) -> str:
    """The text of a value of a config, or its beginning: it may be a table of betas."""
    text = str(value)
    return text if len(text) <= VALUE_LENGTH else f"{text[:VALUE_LENGTH]} ..."


def flat_with_defaults(config: TrainConfig, trust: Sequence[str]) -> dict[str, Any]:
    """Every value by its dotted key, with the defaults of options that the config does not mention."""
    values = plain(config)
    nodes = {name: with_defaults(values[name], name, trust) for name in groups("train") if name in values}
    return flat({**values, **nodes})


def refuse_changes(record: TrainConfig, config: TrainConfig, folder: Path) -> None:
    """Raise UsageError where a key has changed since the run began that changes what it computes."""
    then, now = (flat_with_defaults(either, config.trust) for either in (record, config))
    changed = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key) and not may_change(key)]
    if changed == ["name"]:
        raise UsageError(f"resume={folder} continues that run under its own name; leave name={config.name} out")
    if changed:
        changes = [f"{key} (was {shorten(then.get(key))}, now {shorten(now.get(key))})" for key in changed]
        more = f" and {len(changed) - LISTED_KEYS} more" if changed[LISTED_KEYS:] else ""
        raise UsageError(
            f"{folder} was begun with another config and cannot continue with this one: "
            f"{', '.join(changes[:LISTED_KEYS])}{more}.\nLeave these keys as they were, or choose another name="
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
