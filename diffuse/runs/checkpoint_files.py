"""The names of the checkpoints in a folder, which say their steps. This module does not import torch."""

import re
from pathlib import Path

CHECKPOINTS = "checkpoints"  # the folder in a run
MILESTONE = ".milestone"
LAST, BEST = "last.pt", "best.pt"
NAME = re.compile(r"step_\d+(\.milestone)?\.pt")


def is_milestone(step: int, milestone_every: int | None) -> bool:
    """Whether the checkpoint of this step is never removed."""
    return milestone_every is not None and step % milestone_every == 0


def all_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob("step_*.pt") if NAME.fullmatch(path.name) and path.is_file()]
    return sorted(found, key=lambda path: (step_of(path), path.name))


def step_of(path: Path) -> int:
    """The step that a checkpoint was written at, from its name."""
    return int(path.name[5:].partition(".")[0])


def numbered(path: Path) -> Path:
    """The name with the step of a checkpoint that is also called last.pt."""
    if path.name != LAST:
        return path
    return next((other for other in all_in(path.parent) if other.samefile(path)), path)
