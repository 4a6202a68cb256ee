"""What is known of a run from its folder alone: its state, how far it is, its last values. torch is not imported."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse.runs.checkpoint_files import CHECKPOINTS, all_in, step_of
from diffuse.runs.scalars import METRICS_FILE, last_values, read_metrics
from diffuse.system.files import RECORD, is_locked

RUNNING, FINISHED, FAILED, STOPPED, DAMAGED = "running", "finished", "failed", "stopped", "damaged"
LOSS = "loss"


@dataclass(frozen=True)
class Facts:
    """A run as its folder shows it.

    state    running: a process trains there; finished; failed: at a NaN or infinite loss; stopped, by a signal, a limit
             or a kill; damaged: its config.yaml cannot be read
    step     the last step: of the metrics while it is running, otherwise the last that is saved
    score    the name and value of the newest score of its samples or its likelihood, if there is one
    changed  when the training, an evaluation or a sampling last wrote something, in seconds since 1970
    size     bytes on the disk, everything in the folder together
    """

    folder: Path
    state: str
    step: int
    steps: int | None
    loss: float | None
    score: tuple[str, float] | None
    changed: float
    size: int


def runs_in(place: Path) -> Iterator[Path]:
    """The run folders in a folder and below it, the jobs of sweeps among them; hidden folders are left out."""
    for folder, inside, files in os.walk(place):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        here = Path(folder)
        if RECORD in files and {*inside, *files} & {CHECKPOINTS, METRICS_FILE, ".lock"}:
            inside.clear()
            yield here
        yield from (here / name for name in inside if (here / name).is_symlink() and (here / name / RECORD).is_file())


def facts_of(folder: Path) -> Facts:
    """The facts in a run's folder. Damaged files never make the listing fail."""
    try:
        return _facts_of(folder)
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return Facts(folder, DAMAGED, 0, None, None, None, 0.0, 0)


def _facts_of(folder: Path) -> Facts:
    files = [path for path in (folder / METRICS_FILE, folder / RECORD) if path.is_file()]
    saved = all_in(folder / CHECKPOINTS)
    lines, steps, running = read_metrics(folder), _steps(folder), is_locked(folder / ".lock")
    reached = max([*map(step_of, saved), *(line["step"] for line in lines if running)], default=0)
    if running:
        state = RUNNING
    elif steps is None:
        state = DAMAGED
    elif reached >= steps:
        state = FINISHED
    else:
        state = FAILED if (folder / "failure.pt").exists() else STOPPED
    values = {name: float(value) for name, value in last_values(folder).items()}
    loss = values.pop(LOSS, None)
    score = _newest_score(folder) or next(iter(values.items()), None)
    made = [*folder.glob("eval/*/eval.json"), *folder.glob("samples/*/samples.json")]
    changed = max((path.stat().st_mtime for path in (*files, *saved, *made)), default=0.0)
    return Facts(folder, state, reached, steps, loss, score, changed, _size(folder))


def _steps(folder: Path) -> int | None:
    """The number of steps in config.yaml, without parsing the rest of it; None where it has none."""
    if not (folder / RECORD).is_file():
        return None
    with suppress(OSError, ValueError):
        for line in (folder / RECORD).read_text(encoding="utf-8").splitlines():
            if line.startswith("steps:"):
                return int(line.partition(":")[2])
    return None


def _newest_score(folder: Path) -> tuple[str, float] | None:
    """The first value of the newest evaluation."""
    reports = [path for path in folder.glob("eval/*/eval.json") if path.is_file()]
    for report in sorted(reports, key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(OSError, ValueError, AttributeError, TypeError, RecursionError):
            values: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["values"]
            for name, value in (pair for found in values.values() for pair in found.items()):
                return printable(str(name)), float(value)
    return None


def printable(text: str) -> str:
    """The text without characters that would move a terminal's cursor: it may be a stranger's."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _size(folder: Path) -> int:
    """Bytes of all files, each counted once, whatever the number of its names."""
    found = {}
    for inside, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                status = Path(inside, name).lstat()
                found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())
