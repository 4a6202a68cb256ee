"""The commands as a test calls them: in this process, with a config composed by Hydra, or from outside, as typed."""

import os
import subprocess
import sys
from pathlib import Path

from diffuse.cli.task import compose as config
from diffuse.runs.output import Output
from tests.support import forked

__all__ = ["FAST", "PLAIN", "TINY", "config", "diffuse", "diffuse_alone", "output"]

# A training of seconds: a network of 5,000 weights, sampling in three steps. The recipe for one's own images chooses no
# mathematics, so that what the digits are best trained with is nothing that other tests depend on.
PLAIN = ["recipe=folder", "unet=tiny", "optim.lr=3e-3", "ema.decay=0.995"]
TINY = [
    *PLAIN,
    "unet.channels=8", "unet.channel_mult=[1,1]", "unet.groups=4", "steps=6", "batch_size=16", "log.every=2",
    "images.every=3", "images.count=4", "checkpoint.every=3", "sampler.steps=3", "optim.warmup=2", "device=cpu",
    "device.precision=float32",
]  # fmt: skip

WIDE = {"COLUMNS": "160"}  # a table is cut to the terminal's width
FAST = ["device=cpu", "device.precision=float32"]


def output() -> Output:
    return Output("test", [], {"dataset": "digits", "schedule": "linear", "unet": "tiny"})


def diffuse(*words: str, cwd: Path, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """`diffuse WORDS` in a process forked from one in which torch is loaded, not on a terminal."""
    return forked.run(list(words), cwd, {**os.environ, **WIDE, **environment}, timeout)


def diffuse_alone(*words: str, cwd: Path, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in a new process, for commands that start others."""
    return subprocess.run(
        [sys.executable, "-m", "diffuse", *words],
        cwd=cwd,
        env={**os.environ, **WIDE, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
