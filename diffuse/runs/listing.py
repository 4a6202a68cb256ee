"""What is known of a run from its folder alone: its state, how far it is, its last values. torch is not imported."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from diffuse.runs.checkpoint_files import CHECKPOINTS, all_in, step_of
from diffuse.runs.scalars import METRICS_FILE, last_values, read_metrics
from diffuse.system.files import RECORD, lock_now

RUNNING, FINISHED, FAILED, STOPPED, DAMAGED = "running", "finished", "failed", "stopped", "damaged"
LOSS = "loss"


@dataclass(frozen=True)
class Facts:
    """A run as its folder shows it.

    state    running: a process trains there; finished; failed: at a NaN or infinite loss; stopped, by a signal, a limit
             or a kill; damaged: its config.yaml cannot be read
    step     the last step: of the metrics while it is running, otherwise the last that is saved
    score    the name and value of the newest score of its samples or its likelihood, if there is one
    changed  when the training last wrote something, in seconds since 1970
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
    """The run folders in a folder and below it, the jobs of sweeps among them."""
    for folder, inside, files in os.walk(place):
        inside.sort()
        if RECORD in files:
            inside.clear()
            yield Path(folder)


def facts_of(folder: Path) -> Facts:
    """What the folder of a run tells."""
    saved = [step_of(path) for path in all_in(folder / CHECKPOINTS)]
    lines, steps = read_metrics(folder), _steps(folder)
    running = _is_running(folder)
    reached = max([*saved, *(line["step"] for line in lines if running)], default=0)
    written = [
        path.stat().st_mtime
        for path in (folder / METRICS_FILE, folder / RECORD, *all_in(folder / CHECKPOINTS))
        if path.exists()
    ]
    if running:
        state = RUNNING
    elif steps is None:
        state = DAMAGED
    elif reached >= steps:
        state = FINISHED
    else:
        state = FAILED if (folder / "failure.pt").exists() else STOPPED
    values = last_values(folder)
    loss = values.pop(LOSS, None)
    return Facts(
        folder,
        state,
        reached,
        steps,
        loss,
        _newest_score(folder) or next(iter(values.items()), None),
        max(written),
        _size(folder),
    )


def _steps(folder: Path) -> int | None:
    """The number of steps in config.yaml, without parsing the rest of it; None where it has none."""
    with suppress(OSError, ValueError):
        for line in (folder / RECORD).read_text(encoding="utf-8").splitlines():
            if line.startswith("steps:"):
                return int(line.partition(":")[2])
    return None


def _is_running(folder: Path) -> bool:
    """Whether a process holds the lock of the run."""
    lock = folder / ".lock"
    if not lock.exists():
        return False
    try:
        with lock_now(lock):
            return False
    except Timeout:
        return True
    except OSError:  # it may only be read
        return False


def _newest_score(folder: Path) -> tuple[str, float] | None:
    """The first value of the newest evaluation."""
    reports = sorted(folder.glob("eval/*/eval.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for report in reports:
        with suppress(OSError, ValueError, AttributeError, TypeError):
            values: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["values"]
            for found in values.values():
                return next((str(name), float(value)) for name, value in found.items())
    return None


def _size(folder: Path) -> int:
    """Bytes of all files, each counted once, whatever the number of its names."""
    found = {}
    for inside, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                status = Path(inside, name).lstat()
                found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())
