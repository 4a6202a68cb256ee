"""The folder of a sweep, with a record of each job, so that any process, at any later time, knows how every job ended.

multirun.yaml                     the record of the sweep, by Hydra
<number>_<what varies>/           a folder for each job: a run, samples or scores
jobs/<the same name>.json         the job's record: its options, whether it is done, what it reported
sweep.csv  sweep.md  sweep.png    all records as a table, for programs and for people, and as a picture
"""

import json
import os
import platform
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from filelock import Timeout

from diffuse.sweeps import table
from diffuse.sweeps.record import DONE, KILLED, RUNNING, Record
from diffuse.sweeps.rows import by_configs
from diffuse.sweeps.samples import with_distances
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import SWEEP_RECORD, hold_lock, lock_now, remove_leftovers, write_atomic, write_json
from diffuse.system.progress import log

JOBS, CSV, MARKDOWN, PICTURE = "jobs", "sweep.csv", "sweep.md", "sweep.png"
# What lies in a sweep's folder besides the folders of its jobs; the last two are Optuna's and Submitit's.
NOT_JOBS = {SWEEP_RECORD, JOBS, CSV, MARKDOWN, PICTURE, "optimization_results.yaml", ".submitit"}
FRESH = 20.0  # seconds for which a picture need not be drawn again, which takes a second or two


