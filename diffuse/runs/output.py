"""One call of a command: the folder of its output, and the log in that folder."""

import json
import logging
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch

import diffuse
from diffuse.system.errors import Terminated, UserError
from diffuse.system.files import check_name, hold_lock, make_new_folder, short_path, write_atomic
from diffuse.system.progress import log_to_file
from diffuse.system.ranks import launch, may_be_restarted

LAUNCH = ".launch"  # in a folder: by which launch of several processes it was made


@dataclass(frozen=True)
class Output:
    """The command line of one call, and where its output goes.

    command       the command line
    overrides     its words
    choices       the option that was chosen in each group
    varied        the keys that a sweep varies
    sweep_folder  the folder that a sweep made for this job
    began         when the command began, by the clock of this machine: before any restart of its processes
    """

    command: str
    overrides: Sequence[str]
    choices: Mapping[str, str]
    sweep_folder: Path | None = None
    varied: Sequence[str] = ()
    began: float = field(default_factory=time.monotonic)

    @property
    def typed_keys(self) -> list[str]:
        """The groups and keys of the command line, those that a sweep varies first."""
        typed = [word.lstrip("+~").partition("=")[0] for word in self.overrides]
        return list(dict.fromkeys([*self.varied, *typed]))

    @property
    def filed_under(self) -> str:
        """<dataset>-<schedule>-<unet>, the folder of runs without a name."""
        return "-".join(self.choices.get(group, "custom") for group in ("dataset", "schedule", "unet"))

    @contextmanager
    def new_folder(
        self, parent: Path, name: str | None, log_name: str, is_continued: Callable[[Path], bool]
    ) -> Iterator[Path]:
        """Work in a new folder: parent/<name>, or parent/<time> without a name, or the sweep's.

        Raises UserError where the folder exists already, unless is_continued(folder). One with nothing but a log and
        hidden files is of a call that was stopped before it wrote anything.
        """
        folder = self.folder(parent, name) or self.folder_of_launch(parent) or self.make_folder(parent)
        written = [path for path in folder.glob("*") if not path.name.startswith(".") and path.name != log_name]
        if written and not is_continued(folder):
            raise UserError(f"{short_path(folder)} exists already: choose another name=")
        in_use = f"{short_path(folder)} is in use: another process is writing there; choose another name="
        with hold_lock(folder / ".lock", refusal=in_use), self.log_into(folder, log_name):
            yield folder

    def folder(self, parent: Path, name: str | None) -> Path | None:
        """The folder that a sweep made for this job, or else parent/<name>; None without a name."""
        return self.sweep_folder or (parent / check_name(name) if name is not None else None)

    def make_folder(self, parent: Path) -> Path:
        """A new folder named by the time, which another attempt of the same launch of processes finds again."""
        folder = make_new_folder(parent / timestamp())
        if name := launch():
            write_atomic(folder / LAUNCH, lambda file: file.write(name))
        return folder

    def folder_of_launch(self, parent: Path) -> Path | None:
        """The folder that an earlier attempt of this launch made, the newest one of its name; None without one."""
        marks = parent.glob(f"*/{LAUNCH}") if may_be_restarted() else ()
        ours = [mark for mark in marks if mark.read_text(encoding="utf-8") == launch()]
        return max(ours, key=lambda mark: mark.stat().st_mtime).parent if ours else None

    @contextmanager
    def log_into(self, folder: Path, log_name: str) -> Iterator[None]:
        """Write the command line and all messages to a log in the folder, and the error if the call fails."""
        words = json.dumps(list(self.overrides))  # JSON is YAML too
        write_atomic(folder / ".hydra" / "overrides.yaml", lambda file: file.write(words + "\n"))
        with log_to_file(folder / log_name) as only_there:
            versions = f"diffuse {diffuse.__version__}, torch {torch.__version__}"
            process = f"process {os.getpid()} on {platform.node()}"
            only_there(logging.INFO, f"{self.command}   ({versions}, {process})")
            try:
                yield
            except (KeyboardInterrupt, Terminated) as stop:
                only_there(logging.WARNING, "interrupted" if isinstance(stop, KeyboardInterrupt) else "terminated")
                raise
            except BaseException as error:
                only_there(logging.ERROR, str(error) if isinstance(error, UserError) else traceback.format_exc())
                raise


def timestamp() -> str:
    """The time, as the name of a folder."""
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
