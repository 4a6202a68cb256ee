"""The record of a job of a sweep: how it was begun and how it ended, as it is stored in a JSON file."""

import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DONE, FAILED, INTERRUPTED, RUNNING, KILLED = "done", "failed", "interrupted", "running", "killed"


@dataclass(frozen=True)
class Record:
    """A job of a sweep: how it was begun, and how it ended.

    folder   name of its folder in the sweep's folder
    typed    the command line
    varied   the keys that differ between jobs, with their values as typed
    given    identifies the call of the command line: a sweep may be continued by a later call
    values   the scores or the loss that it reported; None for one that is NaN or infinite
    trained  the config of the run in whose folder ckpt= lies, if the job had one
    refused  why this call could not do the job, which an earlier call did with other options; those results are kept
    """

    number: int
    folder: str
    command: str
    typed: str
    overrides: Sequence[str]
    varied: Mapping[str, str]
    given: str
    status: str = RUNNING
    values: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""
    refused: str = ""
    trained: Mapping[str, Any] = field(default_factory=dict)
    process: int = field(default_factory=os.getpid)
    host: str = field(default_factory=platform.node)
    began: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))

    def value(self, name: str) -> float | None:
        """A value that the job reported; None if it is not a finite number, or comes from other options."""
        return None if self.refused else self.values.get(name)

    @property
    def first_value(self) -> float | None:
        """The value that a sweeper such as Optuna minimises, which takes None as a failure."""
        return next(iter(self.values.values()), None)


def closing_message(jobs: Sequence[Record], again: str) -> str | None:
    """A message about the jobs that are not done at the end of a sweep; None if all are done.

    again: the command line that goes on with them.
    """
    failed = [str(job.number) for job in jobs if job.status == FAILED or job.refused]
    lost = [str(job.number) for job in jobs if did_not_end(job)]
    sentences = []
    if failed:
        sentences.append(f"{len(failed)} of the sweep's jobs failed: {', '.join(failed)}")
    if lost:
        sentences.append(f"{len(lost)} did not end: {', '.join(lost)}; continue with: {again}")
    return ".\n".join(sentences) or None


def did_not_end(job: Record) -> bool:
    """Whether a job was interrupted or killed, so that the same command would go on with it."""
    return job.status in (KILLED, RUNNING, INTERRUPTED)


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Values as JSON and a table can hold them: None in place of NaN and infinity."""
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
