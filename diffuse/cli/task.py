"""A command as Hydra calls it, once a job: in this process, or in one that a launcher started."""

import importlib
import logging
import os
import shlex
import sys
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
from diffuse.cli.messages import as_user_error
from diffuse.options.schema import SCHEMAS, checked, plain
from diffuse.options.score_names import MORE_IS_BETTER
from diffuse.runs.record import record_around
from diffuse.sweeps.folder import MARKDOWN, Sweep
from diffuse.sweeps.record import DONE, FAILED, INTERRUPTED, Record, finite
from diffuse.system.errors import Terminated, UsageError
from diffuse.system.files import CONFIGS, SWEEP_RECORD, short_path, slug, write_atomic
from diffuse.system.progress import log, log_to_console
from diffuse.system.ranks import rank_here, started, take_place_from_submitit
from diffuse.system.signals import end_at_first_signal, handle_signals, raise_pending

NOISY_LOGGERS = ("hydra", "hydra_plugins", "optuna.storages")  # our own messages say the same


def register() -> None:
    """Give Hydra our schemas and resolvers, in this process and in each that a launcher starts."""
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
    """The name of a job's folder in a sweep: its number, and the keys that vary with their values."""
    return "_".join(part for part in (str(number), slug(varied)) if part)


class SweepRecord(Callback):
    """Writes the record of a sweep, multirun.yaml, which not every sweeper does."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # launchers pickle it, and the lock stays in this process

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute()
        self.sweep = Sweep(folder)
        with suppress(OSError):  # the sweeper gets the same error, which is reported
            self.sweep.join()
            write_atomic(folder / SWEEP_RECORD, lambda file: file.write(OmegaConf.to_yaml(config)))
        if not config.hydra.launcher._target_.startswith("hydra."):  # jobs run in other processes, perhaps unseen
            print(f"sweep folder: {short_path(folder)}; {MARKDOWN} in it has the table so far", flush=True)


class Command:
    """One of our commands as Hydra calls it, once a job. Launchers pickle it.

    given identifies this call of the command line; error is what a single run failed with.
    """

    def __init__(self, name: str, typed: list[str]):
        self.name, self.typed = name, typed
        self.line = shlex.join(["diffuse", name, *typed])
        self.error: Exception | None = None
        self.speaker = ""
        self.process = os.getpid()
        self.given = f"{time.time():.6f} by {self.process}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        register()

    def __call__(self, cfg: DictConfig) -> float | None:
        if os.getpid() != self.process:  # this process was started by a launcher, and may have run other jobs
            take_place_from_submitit()
            with end_at_first_signal(waits=started() > 1):
                self.speaker = f"[{HydraConfig.get().job.num}] "
                log_to_console(self.speaker, rank_here())
                if rank_here():
                    self.help_leader(cfg)
                    return None
                return self.run_in_sweep(cfg)
        log_to_console(rank=rank_here())
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return self.run_in_sweep(cfg)
        try:
            self.prepare(cfg)()
        except Exception as error:  # Hydra would print its own message; `run_command` prints ours
            self.error = error
        return None

    def help_leader(self, cfg: DictConfig) -> None:
        """Run a job of a sweep in a process that does not lead: the leader keeps the record."""
        before = Sweep(Path(HydraConfig.get().sweep.dir).absolute()).read(self.record(cfg).folder)
        if self.name == "sample" and before and before.status == DONE:  # as in `run_in_sweep`
            return
        try:
            self.prepare(cfg)()
        except Exception as error:  # launchers show the leader's alone
            print(f"error: rank {rank_here()}: {as_user_error(error, self.name) or error!r}", file=sys.stderr)
            raise

    def run_in_sweep(self, cfg: DictConfig) -> float | None:
        """Run a job of a sweep and record how it ended. A failure is reported here and does not end the sweep."""
        settings, job = HydraConfig.get(), self.record(cfg)
        sweep = Sweep(Path(settings.sweep.dir).absolute())
        with sweep.hold(job):
            try:
                varied = " ".join(f"{key}={value}" for key, value in job.varied.items())
                log.info("job %s: %s", job.number, varied or " ".join(job.overrides))
                # A run's folder knows by itself whether it is finished, and whether its options are the same.
                before = sweep.done_before(job) if self.name != "train" else None
                if before and self.name != "eval":  # eval prints the scores again
                    log.info("job %s: done before", job.number)
                    return before.first_value
                return self.run_recorded(cfg, sweep, job)
            except UsageError as refused:
                log.error("job %s: %s", job.number, refused)
                return None
            finally:
                with suppress(OSError):  # not empty: Hydra made it before the job could be refused
                    Path(settings.runtime.output_dir).rmdir()
                sweep.draw()

    def run_recorded(self, cfg: DictConfig, sweep: Sweep, job: Record) -> float | None:
        """Run a job, and write its record before and after it. None if it fails, which Optuna counts as failed."""
        job = sweep.begin(job)
        started = time.monotonic()
        ended = replace(job, status=FAILED)
        try:
            run = self.prepare(cfg)
            started = time.monotonic()  # imports, which happen once, are not part of a job's time
            ended = replace(job, status=DONE, values=finite(run()))
            return ended.first_value
        except Exception as error:
            known = as_user_error(error, self.name)
            log.error("job %s: %s", job.number, known or traceback.format_exc())
            ended = replace(ended, reason=str(known or f"{type(error).__name__}: {error}").partition("\n")[0])
            return None
        except (KeyboardInterrupt, Terminated):
            ended = replace(ended, status=INTERRUPTED)
            raise
        finally:
            with handle_signals(lambda *_: None):  # a second signal must not lose the record
                sweep.write(replace(ended, seconds=job.seconds + time.monotonic() - started))

    def record(self, cfg: DictConfig) -> Record:
        """The record of the job that Hydra is about to run."""
        settings = HydraConfig.get()
        fixed = settings.job.config.override_dirname.exclude_keys
        typed = [word.lstrip("+~").partition("=") for word in settings.overrides.task]
        return Record(
            number=int(settings.job.num),
            folder=Path(settings.runtime.output_dir).name,
            command=self.name,
            typed=self.line,
            overrides=list(settings.overrides.task),
            varied={key: value.strip("'\"") for key, _, value in typed if key not in fixed},
            given=self.given,
            trained=config_of_run(cfg),
        )

    def prepare(self, cfg: DictConfig) -> Callable[[], Mapping[str, float]]:
        """Check the config. Returns a function that runs the command with it."""
        config: Any = checked(cfg, SCHEMAS[self.name])
        refuse_wrong_direction(config.first_score)
        from diffuse.runs.output import Output  # imports torch: not before the config is known to be right

        settings = HydraConfig.get()
        output = Output(
            command=self.line,
            overrides=list(settings.overrides.task),
            choices={str(group): str(choice) for group, choice in settings.runtime.choices.items()},
            sweep_folder=Path(settings.runtime.output_dir) if settings.mode == RunMode.MULTIRUN else None,
            varied=list(self.record(cfg).varied) if settings.mode == RunMode.MULTIRUN else (),
        )
        run = importlib.import_module(f"diffuse.commands.{self.name}").run
        raise_pending()
        from diffuse.system.joining import processes_to_start

        if (count := processes_to_start(config.device)) > 1:
            from diffuse.system.launcher import launch_processes

            restarts = int(config.device.get("restarts", 0))
            return partial(launch_processes, count, restarts, self.speaker, run, config, output)
        return partial(run, config, output)


def config_of_run(cfg: DictConfig) -> dict[str, Any]:
    """The config of the run that `ckpt` lies in, for the table of a sweep; empty where there is none."""
    ckpt = OmegaConf.select(cfg, "ckpt", default=None)
    if not isinstance(ckpt, str):
        return {}
    record = record_around(ckpt)
    return plain(record) if record else {}


def refuse_wrong_direction(score: str | None) -> None:
    """Raise UsageError if Optuna is to minimise a score that is better when it is larger."""
    sweeper = HydraConfig.get().sweeper
    upwards = score is not None and score.startswith(MORE_IS_BETTER)
    if upwards and "optuna" in sweeper._target_ and str(sweeper.direction).endswith("minimize"):
        raise UsageError(f"{score} is better when it is larger: set hydra.sweeper.direction=maximize")
