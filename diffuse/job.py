"""One execution of a command: where its output goes, and the log beside it."""

import json
import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

import diffuse
from diffuse.errors import UserError
from diffuse.files import checked_name, make_own_folder, write_whole
from diffuse.progress import logged_to

OUTPUTS = Path("outputs")


@dataclass(frozen=True)
class Job:
    """command and overrides: what was typed; choices: the option picked in each group; sweep_folder: the folder that a
    sweep made for this job.
    """

    command: str
    overrides: Sequence[str]
    choices: Mapping[str, str]
    sweep_folder: Path | None = None

    @property
    def filed_under(self) -> str:
        """<dataset>-<schedule>-<unet>, what runs without a name are filed under."""
        return "-".join(self.choices.get(group, "custom") for group in ("dataset", "schedule", "unet"))

    @contextmanager
    def new_folder(self, parent: Path, name: str | None, log_name: str, otherwise: str = "") -> Iterator[Path]:
        """Work in a folder that was not there: parent/<name>, or parent/<time> without a name, or the sweep's.

        Raises UserError where the name is taken; `otherwise` says what else the user may have meant with {folder}.
        """
        if name is None and not self.sweep_folder:
            folder = make_own_folder(parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
        else:
            folder = self.sweep_folder or parent / checked_name(str(name))
            if folder.exists() and any(folder.iterdir()):
                hint = otherwise.format(folder=shown(folder))
                raise UserError(f"{shown(folder)} exists already: choose another name={hint}")
            folder.mkdir(parents=True, exist_ok=True)
        with self.logged(folder, log_name):
            yield folder

    @contextmanager
    def logged(self, folder: Path, log_name: str) -> Iterator[None]:
        """Keep what was typed and what happens in the folder's log, failures included."""
        typed = json.dumps(list(self.overrides))  # JSON is YAML too
        write_whole(folder / ".hydra" / "overrides.yaml", lambda file: file.write(typed + "\n"))
        with logged_to(folder / log_name) as only_there:
            only_there(logging.INFO, f"{self.command}   (diffuse {diffuse.__version__}, torch {torch.__version__})")
            try:
                yield
            except UserError as error:
                only_there(logging.ERROR, str(error))
                raise
            except KeyboardInterrupt:
                only_there(logging.WARNING, "interrupted")
                raise
            except BaseException:
                only_there(logging.ERROR, traceback.format_exc())
                raise


def shown(path: Path) -> str:
    """The path as short as it can be typed from here."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
