"""Hydra's side: compose the config of a command, check it, run it, and word what goes wrong."""

import importlib
import logging
import os
import re
import shlex
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from diffuse.errors import Terminated, UsageError, UserError, did_you_mean
from diffuse.files import OUTPUTS, RECORD, checked_name, slug
from diffuse.help import help_of
from diffuse.progress import log, log_to_console
from diffuse.schema import SCHEMAS, checked
from diffuse.stopping import at_once, handled_by
from diffuse.wording import Message, worded

PACKAGE = Path(__file__).resolve().parent
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
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
logging.getLogger("hydra").setLevel(logging.ERROR)  # what it has to say, we say


class SweepFolder(Callback):
    """Remembers where Hydra put a sweep, for a sweep of which nothing came."""

    path: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        SweepFolder.path = Path(config.hydra.sweep.dir)

    @classmethod
    def remove_if_nothing_ran(cls) -> None:
        """Hydra writes multirun.yaml before it looks at the jobs; alone it is of no use."""
        if cls.path and cls.path.is_dir() and [inside.name for inside in cls.path.iterdir()] == ["multirun.yaml"]:
            (cls.path / "multirun.yaml").unlink()
            for folder in (cls.path, *cls.path.parents[:-1]):
                remove_if_empty(folder)


class JobFailed(UserError):
    """A job of a sweep failed and has said why; the sweep goes on."""


class Command:
    """One of our commands as Hydra calls it, once a job. A class of the module, so that launchers can pickle it."""

    def __init__(self, name: str, typed: list[str]):
        self.name, self.typed = name, typed
        self.error: Exception | None = None
        self.failed: list[int] = []

    def __call__(self, cfg: DictConfig) -> Any:
        log_to_console()
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return self.run_in_sweep(cfg)
        try:
            return self.run(cfg)
        except Exception as error:  # Hydra would print a line of its own; `main` words it
            self.error = error
            return None

    def run_in_sweep(self, cfg: DictConfig) -> Any:
        """Say where a job begins, and what goes wrong when it does: Hydra reports only the first failure, and last."""
        settings = HydraConfig.get()
        log.info("job %s: %s", settings.job.num, " ".join(settings.overrides.task))
        try:
            return self.run(cfg)
        except Exception as error:
            message = worded(error, self.name, str(CONFIGS))
            log.error("job %s: %s", settings.job.num, message.text if message else traceback.format_exc())
            self.failed.append(int(settings.job.num))
            raise JobFailed(f"job {settings.job.num} failed") from None
        finally:
            remove_if_empty(Path(settings.runtime.output_dir))

    def run(self, cfg: DictConfig) -> Any:
        """Check the config and hand it, as plain values, to the command's module; the first of what it reports."""
        config = checked(cfg, SCHEMAS[self.name])
        from diffuse.job import Job  # the command's module imports torch: not before the config is known to be right

        settings = HydraConfig.get()
        job = Job(
            command=shlex.join(["diffuse", self.name, *self.typed]),
            overrides=list(settings.overrides.task),
            choices={str(group): str(choice) for group, choice in settings.runtime.choices.items()},
            sweep_folder=Path(settings.runtime.output_dir) if settings.mode == RunMode.MULTIRUN else None,
        )
        values = importlib.import_module(f"diffuse.{self.name}").run(config, job)
        return next(iter(values.values()), None)


def remove_if_empty(folder: Path) -> None:
    """Hydra makes a sweep's job folders before we can refuse the job."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def main(command: str, typed: list[str]) -> int:
    """Run a command from its words; the exit code is 0 done, 1 failed, 2 not understood, 128 + n for signal n."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    with handled_by(at_once):
        return run_command(command, typed)


def run_command(command: str, typed: list[str]) -> int:
    """`main`, with signals raised as exceptions."""
    task = None
    try:
        words = named_by_what_varies(overrides_first(typed))
        program = "diffuse" if {"-sc", "--shell-completion"} & set(words) else f"diffuse {command}"
        sys.argv = [program, *words]
        config_name = resumed(typed) if command == "train" else command
        task = Command(command, typed)
        hydra.main(config_path=str(CONFIGS), config_name=config_name, version_base="1.3")(task)()
        if task.error:
            raise task.error
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads what we print, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what shells say of a process that SIGPIPE ended
    except Terminated as stop:
        with suppress(OSError):  # the terminal may be gone
            print("terminated", file=sys.stderr)
        return stop.exit_code
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 1
    except Exception as error:
        SweepFolder.remove_if_nothing_ran()
        message = worded(error, command, str(CONFIGS))
        if task and task.failed:  # Hydra hands on the first failure alone
            jobs = ", ".join(map(str, task.failed))
            message = Message(f"{len(task.failed)} of the sweep's jobs failed: {jobs}", 1)
        if message is None:
            traceback.print_exc()
            print("error: this is a mistake in diffuse, not yours; please report it", file=sys.stderr)
            return 1
        print(f"error: {message.text}", file=sys.stderr)
        return message.exit_code
    return 0


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


def named_by_what_varies(words: list[str]) -> list[str]:
    """For a sweep, tell Hydra to leave what is the same in all jobs out of the names of their folders."""
    if not {"-m", "--multirun"} & set(words):
        return words
    typed = OverridesParser.create().parse_overrides([word for word in words if OVERRIDE.match(word)])
    for override in typed:
        if override.key_or_group == "name" and override.is_sweep_override():
            raise UsageError("a sweep has one name; in its folder the jobs' folders are named by what varies")
    varied = {override.key_or_group for override in typed if override.is_sweep_override()}
    for override in typed:
        if override.key_or_group == "name":
            refuse_other_content(OUTPUTS / checked_name(str(override.value())), varied)
    fixed = [override.key_or_group for override in typed if not override.is_sweep_override()]
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]", *words]


def refuse_other_content(folder: Path, varied: set[str]) -> None:
    """Raise UsageError where a sweep's folder holds something else than a sweep over the same keys."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    record = folder / "multirun.yaml"
    if not record.exists():
        kind = "a single run" if (folder / RECORD).exists() else "no sweep"
        raise UsageError(f"{folder} exists already and is {kind}: a sweep needs another name=")
    words = OmegaConf.select(OmegaConf.load(record), "hydra.overrides.task") or []
    overrides = OverridesParser.create().parse_overrides(list(words))
    before = {override.key_or_group for override in overrides if override.is_sweep_override()}
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
