"""Hydra's side: compose the config of a command, check it, run it, and word what goes wrong."""

import importlib
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from diffuse.errors import Terminated, UsageError, did_you_mean
from diffuse.files import CONFIGS, OUTPUTS, RECORD, SWEEP_RECORD, checked_name, slug, write_whole
from diffuse.help import help_of
from diffuse.progress import log, log_to_console
from diffuse.schema import SCHEMAS, checked
from diffuse.stopping import at_once, end, handled_by
from diffuse.sweep import (
    DONE,
    FAILED,
    INTERRUPTED,
    JOBS,
    KILLED,
    MARKDOWN,
    PICTURE,
    Record,
    Sweep,
    closing_words,
    finite,
)
from diffuse.sweep_table import as_text
from diffuse.wording import Message, worded

BARE_FLAGS = (
    "--multirun",
    "-m",
    "--run",
    "-r",
    "--help",
    "-h",
    "--hydra-help",
    "--resolve",
    "--shell-completion",
    "-sc",
)
CONFIGS_TO_SHOW = ("job", "hydra", "all")
THINGS_TO_SHOW = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
# Hydra's flags that take a value, and which values where there are few.
FLAGS_WITH_VALUE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("--cfg", "-c"), CONFIGS_TO_SHOW),
    **dict.fromkeys(("--info", "-i"), THINGS_TO_SHOW),
    **dict.fromkeys(("--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"), ()),
}
# Commands that look for themselves whether a job's folder is finished, half done or of other options.
PASS_OVER_WHAT_IS_DONE = ("train",)
OVERRIDE = re.compile(r"(\+{0,2}[^=+~-][^=]*=|~[^=]+)", re.DOTALL)


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
                if self.name not in PASS_OVER_WHAT_IS_DONE and (before := sweep.done_before(job)):
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
        from diffuse.job import Job  # the command's module imports torch: not before the config is known to be right

        settings = HydraConfig.get()
        job = Job(
            command=shlex.join(["diffuse", self.name, *self.typed]),
            overrides=list(settings.overrides.task),
            choices={str(group): str(choice) for group, choice in settings.runtime.choices.items()},
            sweep_folder=Path(settings.runtime.output_dir) if settings.mode == RunMode.MULTIRUN else None,
        )
        return partial(importlib.import_module(f"diffuse.{self.name}").run, config, job)


def remove_if_empty(folder: Path) -> None:
    """Hydra makes a sweep's job folders before we can refuse the job."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def main(command: str, typed: list[str]) -> int:
    """Run a command from its words; the exit code is 0 done, 1 failed, 2 not understood, 128 + n for signal n."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    SweepFolder.path = None
    task = Command(command, typed)

    def ask_jobs_to_end(number: int, frame: FrameType | None) -> None:
        with handled_by(at_once):  # asked again, we do not wait for them
            if SweepFolder.path:
                Sweep(SweepFolder.path).ask_jobs_to_end(task.given)
        at_once(number, frame)

    with handled_by(at_once), handled_by(ask_jobs_to_end):
        return run_command(task)


def run_command(task: Command) -> int:
    """`main`, with signals raised as exceptions: run the command, end its sweep if it was one, and word errors."""
    try:
        compose_and_run(task)
        message = end_of_sweep(task, None)
    except KeyboardInterrupt:
        show_table()
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads what we print, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what shells say of a process that SIGPIPE ended
    except Terminated as stop:
        with suppress(OSError):  # the terminal may be gone
            show_table()
            print("terminated", file=sys.stderr)
        return stop.exit_code
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 1
    except Exception as error:
        message = end_of_sweep(task, error) or worded(error, task.name, str(CONFIGS))
        if message is None:
            traceback.print_exc()
            print("error: this is a mistake in diffuse, not yours; please report it", file=sys.stderr)
            return 1
    if message is None:
        return 0
    print(f"error: {message.text}", file=sys.stderr)
    return message.exit_code


def compose_and_run(task: Command) -> None:
    """Let Hydra compose the config and call the task, once or for each job of a sweep."""
    words = named_by_what_varies(overrides_first(task.typed))
    sys.argv = ["diffuse" if {"-sc", "--shell-completion"} & set(words) else f"diffuse {task.name}", *words]
    config_name = resumed(task.typed) if task.name == "train" else task.name
    hydra.main(config_path=str(CONFIGS), config_name=config_name, version_base="1.3")(task)()
    if task.error:
        raise task.error


