"""A process that does not lead a training: it builds the same objects, and takes the same steps."""

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffuse.runs import checkpoint
from diffuse.system.distributed import Task
from diffuse.system.errors import UserError
from diffuse.system.files import RECORD, sha256, short_path
from diffuse.training.initial import begin_with_given
from diffuse.training.loop import follow
from diffuse.training.setup import Training


class Beginning(NamedTuple):
    """What the other processes need to know of a training: its config, and its files and images with their SHA-256."""

    config: Any
    files: Mapping[Path, str]
    images: Mapping[str, str]
    checkpoint: Path | None


class Helper:
    """A process that does not lead. build: makes a training of its config."""

    def __init__(self, build: Callable[[Any], Training]):
        self._build_training = build
        self.tasks: dict[str, Task] = {"build": self.build, "train": self.train}

    def build(self, begun: Beginning) -> None:
        """Build the training in the state in which it begins."""
        refuse_other_files(begun.files)
        self.training, self.recorded = self._build_training(begun.config), dict[str, Any]()
        if (data := self.training.trainer.data).sha256 != begun.images:
            raise UserError(
                f"the images of {data.kind.name} on {platform.node()} are not those on the machine of rank 0: their "
                "hash differs. Remove them, so that they are prepared again, or put data_dir on a shared disk"
            )
        if begun.checkpoint:
            saved = checkpoint.load_checkpoint(begun.checkpoint)
            self.training.trainer.restore(saved)
            self.recorded = saved.content
        else:
            begin_with_given(self.training)

    def train(self, _: object) -> None:
        """Take all steps."""
        follow(self.training, self.recorded)


def tell_others(training: Training, folder: Path, saved: checkpoint.Stored | None) -> None:
    """Let the other processes build the training that begins in this folder, or goes on from this checkpoint."""
    if training.processes.count > 1:
        files = {folder / RECORD: sha256(folder / RECORD), **({saved.path: saved.sha256} if saved else {})}
        images = training.trainer.data.sha256
        begun = Beginning(training.config, files, images, saved.path if saved else None)
        training.processes.of_each("build", lambda _: None, begun)


def refuse_other_files(files: Mapping[Path, str]) -> None:
    """Raise UserError where a run has other files here than where the leader is: the disk is not a shared one."""
    for path, expected in files.items():
        if not path.is_file() or sha256(path) != expected:
            raise UserError(
                f"{short_path(path)} on {platform.node()} is not the file of that name on the machine of rank 0: put "
                "outputs/ on a disk that all machines share, and start all processes in the same folder"
            )
