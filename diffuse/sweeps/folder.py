"""A sweep's jobs: a record of each on the disk, so that any process, and any later one, can say what became of them.

multirun.yaml                     what was swept, by Hydra
<number>_<what varies>/           a folder for each job: a run, samples or scores
jobs/<the same name>.json         its record: what it was, whether it is done, what it reported
sweep.csv  sweep.md  sweep.png    all records as a table, for programs and for people, and as a picture
"""

import json
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock, Timeout

from diffuse.sweeps import table
from diffuse.sweeps.record import DONE, KILLED, RUNNING, Record
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import SWEEP_RECORD, hold_lock, make_folder, remove_leftovers, write_atomic, write_json
from diffuse.system.progress import log

JOBS, CSV, MARKDOWN, PICTURE = "jobs", "sweep.csv", "sweep.md", "sweep.png"
# What lies in a sweep's folder besides the folders of its jobs; the last two are Optuna's and Submitit's.
NOT_JOBS = {SWEEP_RECORD, JOBS, CSV, MARKDOWN, PICTURE, "optimization_results.yaml", ".submitit"}
# A picture costs a second or two: after a job of seconds, the one before it will do until the sweep ends.
FRESH = 20.0


class Sweep:
    """The folder of a sweep, as each of its jobs and whoever waits for them see it."""

    def __init__(self, folder: Path):
        self.folder, self.jobs = folder, folder / JOBS

    @contextmanager
    def held(self, job: Record) -> Iterator[None]:
        """Hold a job's lock while it runs: a record that says "running" without it is of a process that was killed."""
        make_folder(self.jobs)
        lock = self._lock(job)
        with self._alone():  # nobody else is trying the lock just now
            try:
                lock.acquire(timeout=0)
            except Timeout as taken:
                raise UserError(f"job {job.number} of {self.folder} is in use: another process is at it") from taken
        try:
            yield
        finally:
            lock.release()

    def begin(self, job: Record) -> Record:
        """Write the record of a job that begins; its seconds are those of the times before."""
        before = self.read(job.folder)
        job = replace(job, seconds=before.seconds if before else 0.0)
        self.write(job)
        return job

    def done_before(self, job: Record) -> Record | None:
        """The record of the same job if it is done. Raises UsageError where it was done with other options."""
        before = self.read(job.folder)
        if before is None or before.status != DONE:
            return None
        then, now = sorted({*before.overrides} - {*job.overrides}), sorted({*job.overrides} - {*before.overrides})
        if then != now:
            was, wanted = (" ".join(words) or "without it" for words in (then, now))
            reason = f"it was done with {was}, and is now asked for with {wanted}: choose another name="
            self.write(replace(before, given=job.given, refused=reason))
            raise UsageError(reason)
        before = replace(before, given=job.given, refused="")
        self.write(before)
        return before

    def write(self, job: Record) -> None:
        """Write a job's record, and the tables in which it is a row."""
        make_folder(self.jobs)
        write_json(self.jobs / f"{job.folder}.json", asdict(job))
        self.write_tables()

    def read(self, folder: str) -> Record | None:
        """The record of the job in this folder, if there is one that can be read."""
        with suppress(OSError, ValueError, TypeError):
            return Record(**json.loads((self.jobs / f"{folder}.json").read_text(encoding="utf-8")))
        return None

    def records(self) -> list[Record]:
        """Every job's record, in the order of their numbers, as they are on the disk."""
        found = [self.read(path.stem) for path in self.jobs.glob("*.json")]
        return sorted((job for job in found if job), key=lambda job: (job.number, job.began, job.folder))

    def rows(self) -> list[Record]:
        """Every job's record, with "killed" where one says "running" and nobody runs it."""
        if not self.jobs.is_dir():
            return []
        with self._alone():
            return self._rows()

    def _rows(self) -> list[Record]:
        return [
            replace(job, status=KILLED) if job.status == RUNNING and self._is_free(job) else job
            for job in self.records()
        ]

    def write_tables(self) -> None:
        """Write sweep.csv and sweep.md from all records."""
        with self._alone():
            remove_leftovers(self.folder)
            jobs = self._rows()
            write_atomic(self.folder / CSV, lambda file: file.write(table.as_csv(jobs)))
            drawn = PICTURE if (self.folder / PICTURE).exists() else None
            write_atomic(self.folder / MARKDOWN, lambda file: file.write(table.as_markdown(jobs, drawn)))

    def draw(self, fresh: float = FRESH) -> None:
        """Draw sweep.png, unless it is `fresh` seconds old or less. A picture is no reason for a sweep to fail."""
        path = self.folder / PICTURE
        try:
            if path.exists() and time.time() - path.stat().st_mtime <= fresh:
                return
            from diffuse.sweeps import picture  # with matplotlib, which takes a second

            picture.draw(self.folder, path, self.rows())
        except Exception as error:
            log.warning(f"could not draw {path}: {type(error).__name__}: {error}")

    def of_this_time(self, given: str) -> list[Record]:
        """The jobs that were begun, passed over or refused this time."""
        return [job for job in self.rows() if job.given == given]

    def ask_jobs_to_end(self, given: str) -> None:
        """Send SIGTERM to this time's jobs in other processes of this machine, and wait until they have ended."""
        asked = set()
        while others := [job for job in self.records() if job.given == given and self._is_elsewhere_here(job)]:
            for job in others:
                if job.process not in asked:
                    with suppress(ProcessLookupError):
                        os.kill(job.process, signal.SIGTERM)
                    asked.add(job.process)
            time.sleep(0.05)

    def _is_elsewhere_here(self, job: Record) -> bool:
        """Whether the job runs in another process of this machine."""
        if job.status != RUNNING or job.host != platform.node() or job.process == os.getpid():
            return False
        try:
            os.kill(job.process, 0)
        except OSError:
            return False
        return True

    def remains_of_nothing(self) -> bool:
        """Whether the folder holds what is said of jobs, not one job's folder, and no job is about to make one."""
        if not self.folder.is_dir() or not {inside.name for inside in self.folder.iterdir()} <= NOT_JOBS:
            return False
        return all(job.status != RUNNING for job in self.rows())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait for whoever reads or writes the tables just now."""
        with hold_lock(self.jobs / ".lock", if_taken=lambda: None):
            yield

    def _lock(self, job: Record) -> FileLock:
        return FileLock(self.jobs / f".{job.folder}.lock")

    def _is_free(self, job: Record) -> bool:
        lock = self._lock(job)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
        return True