def end_of_sweep(task: Command, error: Exception | None) -> Message | None:
    """Show a sweep's table and word what its records say is not done; None if that explains no error."""
    jobs = Sweep(SweepFolder.path).of_this_time(task.given) if SweepFolder.path else []
    if jobs:
        show_table()
    SweepFolder.remove_if_nothing_ran()
    words = closing_words(jobs)
    if error and any(job.status == DONE for job in jobs) and not any(job.status == KILLED for job in jobs):
        return None  # not the jobs, then, but what calls them
    return Message(words, 1) if words else None


def show_table() -> None:
    """Print the table of the sweep, if there was one, and where it stands."""
    if SweepFolder.path is None or not (SweepFolder.path / JOBS).is_dir():
        return
    sweep = Sweep(SweepFolder.path)
    sweep.draw(fresh=0)
    with suppress(OSError):  # a full disk has been heard of; the table is printed all the same
        sweep.write_tables()
    print("\n" + as_text(sweep.rows(), shutil.get_terminal_size((120, 24)).columns))
    if not sweep.remains_of_nothing():
        picture = sweep.folder / PICTURE
        beside = f"   picture: {shown(picture)}" if picture.exists() else ""
        print(f"\ntable: {shown(sweep.folder / MARKDOWN)}{beside}")


def shown(path: Path) -> str:
    """The path as it can be typed from here."""
    return os.path.relpath(path)


def overrides_first(typed: list[str]) -> list[str]:
    """Hydra's parser wants all overrides in one block, so `schedule=cosine -m unet=tiny,small` is put in order."""
    overrides: list[str] = []
    flags: list[str] = []
    words = iter(typed)
    for word in words:
        flag, _, attached = word.partition("=")
        if not word.startswith("-"):
            if not OVERRIDE.match(word):
                raise UsageError(f"{word!r} is not of the form key=value")
            overrides.append(word)
        elif flag in FLAGS_WITH_VALUE:
            value = attached or next(words, None)
            allowed = FLAGS_WITH_VALUE[flag]
            if value is None or (allowed and value not in allowed):
                raise UsageError(f"{flag} wants {'one of ' + ', '.join(allowed) if allowed else 'a value'}")
            flags += [flag, value]
        elif word in BARE_FLAGS:
            flags.append(word)
        else:
            raise UsageError(f"there is no flag {word!r}.{did_you_mean(word, (*BARE_FLAGS, *FLAGS_WITH_VALUE))}")
    return [*overrides, *flags]


def by_key(words: Sequence[str]) -> dict[str, Override]:
    """The overrides among the words; of a key that is typed twice the last counts, as it does for Hydra."""
    overrides = OverridesParser.create().parse_overrides([word for word in words if OVERRIDE.match(word)])
    return {override.key_or_group: override for override in overrides}


def named_by_what_varies(words: list[str]) -> list[str]:
    """For a sweep, tell Hydra to leave what is the same in all jobs out of the names of their folders."""
    if not {"-m", "--multirun"} & set(words):
        return words
    typed = by_key(words)
    varied = {key for key, override in typed.items() if override.is_sweep_override()}
    if "name" in varied:
        raise UsageError("a sweep has one name; in its folder the jobs' folders are named by what varies")
    if "name" in typed:
        refuse_other_content(OUTPUTS / checked_name(str(typed["name"].value())), varied)
    fixed = [key for key in typed if key not in varied]
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]", *words]


def refuse_other_content(folder: Path, varied: set[str]) -> None:
    """Raise UsageError where a sweep's folder holds something else than a sweep over the same keys."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    record = folder / SWEEP_RECORD
    if not record.exists():
        kind = "a single run" if (folder / RECORD).exists() else "no sweep"
        raise UsageError(f"{folder} exists already and is {kind}: a sweep needs another name=")
    words = OmegaConf.select(OmegaConf.load(record), "hydra.overrides.task") or []
    before = {key for key, override in by_key(list(words)).items() if override.is_sweep_override()}
    if before != varied:
        then, now = (", ".join(sorted(keys)) or "nothing" for keys in (before, varied))
        raise UsageError(f"{folder} holds a sweep over {then}, and this one is over {now}: choose another name=")


def resumed(typed: list[str]) -> str:
    """The config that a training is composed from: `train`, or with resume=RUN the record of that run alone."""
    folders = [word.partition("=")[2] for word in typed if word.startswith("resume=")]
    if not folders or folders[-1] in ("", "null"):
        return "train"
    from diffuse.run import read_record

    record = read_record(Path(folders[-1]).expanduser())
    ConfigStore.instance().store(name="resumed", node={"defaults": ["train_schema", "common", "_self_"], **record})
    return "resumed"
