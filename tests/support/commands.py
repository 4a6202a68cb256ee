"""The commands as a test calls them: in this process, with a config composed by Hydra, or from outside, as typed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra

from diffuse.cli.app import CONFIGS
from diffuse.options.schema import SCHEMAS, checked
from diffuse.runs.output import Job

# A training of seconds: a network of 5,000 weights, sampling in three steps.
TINY = [
    "unet.channels=8", "unet.channel_mult=[1,1]", "unet.groups=4", "steps=6", "batch_size=16", "log.every=2",
    "images.every=3", "images.count=4", "checkpoint.every=3", "sampler.steps=3", "optim.warmup=2", "device=cpu",
    "device.precision=float32",
]  # fmt: skip

FAST = ["device=cpu", "device.precision=float32"]


def config(command: str, *overrides: str) -> dict[str, Any]:
    """The checked config of a command line, as plain values."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return checked(hydra.compose(command, overrides=list(overrides)), SCHEMAS[command])


def job() -> Job:
    return Job("test", [], {"dataset": "digits", "schedule": "linear", "unet": "tiny"})


def diffuse(*words: str, cwd: Path, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """`diffuse WORDS` in a process of its own, not on a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "diffuse", *words],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "160", **environment},  # a table is cut to the terminal's width
        capture_output=True,
        text=True,
        timeout=timeout,
    )
