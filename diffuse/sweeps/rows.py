"""The rows of a sweep's table: jobs told apart by what differs between them, and their mean over seeds."""

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffuse.options.differences import differences
from diffuse.options.score_names import LESS_IS_BETTER, MORE_IS_BETTER
from diffuse.sweeps.record import Record

CHECKPOINT = "ckpt"
SEEDS = ("seed", "trained.seed")
# The loss of one option of these groups is another quantity than that of the next: the smaller is not the better one.
LOSSES_DIFFER_BY = {"dataset", "schedule", "prediction", "loss", "weight", "times", "method"}


@dataclass(frozen=True)
class Row:
    """A row of a table: a job, or the jobs that differ in their seed alone."""

    jobs: Sequence[Record]

    def values(self, name: str) -> list[float]:
        """The values of this name that the jobs reported."""
        return [value for job in self.jobs if (value := job.value(name)) is not None]

    def mean(self, name: str) -> float | None:
        """The mean over seeds; a single job's own value."""
        return statistics.fmean(self.values(name)) if self.values(name) else None

    def deviation(self, name: str) -> float | None:
        """The standard deviation over seeds (n - 1); None for fewer than two values."""
        return statistics.stdev(self.values(name)) if len(self.values(name)) > 1 else None

    def varied(self, key: str) -> str:
        """The value of a key that varies; of the seed, all its values."""
        return ", ".join(dict.fromkeys(job.varied.get(key, "") for job in self.jobs))


def varied_keys(jobs: Iterable[Record]) -> list[str]:
    """The keys that differ between jobs, in the order of the first job that has each."""
    return list(dict.fromkeys(key for job in jobs for key in job.varied))


def value_names(jobs: Iterable[Record]) -> list[str]:
    """The names of the values that jobs reported, in the order of the first job that has each."""
    return list(dict.fromkeys(name for job in jobs if not job.refused for name in job.values))


def by_configs(jobs: Sequence[Record]) -> list[Record]:
    """The jobs with, in place of varied checkpoints, the options that differ between the configs of their runs.

    Where checkpoints of one run are compared, the ends of their paths stay.
    """
    if not all(CHECKPOINT in job.varied and job.trained for job in jobs) or not jobs:
        return list(jobs)
    found = differences([job.trained for job in jobs])
    taken = set(varied_keys(jobs))
    in_order = sorted(found, key=lambda key: key in SEEDS)  # the seed last
    columns = {f"trained.{key}" if key in taken else key: found[key] for key in in_order}
    paths = [job.varied[CHECKPOINT] for job in jobs]
    described = {path: tuple(values[place] for values in columns.values()) for place, path in enumerate(paths)}
    if len(set(described.values())) < len(described):  # paths whose options are the same
        whole = [str(Path(path).absolute()) for path in paths]
        shared = os.path.commonpath([Path(path).parent for path in whole])
        columns = {CHECKPOINT: [os.path.relpath(path, shared) for path in whole], **columns}
    return [
        replace(
            job,
            varied={
                **{key: values[place] for key, values in columns.items()},
                **{key: value for key, value in job.varied.items() if key != CHECKPOINT},
            },
        )
        for place, job in enumerate(jobs)
    ]


def over_seeds(jobs: Sequence[Record]) -> list[Row]:
    """A row for all seeds of the same options, with the newest job of each seed; none where no seed varies.

    A sweep that is given again with more seeds gives other numbers, and so other folders, to the same options.
    """
    groups: dict[tuple[tuple[str, str], ...], dict[tuple[str, ...], Record]] = {}
    for job in sorted(jobs, key=lambda job: job.began):
        others = tuple((key, value) for key, value in job.varied.items() if key not in SEEDS)
        groups.setdefault(others, {})[tuple(job.varied.get(seed, "") for seed in SEEDS)] = job
    rows = [Row(sorted(found.values(), key=lambda job: job.number)) for found in groups.values()]
    return sorted(rows, key=lambda row: row.jobs[0].number) if any(len(row.jobs) > 1 for row in rows) else []


def losses_differ(jobs: Iterable[Record]) -> bool:
    """Whether the jobs' losses are different quantities, as they are for two schedules, and cannot be compared."""
    return bool({key.partition(".")[0] for key in varied_keys(jobs)} & LOSSES_DIFFER_BY)


def best(rows: Sequence[Row], name: str) -> Row | None:
    """The row with the best of the values of this name; None where there is no choice.

    None too where less or more is not better, where the two best means over seeds are closer than twice the standard
    error of their difference, sqrt(s1^2 / n1 + s2^2 / n2), and where one of them alone is of a single seed.
    """
    if name == "loss" and losses_differ(job for row in rows for job in row.jobs):
        return None
    kind = name.partition("_")[0]  # fid_classifier is a fid
    found = [(mean, row) for row in rows if (mean := row.mean(name)) is not None]
    if len({mean for mean, _ in found}) < 2 or kind not in LESS_IS_BETTER + MORE_IS_BETTER:
        return None
    (first, leader), (second, follower), *_ = sorted(found, key=lambda each: each[0], reverse=kind in MORE_IS_BETTER)
    alone = [len(row.values(name)) < 2 for row in (leader, follower)]
    if all(alone):  # no seeds, or one each: there is no spread
        return leader
    errors = [(row.deviation(name) or 0.0) ** 2 / len(row.values(name)) for row in (leader, follower)]
    return leader if not any(alone) and abs(first - second) > 2 * sum(errors) ** 0.5 else None
