"""`diffuse train`: fit a denoiser to a data set, into a run folder; begin one, or continue where it stopped."""

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffuse.mathematics.schedules import betas_in
from diffuse.options.build import about
from diffuse.runs import checkpoint
from diffuse.runs.folder import (
    Run,
    as_yaml,
    flat,
    grid_path,
    held,
    is_run,
    read_record,
    refuse_changes,
    refuse_inside_others,
    refuse_lost_checkpoints,
    write_record,
)
from diffuse.runs.hparams import write_hparams
from diffuse.runs.output import Job, now
from diffuse.runs.pictures import grid
from diffuse.runs.scalars import METRICS, SCORES, last_values, whole_lines
from diffuse.system.errors import Terminated, UserError
from diffuse.system.files import OUTPUTS, make_own_folder, shown
from diffuse.system.progress import Progress, log
from diffuse.system.signals import Stop
from diffuse.training.forecast import Forecast, cost_on_disk, refuse_small_disk
from diffuse.training.trainer import NotFinite, Trainer

if TYPE_CHECKING:
    from diffuse.training.watching import Watcher

FAILURE = "failure.pt"


def run(config: Mapping[str, Any], job: Job) -> dict[str, float]:
    """Begin a run or continue the one that is there. Whatever is wrong is said before anything is written.

    Returns what was reported at the last step, by name: scores of samples, if there are any, and the loss.
    """
    deadline = time.monotonic() + 3600 * (config["max_hours"] or math.inf)
    asked = self_contained({**config, "resume": None})
    if config["resume"]:
        return resume(asked, Path(config["resume"]).expanduser(), job, deadline)
    folder = job.folder(OUTPUTS, config["name"])
    if folder and is_run(folder):  # whatever it was called when it began
        return resume({**asked, "name": read_record(folder)["name"]}, folder, job, deadline)
    if folder and not job.sweep_folder:
        refuse_inside_others(folder)
    return begin(asked, folder, job, deadline)


def begin(config: Mapping[str, Any], folder: Path | None, job: Job, deadline: float) -> dict[str, float]:
    """Train from the beginning, in this folder or, without one, in a new one named by the time."""
    trainer = Trainer(config)
    watcher = watcher_of(trainer)
    refuse_small_disk(trainer, folder or OUTPUTS)
    folder = folder or make_own_folder(OUTPUTS / job.filed_under / now())
    with held(folder):
        if is_run(folder):
            raise UserError(f"{shown(folder)} was begun by another process just now; give the command again")
        write_record(folder, config)
        with job.logged(folder, "train.log"):
            return introduce_and_train(trainer, watcher, folder, deadline)


def resume(config: Mapping[str, Any], folder: Path, job: Job, deadline: float) -> dict[str, float]:
    """Continue the run in this folder from its newest checkpoint, or from its beginning if it has none yet."""
    record = read_record(folder)
    refuse_changes(record, config, folder)
    with held(folder):
        saved = checkpoint.newest(folder / checkpoint.FOLDER)
        step = saved.content["step"] if saved else 0
        if saved:
            set_damaged_aside(saved.path)
        else:
            refuse_lost_checkpoints(folder, config, record)
        watched = config["eval"]["every"] is None or is_scored(folder, step)
        if step >= config["steps"] and grid_path(folder, step).exists() and watched:
            log.info(f"{shown(folder)} is finished: {step:,} of {config['steps']:,} steps are done")
            return last_values(folder)
        trainer = Trainer(config)
        watcher = watcher_of(trainer)
        if saved:
            with checkpoint.fitting(saved.path):
                trainer.load(saved.content)
        refuse_small_disk(trainer, folder)
        with job.logged(folder, "train.log"):
            if config["steps"] != record["steps"]:
                write_record(folder, {**record, "steps": config["steps"]})
            source = f" ({saved.path.name})" if saved else ": no checkpoint was saved yet"
            log.info(f"resumed from step {step}{source}")
            return introduce_and_train(trainer, watcher, folder, deadline)


