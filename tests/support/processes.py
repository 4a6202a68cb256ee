"""Trainings in processes of their own, which a test may stop or kill."""

import contextlib
import subprocess
import sys
from pathlib import Path


def started(folder: Path, *words: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "diffuse", "train", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def until(process: subprocess.Popen, seconds: float) -> bool:
    """Wait for the process so long; whether it has ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.poll() is not None