class Sweep:
    """The folder of a sweep: its jobs write their records, and the process that waits for them reads the records."""

    def __init__(self, folder: Path):
        self.folder, self.jobs = folder, folder / JOBS

    def join(self) -> None:
        """Hold a lock for this call of the command line while this object lives: no other call removes the folder."""
        with self._exclusive():
            self._call = lock_now(self.jobs / f".call-{os.getpid()}.lock")

    @contextmanager
    def hold(self, job: Record) -> Iterator[None]:
        """Hold a job's lock while it runs: a record with status "running" and a free lock is of a killed process."""
        with self._exclusive():  # no other process tries the lock meanwhile
            try:
                held = self._lock(job)
            except Timeout as taken:
                raise UserError(f"job {job.number} of {self.folder} is in use: another process runs it") from taken
        with held:
            yield

    def begin(self, job: Record) -> Record:
        """Write the record of a job that begins; its seconds are those of earlier calls."""
        before = self.read(job.folder)
        job = replace(job, seconds=before.seconds if before else 0.0)
        self.write(job)
        return job

    def done_before(self, job: Record) -> Record | None:
        """The record of the same job if it is done. Raises UsageError if it was done with other options."""
        before = self.read(job.folder)
        if before is None or before.status != DONE:
            return None
        # The name of the sweep is that of its folder, whether it was typed or found by the time.
        old, new = ({word for word in each.overrides if not word.startswith("name=")} for each in (before, job))
        then, now = sorted(old - new), sorted(new - old)
        if then != now:
            was, wanted = (" ".join(words) or "without it" for words in (then, now))
            reason = f"it was done with {was}, and now has {wanted}: choose another name="
            self.write(replace(before, given=job.given, refused=reason))
            raise UsageError(reason)
        before = replace(before, given=job.given, refused="")
        self.write(before)
        return before

    def write(self, job: Record) -> None:
        """Write a job's record, and the tables in which it is a row."""
        write_json(self.jobs / f"{job.folder}.json", asdict(job))
        self.write_tables()

    def read(self, folder: str) -> Record | None:
        """The record of the job with this folder, if there is one that can be read."""
        with suppress(OSError, ValueError, TypeError):
            return Record(**json.loads((self.jobs / f"{folder}.json").read_text(encoding="utf-8")))
        return None

    def records(self) -> list[Record]:
        """Every job's record as it is on the disk, in the order of their numbers."""
        found = [self.read(path.stem) for path in self.jobs.glob("*.json")]
        return sorted((job for job in found if job), key=lambda job: (job.number, job.began, job.folder))

    def rows(self) -> list[Record]:
        """Every job's record, with status "killed" in place of "running" if no process runs the job."""
        if not self.jobs.is_dir():
            return []
        with self._exclusive():
            return self._rows()

    def _rows(self) -> list[Record]:
        jobs = [replace(job, status=KILLED) if self._is_killed(job) else job for job in self.records()]
        return with_distances(self.folder, by_configs(jobs))

    def _is_killed(self, job: Record) -> bool:
        if job.status != RUNNING:
            return False
        try:
            with self._lock(job):
                return True
        except Timeout:
            return False

    def write_tables(self) -> None:
        """Write sweep.csv and sweep.md from all records."""
        with self._exclusive():
            remove_leftovers(self.folder, CSV, MARKDOWN)
            jobs = self._rows()
            picture = PICTURE if (self.folder / PICTURE).exists() else None
            write_atomic(self.folder / CSV, lambda file: file.write(table.as_csv(jobs)))
            write_atomic(self.folder / MARKDOWN, lambda file: file.write(table.as_markdown(jobs, picture)))

    def draw(self, fresh: float = FRESH) -> None:
        """Draw sweep.png, unless it is at most `fresh` seconds old. A sweep does not fail because of its picture."""
        path = self.folder / PICTURE
        try:
            if path.exists() and 0 <= time.time() - path.stat().st_mtime <= fresh:
                return
            from diffuse.sweeps import picture  # with matplotlib, which takes a second

            picture.draw(self.folder, path, self.rows())
        except Exception as error:
            log.warning(f"could not draw {path}: {type(error).__name__}: {error}")

    def jobs_of(self, given: str) -> list[Record]:
        """The jobs that this call of the command line began, skipped or refused."""
        return [job for job in self.rows() if job.given == given]

    def ask_jobs_to_end(self, given: str) -> None:
        """Send SIGTERM to this call's jobs in other processes of this machine, and wait until they have ended."""
        asked: set[int] = set()
        while running := {job.process for job in self.records() if job.given == given and runs_beside_us(job)}:
            for process in running - asked:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)
            asked |= running
            time.sleep(0.05)

    def has_no_results(self) -> bool:
        """Whether the folder has records and tables only, without any job's folder, and no job that may make one."""
        if not self.jobs.is_dir():
            return True
        with self._exclusive():
            return self._has_no_results()

    def _has_no_results(self) -> bool:
        names = {inside.name for inside in self.folder.iterdir()}
        return names <= NOT_JOBS and all(job.status != RUNNING for job in self._rows())

    def remove_without_results(self, made: Sequence[Path]) -> None:
        """Remove the records of a sweep without any results, unless another call of it goes on.

        made: the folders that this call of the command line made, the deepest first; those left empty are removed too.
        """
        if self.jobs.is_dir():
            with self._exclusive():
                if self._has_no_results() and not self._goes_on_elsewhere():
                    for path in map(self.folder.joinpath, NOT_JOBS):
                        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # not empty, or not made after all
                folder.rmdir()

    def _goes_on_elsewhere(self) -> bool:
        """Whether another process holds the lock of a call."""
        for path in self.jobs.glob(".call-*.lock"):
            try:
                if path.name != f".call-{os.getpid()}.lock":
                    with lock_now(path):
                        pass
            except Timeout:
                return True
        return False

    def _exclusive(self) -> AbstractContextManager[None]:
        """Wait until no other process reads or writes the tables."""
        return hold_lock(self.jobs / ".lock")

    def _lock(self, job: Record) -> AbstractContextManager[object]:
        """Take a job's lock, until the end of a context. Raises Timeout if another process has it."""
        return lock_now(self.jobs / f".{job.folder}.lock")


def runs_beside_us(job: Record) -> bool:
    """Whether the job runs in another process of this machine."""
    if job.status != RUNNING or job.host != platform.node() or job.process == os.getpid():
        return False
    with suppress(OSError):  # there is no such process, or it is another user's
        os.kill(job.process, 0)
        return True
    return False