def watcher_of(trainer: Trainer) -> "Watcher | None":
    """What scores samples while training, if eval.every asks for it."""
    if trainer.config["eval"]["every"] is None:
        return None
    from diffuse.training.watching import Watcher  # takes a second more to import

    return Watcher(trainer)


def self_contained(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with paths made absolute and the betas of a file noted down, so that it means the same anywhere."""

    def absolute(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        paths = {key: values[key] for key in keys if isinstance(values.get(key), str)}
        return {**values, **{key: str(Path(path).expanduser().absolute()) for key, path in paths.items()}}

    schedule = absolute(config["schedule"], "path")
    if schedule.get("path") is not None and schedule.get("values", False) is None:
        with about("schedule"):
            schedule["values"] = betas_in(schedule["path"])
    dataset = absolute(config["dataset"], "path", "test_path")
    features = absolute(config["features"], "path", "weights")
    return {**absolute(config, "data_dir"), "dataset": dataset, "schedule": schedule, "features": features}


def set_damaged_aside(newest: Path) -> None:
    """Rename the checkpoints beyond the newest one that could be read, so that nothing takes them for newer."""
    for path in checkpoint.all_in(newest.parent):
        if checkpoint.step_of(path) > checkpoint.step_of(newest):
            path.rename(path.with_suffix(".damaged"))
    checkpoint.point_to(newest)


def introduce_and_train(trainer: Trainer, watcher: "Watcher | None", folder: Path, deadline: float) -> dict[str, float]:
    """Say what is about to happen, train, and say what can be done next."""
    config, kind, where = trainer.config, trainer.data.kind, trainer.formulas.where(trainer.device)
    images = f"{len(trainer.data.train.images):,} images of {kind.channels} x {kind.size} x {kind.size}"
    border = f" (with a border of {kind.pad})" if kind.pad else ""
    log.info(f"run folder: {shown(folder)}")
    log.info(f"{kind.name}: {images}{border}; {trainer.parameters:,} parameters; {where}")
    log.info(cost_on_disk(trainer, folder))
    if config["optim"]["warmup"] > config["steps"]:
        given = f"optim.warmup={config['optim']['warmup']} is longer than steps={config['steps']}"
        log.warning(f"{given}: the rate never comes to optim.lr")
    again = f"continue with: diffuse train resume={shown(folder)}"
    try:
        train(trainer, watcher, folder, deadline)
    except NotFinite as failure:
        raise keep_failure(trainer, folder, failure.step) from failure
    except (KeyboardInterrupt, Terminated):
        saved = checkpoint.all_in(folder / checkpoint.FOLDER)
        at = f"step {checkpoint.step_of(saved[-1])} is saved" if saved else "nothing was saved yet"
        log.info(f"stopped, {at}; {again}")
        raise
    if trainer.step < config["steps"]:
        log.info(f"stopped after max_hours={config['max_hours']}, step {trainer.step} is saved; {again}")
        return last_values(folder)
    values, last = last_values(folder), grid_path(folder, trainer.step)
    told = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    log.info(f"done, {told}; samples: {shown(last)}")
    if (best := folder / checkpoint.FOLDER / "best.pt").exists() and config["eval"]["every"]:
        log.info(f"these are of the last step; the best scored one is ckpt={shown(best)}")
    write_hparams(folder, flat(config), values)
    ckpt = f"ckpt={shown(folder)}" + (f" trust=[{','.join(config['trust'])}]" if config["trust"] else "")
    log.info(f"next: diffuse sample {ckpt}   or   diffuse eval {ckpt}")
    return values


def train(trainer: Trainer, watcher: "Watcher | None", folder: Path, deadline: float) -> None:
    """Train into the folder until all steps are done, or time is up, or a signal asks to stop.

    A checkpoint comes after everything else that belongs to its step: what it does not know of will be done again.
    """
    config, start, steps = trainer.config, trainer.step, trainer.config["steps"]
    with (
        Run(folder, start) as run,
        Progress("train", steps, "step", start, config["batch_size"], "images") as progress,
        Stop() as stop,
    ):
        forecast = Forecast(trainer, progress)
        if start == 0:
            run.text("config", as_yaml(config))
            run.picture("forward_process", trainer.forward_picture(), 0, "forward_process.png")
        elif (start % config["images"]["every"] == 0 or start == steps) and not grid_path(folder, start).exists():
            draw_grid(trainer, run, stop)  # there was no time for it when the run was stopped
        if watcher and start and watcher.is_due(start) and not is_scored(folder, start):
            watch(watcher, run, stop)
        stop.obey()
        while trainer.step < steps:
            trainer.advance()
            progress.advance()
            forecast.look()
            step, done = trainer.step, trainer.step == steps
            out_of_time = time.monotonic() >= deadline
            if step % config["log"]["every"] == 0 or done:
                trainer.refuse_failure()
                values = trainer.report()
                speed = progress.per_second_since_last_asked() * config["batch_size"]
                run.scalars(step, {**values, "images_per_second": speed})
                progress.tell({"loss": f"{values['loss']:.4f}"})
            if step % config["images"]["every"] == 0 or done:
                with progress.paused():
                    trainer.refuse_failure()
                    draw_grid(trainer, run, stop)
            if watcher and watcher.is_due(step):
                with progress.paused():
                    trainer.refuse_failure()
                    watch(watcher, run, stop)
            stopping = out_of_time or stop.signal is not None
            milestone = checkpoint.is_milestone(step, config["checkpoint"]["milestone_every"])
            if step % config["checkpoint"]["every"] == 0 or milestone or done or stopping:
                with progress.paused():
                    trainer.refuse_failure()
                    run.save_checkpoint(step, trainer.state(), config["checkpoint"])
            if stopping:
                break
        stop.obey()


class NoTime(Exception):
    """A signal has come: who stops us waits for a checkpoint, not for pictures and scores."""

    @classmethod
    def look(cls, stop: Stop) -> None:
        if stop.signal:
            raise cls


def draw_grid(trainer: Trainer, run: Run, stop: Stop) -> None:
    """Draw a grid of samples, if there is time."""
    with suppress(NoTime):
        count = trainer.config["images"]["count"]
        drawn = grid(trainer.draw(range(count), partial(NoTime.look, stop)))
        run.picture("samples", drawn, trainer.step, grid_path(run.folder, trainer.step).name)


def watch(watcher: "Watcher", run: Run, stop: Stop) -> None:
    """Score samples and keep the best checkpoint, if there is time."""
    try:
        watcher.look(run, partial(NoTime.look, stop))
    except NoTime:
        pass
    except (OSError, torch.OutOfMemoryError) as error:  # no reason to lose the training
        log.warning(f"the samples of step {watcher.trainer.step:,} could not be scored: {error}")


def is_scored(folder: Path, step: int) -> bool:
    """Whether the samples of this step were scored before the run was stopped."""
    lines = [values for _, values in whole_lines(folder / METRICS)]
    return any(values["step"] == step and any(name.startswith(SCORES) for name in values) for values in lines)


def keep_failure(trainer: Trainer, folder: Path, step: int) -> UserError:
    """Write failure.pt, the step that failed with the state before it, and say what can be done."""
    path = folder / FAILURE
    checkpoint.write(path, step, trainer.failure(step))
    return UserError(
        f"the loss or gradient of step {step} is not a finite number. The state before it, its images, levels and\n"
        f"noise are in {shown(path)}; scripts/replay_failure.py does the step again.\n"
        "Lower optim.lr or optim.clip in a new run, or set device.precision=float32 if it was bfloat16"
    )
