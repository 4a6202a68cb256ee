"""A command as Hydra calls it, once a job: in this process, or in one that a launcher started, which imports this."""

import importlib
import logging
import os
import shlex
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from diffuse.cli.help import help_of
from diffuse.cli.messages import worded
from diffuse.options.schema import SCHEMAS, checked
from diffuse.options.score_names import MORE_IS_BETTER
from diffuse.sweeps.folder import MARKDOWN, Sweep
from diffuse.sweeps.record import DONE, FAILED, INTERRUPTED, Record, finite
from diffuse.system.errors import Terminated, UsageError
from diffuse.system.files import CONFIGS, SWEEP_RECORD, shown, slug, write_whole
from diffuse.system.progress import log, log_to_console
from diffuse.system.signals import at_once, end, handled_by

# Commands whose folders say by themselves whether a job is finished, half done or of other options.
HAVE_A_RECORD = ("train",)
# Commands that say again what is done, if it is still of the same checkpoint.
SAY_AGAIN = ("eval",)


def job_folder(number: int, varied: str) -> str:
    """The name of a job's folder in a sweep: its number and what it varies."""
    return "_".join(part for part in (str(number), slug(varied)) if part)


def register() -> None:
    """Tell Hydra our schemas and resolvers. Processes that a launcher starts need them too: this module does it."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    OmegaConf.register_new_resolver("sweep_name", lambda name, time: name or f"sweep-{time}", replace=True)
    OmegaConf.register_new_resolver("help_of", help_of, replace=True)


register()
for chatty in ("hydra", "hydra_plugins", "optuna.storages"):
    logging.getLogger(chatty).setLevel(logging.CRITICAL)  # what they have to say, we say


class SweepFolder(Callback):
    """Remembers where Hydra put a sweep, and writes its record, which not every sweeper does."""

    path: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        SweepFolder.path = Path(config.hydra.sweep.dir).absolute()
        with suppress(OSError):  # the sweeper will meet it too, and is heard
            write_whole(SweepFolder.path / SWEEP_RECORD, lambda file: file.write(OmegaConf.to_yaml(config)))
        if not config.hydra.launcher._target_.startswith("hydra."):  # jobs in other processes, perhaps silent ones
            print(f"sweep folder: {shown(SweepFolder.path)}; {MARKDOWN} in it has the table so far", flush=True)

    @classmethod
    def remove_if_nothing_ran(cls) -> None:
        """What is said of jobs is of no use where none of them made anything."""
        if cls.path and Sweep(cls.path).remains_of_nothing():
            shutil.rmtree(cls.path)
            for folder in takewhile(lambda folder: folder != Path.cwd(), cls.path.parents):
                remove_if_empty(folder)


class Command:
    """One of our commands as Hydra calls it, once a job. A class of the module, so that launchers can pickle it."""

    # The signal that asked this process to end, where a launcher started it: it begins no other job.
    asked_to_end: int | None = None

    def __init__(self, name: str, typed: list[str]):
        self.name, self.typed = name, typed
        self.error: Exception | None = None
        self.process = os.getpid()
        self.given = f"{time.time():.6f} by {self.process}"

    def __call__(self, cfg: DictConfig) -> float | None:
        if os.getpid() != self.process:
            return self.run_elsewhere(cfg)
        log_to_console()
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return self.run_in_sweep(cfg)
        try:
            self.ready(cfg)()
        except Exception as error:  # Hydra would print a line of its own; `main` words it
            self.error = error
        return None

    def run_elsewhere(self, cfg: DictConfig) -> float | None:
        """Run a job of a sweep in a process that a launcher started: among others, and perhaps after others."""
        if Command.asked_to_end is not None:
            end(Command.asked_to_end)
        log_to_console(f"[{HydraConfig.get().job.num}] ")

        def once(number: int, frame: FrameType | None) -> None:
            """Ctrl-C reaches every process of a terminal, and the first of them asks the others: that is one wish."""
            if Command.asked_to_end is None:
                Command.asked_to_end = number
                at_once(number, frame)

        with handled_by(once):
            try:
                return self.run_in_sweep(cfg)
            except (KeyboardInterrupt, Terminated) as stop:
                Command.asked_to_end = stop.exit_code - 128 if isinstance(stop, Terminated) else signal.SIGINT
                raise

    def run_in_sweep(self, cfg: DictConfig) -> float | None:
        """Run a job of a sweep and record what became of it. A failure does not end the sweep: it is worded here."""
        settings, job = HydraConfig.get(), self.record()
        sweep = Sweep(Path(settings.sweep.dir).absolute())
        with sweep.held(job):
            try:
                varied = " ".join(f"{key}={value}" for key, value in job.varied.items())
                log.info("job %s: %s", job.number, varied or " ".join(job.overrides))
                before = None if self.name in HAVE_A_RECORD else sweep.done_before(job)
                if before and self.name not in SAY_AGAIN:
                    log.info("job %s: done before", job.number)
                    return before.first_value
                return self.run_recorded(cfg, sweep, job)
            except UsageError as refused:
                log.error("job %s: %s", job.number, refused)
                return None
            finally:
                remove_if_empty(Path(settings.runtime.output_dir))
                sweep.draw()

    def run_recorded(self, cfg: DictConfig, sweep: Sweep, job: Record) -> float | None:
        """Run a job between the two times that its record is written; None where it fails, as Optuna wants it."""
        job = sweep.begin(job)
        started = time.monotonic()
        ended = replace(job, status=FAILED)
        try:
            run = self.ready(cfg)
            started = time.monotonic()  # what is imported once is no job's time
            ended = replace(job, status=DONE, values=finite(run()))
            return ended.first_value
        except Exception as error:
            message = worded(error, self.name, str(CONFIGS))
            reason = message.text if message else traceback.format_exc()
            log.error("job %s: %s", job.number, reason)
            told = message.text if message else f"{type(error).__name__}: {error}"
            ended = replace(ended, reason=(told.splitlines() or [""])[0])
            return None
        except (KeyboardInterrupt, Terminated):
            ended = replace(ended, status=INTERRUPTED)
            raise
        finally:
            with handled_by(lambda *_: None):  # asked twice, it must not lose what it has to say
                sweep.write(replace(ended, seconds=job.seconds + time.monotonic() - started))

    def record(self) -> Record:
        """The job that Hydra is about to run, as it will be recorded."""
        settings = HydraConfig.get()
        fixed = settings.job.config.override_dirname.exclude_keys
        typed = [word.lstrip("+~").partition("=") for word in settings.overrides.task]
        return Record(
            number=int(settings.job.num),
            folder=Path(settings.runtime.output_dir).name,
            command=self.name,
            typed=shlex.join(["diffuse", self.name, *self.typed]),
            overrides=list(settings.overrides.task),
            varied={key: value for key, _, value in typed if key not in fixed},
            given=self.given,
        )

    def ready(self, cfg: DictConfig) -> Callable[[], Mapping[str, float]]:
        """Check the config, and give what hands it, as plain values, to the command's module."""
        config = checked(cfg, SCHEMAS[self.name])
        refuse_wrong_direction(config)
        from diffuse.runs.output import (
            Job,  # the command's module imports torch: not before the config is known to be right
        )

        settings = HydraConfig.get()
        job = Job(
            command=shlex.join(["diffuse", self.name, *self.typed]),
            overrides=list(settings.overrides.task),
            choices={str(group): str(choice) for group, choice in settings.runtime.choices.items()},
            sweep_folder=Path(settings.runtime.output_dir) if settings.mode == RunMode.MULTIRUN else None,
        )
        return partial(importlib.import_module(f"diffuse.commands.{self.name}").run, config, job)


def refuse_wrong_direction(config: Mapping[str, Any]) -> None:
    """Raise UsageError where Optuna is asked for the smallest value of a score of which more is better."""
    sweeper, watched = HydraConfig.get().sweeper, config.get("eval", {})
    names = watched["metrics"] if watched.get("every") else config.get("metrics", [])
    upwards = bool(names) and names[0].startswith(MORE_IS_BETTER)
    if upwards and "optuna" in sweeper._target_ and str(sweeper.direction).endswith("minimize"):
        raise UsageError(f"of {names[0]} more is better: set hydra.sweeper.direction=maximize")


def remove_if_empty(folder: Path) -> None:
    """Hydra makes a sweep's job folders before we can refuse the job."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
