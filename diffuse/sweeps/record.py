"""The record of a sweep's job: how it was begun and what became of it, as a JSON file holds it."""

import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

DONE, FAILED, INTERRUPTED, RUNNING, KILLED = "done", "failed", "interrupted", "running", "killed"


@dataclass(frozen=True)
class Record:
    """A job as it was begun, and what became of it.

    folder: its folder's name in the sweep's; varied: the keys that differ between jobs, with their values as typed;
    given: which time the sweep was given, as a word that no other time has; refused: why it could not be done again
    with other options, while what it did before stands.
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
    process: int = field(default_factory=os.getpid)
    host: str = field(default_factory=platform.node)
    began: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))

    def value(self, name: str) -> float | None:
        """A value that the job reported, if it is a finite number and of the options that were asked for."""
        return None if self.refused else self.values.get(name)

    @property
    def first_value(self) -> float | None:
        """The first value of a job, which is what an optimiser minimises; None counts as a failure there."""
        return next(iter(self.values.values()), None)


def closing_words(jobs: Sequence[Record]) -> str | None:
    """What to say of the jobs that are not done at the end of a sweep; None if all are."""
    failed = [str(job.number) for job in jobs if job.status == FAILED or job.refused]
    lost = [str(job.number) for job in jobs if job.status in (KILLED, RUNNING, INTERRUPTED)]
    sentences = []
    if failed:
        sentences.append(f"{len(failed)} of the sweep's jobs failed: {', '.join(failed)}")
    if lost:
        sentences.append(f"{len(lost)} did not end: {', '.join(lost)}; the same command with its name= goes on")
    return ". ".join(sentences) or None


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Values as JSON and a table can hold them: None in place of one that is no finite number."""
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
