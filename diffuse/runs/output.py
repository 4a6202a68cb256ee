"""One execution of a command: where its output goes, and the log beside it."""

import json
import logging
import os
import platform
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

import diffuse
from diffuse.system.errors import Terminated, UserError
from diffuse.system.files import check_name, hold_lock, make_folder, make_new_folder, short_path, write_atomic
from diffuse.system.progress import logged_to


@dataclass(frozen=True)
class Output:
    """What an execution is called by and where its output goes.

    command       the line that was typed
    overrides     its words
    choices       the option that was chosen in each group
    sweep_folder  the folder that a sweep made for this job
    """

    command: str
    overrides: Sequence[str]
    choices: Mapping[str, str]
    sweep_folder: Path | None = None

    @property
    def filed_under(self) -> str:
        """<dataset>-<schedule>-<unet>, which runs without a name are filed under."""
        return "-".join(self.choices.get(group, "custom") for group in ("dataset", "schedule", "unet"))

    @contextmanager
    def new_folder(
        self,
        parent: Path,
        name: str | None,
        log_name: str,
        is_continued: Callable[[Path], bool] = lambda folder: False,
    ) -> Iterator[Path]:
        """Work in a new folder: parent/<name>, or parent/<time> without a name, or the sweep's.

        Raises UserError where the name is taken, unless is_continued(folder) says that this goes on with what is there.
        """
        folder = self.folder(parent, name)
        if folder is None:
            folder = make_new_folder(parent / now())
        elif folder.exists() and any(folder.iterdir()) and not is_continued(folder):
            raise UserError(f"{short_path(folder)} exists already: choose another name=")
        make_folder(folder)
        with hold_lock(folder / ".lock", if_taken=partial(refuse_folder_in_use, folder)), self.logged(folder, log_name):
            yield folder

    def folder(self, parent: Path, name: str | None) -> Path | None:
        """Where this job's output goes: the sweep's folder for it, or parent/<name>; None without a name."""
        return self.sweep_folder or (parent / check_name(name) if name is not None else None)

    @contextmanager
    def logged(self, folder: Path, log_name: str) -> Iterator[None]:
        """Keep what was typed and what happens in the folder's log, failures included."""
        typed = json.dumps(list(self.overrides))  # JSON is YAML too
        write_atomic(folder / ".hydra" / "overrides.yaml", lambda file: file.write(typed + "\n"))
        with logged_to(folder / log_name) as only_there:
            versions = f"diffuse {diffuse.__version__}, torch {torch.__version__}"
            process = f"process {os.getpid()} on {platform.node()}"
            only_there(logging.INFO, f"{self.command}   ({versions}, {process})")
            try:
                yield
            except UserError as error:
                only_there(logging.ERROR, str(error))
                raise
            except (KeyboardInterrupt, Terminated) as stop:
                only_there(logging.WARNING, "interrupted" if isinstance(stop, KeyboardInterrupt) else "terminated")
                raise
            except BaseException:
                only_there(logging.ERROR, traceback.format_exc())
                raise


def refuse_folder_in_use(folder: Path) -> None:
    raise UserError(f"{short_path(folder)} is in use: another process is writing there; choose another name=")


def now() -> str:
    """The time, as a folder's name."""
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
