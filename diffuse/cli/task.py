"""A command as Hydra calls it, once a job: in this process, or in one that a launcher started."""

import importlib
import logging
import os
import shlex
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from diffuse.cli.help import help_page
from diffuse.cli.messages import message_for
from diffuse.options.schema import SCHEMAS, checked
from diffuse.options.score_names import MORE_IS_BETTER
from diffuse.sweeps.folder import MARKDOWN, Sweep
from diffuse.sweeps.record import DONE, FAILED, INTERRUPTED, Record, finite
from diffuse.system.errors import Terminated, UsageError
from diffuse.system.files import CONFIGS, SWEEP_RECORD, short_path, slug, write_atomic
from diffuse.system.progress import log, log_to_console
from diffuse.system.signals import ended_once, handled_by

# Commands whose folders say by themselves whether a job is finished, half done or of other options.
HAVE_A_RECORD = ("train",)
# Commands that say again what is done, if it is still of the same checkpoint.
SAY_AGAIN = ("eval",)
NOISY_LOGGERS = ("hydra", "hydra_plugins", "optuna.storages")  # what they say, we say


def register() -> None:
    """Tell Hydra our schemas and resolvers, in this process and in each that a launcher starts."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    OmegaConf.register_new_resolver("help_page", lambda name, _root_: help_page(name, _root_), replace=True)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def compose(command: str, *overrides: str) -> Any:
    """The config of a command line, typed and checked, for scripts and tests: nothing is run."""
    register()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return checked(hydra.compose(command, overrides=list(overrides)), SCHEMAS[command])


def job_folder(number: int, varied: str) -> str:
    """The name of a job's folder in a sweep: its number and what it varies."""
    return "_".join(part for part in (str(number), slug(varied)) if part)


class SweepRecord(Callback):
    """Writes the record of a sweep, multirun.yaml, which not every sweeper does."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute()
        with suppress(OSError):  # the sweeper meets the same error, and it is reported
            write_atomic(folder / SWEEP_RECORD, lambda file: file.write(OmegaConf.to_yaml(config)))
        if not config.hydra.launcher._target_.startswith("hydra."):  # jobs in other processes, perhaps silent ones
            print(f"sweep folder: {short_path(folder)}; {MARKDOWN} in it has the table so far", flush=True)


class Command:
    """One of our commands as Hydra calls it, once a job. Launchers pickle it."""

    def __init__(self, name: str, typed: list[str]):
        self.name, self.typed = name, typed
        self.error: Exception | None = None
        self.process = os.getpid()
        self.given = f"{time.time():.6f} by {self.process}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        register()

    def __call__(self, cfg: DictConfig) -> float | None:
        if os.getpid() != self.process:
            return self.run_elsewhere(cfg)
        log_to_console()
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return self.run_in_sweep(cfg)
        try:
            self.prepare(cfg)()
        except Exception as error:  # Hydra would print a line of its own; `main` makes a message of it
            self.error = error
        return None

    def run_elsewhere(self, cfg: DictConfig) -> float | None:
        """Run a job of a sweep in a process that a launcher started: among others, and perhaps after others."""
        with ended_once():
            log_to_console(f"[{HydraConfig.get().job.num}] ")
            return self.run_in_sweep(cfg)

    def run_in_sweep(self, cfg: DictConfig) -> float | None:
        """Run a job of a sweep and record what became of it. A failure does not end the sweep: it is reported here."""
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
            run = self.prepare(cfg)
            started = time.monotonic()  # imports, which happen once, are not part of a job's time
            ended = replace(job, status=DONE, values=finite(run()))
            return ended.first_value
        except Exception as error:
            message = message_for(error, self.name, str(CONFIGS))
            log.error("job %s: %s", job.number, message.text if message else traceback.format_exc())
            reason = message.text if message else f"{type(error).__name__}: {error}"
            ended = replace(ended, reason=(reason.splitlines() or [""])[0])
            return None
        except (KeyboardInterrupt, Terminated):
            ended = replace(ended, status=INTERRUPTED)
            raise
        finally:
            with handled_by(lambda *_: None):  # a second signal must not lose the record
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

    def prepare(self, cfg: DictConfig) -> Callable[[], Mapping[str, float]]:
        """Check the config; what runs the command with it."""
        config: Any = checked(cfg, SCHEMAS[self.name])
        refuse_wrong_direction(config.first_score)
        from diffuse.runs.output import Output  # imports torch: not before the config is known to be right

        settings = HydraConfig.get()
        output = Output(
            command=shlex.join(["diffuse", self.name, *self.typed]),
            overrides=list(settings.overrides.task),
            choices={str(group): str(choice) for group, choice in settings.runtime.choices.items()},
            sweep_folder=Path(settings.runtime.output_dir) if settings.mode == RunMode.MULTIRUN else None,
        )
        return partial(importlib.import_module(f"diffuse.commands.{self.name}").run, config, output)


def refuse_wrong_direction(score: str | None) -> None:
    """Raise UsageError where Optuna is asked for the smallest value of a score of which more is better."""
    sweeper = HydraConfig.get().sweeper
    upwards = score is not None and score.startswith(MORE_IS_BETTER)
    if upwards and "optuna" in sweeper._target_ and str(sweeper.direction).endswith("minimize"):
        raise UsageError(f"of {score} more is better: set hydra.sweeper.direction=maximize")


def remove_if_empty(folder: Path) -> None:
    """Hydra makes a sweep's job folders before we can refuse the job."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
