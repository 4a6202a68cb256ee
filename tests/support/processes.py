"""Trainings in processes of their own, which a test may stop or kill."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.forked import Forked


def started(folder: Path, *words: str, first: Callable[[], object] | None = None) -> Forked:
    """`diffuse train WORDS`, forked from a process with torch loaded; `first` is called in it before all else."""
    return Forked(["train", *words], folder, dict(os.environ), first)


def started_alone(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The same in a new process, for sweeps whose jobs are processes too."""
    return subprocess.Popen(
        [sys.executable, "-m", "diffuse", "train", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(process: Forked | subprocess.Popen[str], seconds: float) -> bool:
    """Wait for the process so long; whether it has ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.poll() is not None


def until_it_says(process: Forked, words: str) -> None:
    """Wait until the process has written these words to its standard output."""
    while words not in process.said()[0]:
        assert not until(process, 0.01), process.said()
