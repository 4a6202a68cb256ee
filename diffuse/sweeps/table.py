"""The table of a sweep: a row for each job, as CSV for programs, Markdown for people and text for a terminal."""

import csv
import io
import math
from collections.abc import Iterable, Sequence

from diffuse.options.score_names import LESS_IS_BETTER, MORE_IS_BETTER
from diffuse.sweeps.record import Record
from diffuse.system.progress import duration

SHORTEST_REASON = 24
# Groups of which each option has a loss of its own: the smaller one is not the better one.
LOSSES_DIFFER_BY = {"dataset", "schedule", "prediction", "loss", "weight", "times", "method"}


def varied_keys(jobs: Iterable[Record]) -> list[str]:
    """The keys that any job varies, in the order in which they are met."""
    return list(dict.fromkeys(key for job in jobs for key in job.varied))


def value_names(jobs: Iterable[Record]) -> list[str]:
    """The names of the values that any job reported, in the order in which they are met."""
    return list(dict.fromkeys(name for job in jobs if not job.refused for name in job.values))


def best(jobs: Sequence[Record], name: str) -> float | None:
    """The best of the values of that name, where there are several to choose from and some are better than others."""
    if name == "loss" and {key.partition(".")[0] for key in varied_keys(jobs)} & LOSSES_DIFFER_BY:
        return None
    values = [value for job in jobs if (value := job.value(name)) is not None]
    kind = name.partition("_")[0]  # fid_classifier is a fid
    if len(set(values)) < 2 or kind not in LESS_IS_BETTER + MORE_IS_BETTER:
        return None
    return max(values) if kind in MORE_IS_BETTER else min(values)


def short(value: float) -> str:
    """A number in about four digits."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"


def as_typed_or_short(text: str) -> str:
    """A varied value as it was typed, or in four digits where it has more than anybody types."""
    try:
        value = float(text)
    except ValueError:
        return text
    return short(value) if len(text) > 8 and math.isfinite(value) else text


def status(job: Record) -> str:
    """How a job ended; one that was refused has failed, whatever it did before."""
    return "failed" if job.refused else job.status


def reason(job: Record) -> str:
    """Why a job failed, in a sentence."""
    return (job.refused or job.reason).partition(". ")[0]


def as_csv(jobs: Sequence[Record]) -> str:
    """Every digit, a column for each varied key and each value."""
    keys, names = varied_keys(jobs), value_names(jobs)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["job", *keys, *names, "seconds", "status", "reason", "folder"])
    for job in jobs:
        values = [job.value(name) for name in names]  # None is an empty cell
        about = [round(job.seconds, 1), status(job), reason(job), job.folder]
        table.writerow([job.number, *(job.varied.get(key, "") for key in keys), *values, *about])
    return text.getvalue()


def as_markdown(jobs: Sequence[Record], picture: str | None) -> str:
    """What was typed, the table with the best of each value in bold, and the picture if there is one."""
    keys, names = varied_keys(jobs), value_names(jobs)
    leading = {name: best(jobs, name) for name in names}

    def value(job: Record, name: str) -> str:
        found = job.value(name)
        if found is None:
            return ""
        return f"**{short(found)}**" if found == leading[name] else short(found)

    rows = [["job", *keys, *names, "time", "status", "reason"], ["--:", *["---"] * len(keys), *["--:"] * len(names)]]
    rows[1] += ["--:", "---", "---"]
    for job in jobs:
        link = f"[{job.number}](<{job.folder}>)"
        varied = [escaped(as_typed_or_short(job.varied.get(key, ""))) for key in keys]
        about = [duration(job.seconds), status(job), escaped(reason(job))]
        rows.append([link, *varied, *(value(job, name) for name in names), *about])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    newest = max(jobs, key=lambda job: job.began, default=None)
    typed = ["    " + newest.typed, ""] if newest else []
    shown = ["", f"![{picture}]({picture})"] if picture else []
    return "\n".join([*typed, *lines, *shown, ""])


def escaped(text: str) -> str:
    """Text that stays in its cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def as_text(jobs: Sequence[Record], width: int) -> str:
    """Aligned columns, at most `width` letters a line where that can be: long values and reasons are cut.

    A reason stands at the end of its job's line, or below the table where there is no room.
    """
    keys, names = varied_keys(jobs), value_names(jobs)
    rows = [["job", *keys, *names, "time", "status"]]
    for job in jobs:
        varied = [as_typed_or_short(job.varied.get(key, "")) for key in keys]
        values = ["" if (found := job.value(name)) is None else short(found) for name in names]
        rows.append([str(job.number), *varied, *values, duration(job.seconds), status(job)])
    widest = max(12, (width - 30 - 10 * len(names)) // max(1, len(keys)))
    columns = [[cut(cell, widest) for cell in column] for column in zip(*rows, strict=True)]
    to_the_right = {0, *range(1 + len(keys), 2 + len(keys) + len(names))}
    aligned = []
    for place, column in enumerate(columns):
        room = max(map(len, column))
        aligned.append([cell.rjust(room) if place in to_the_right else cell.ljust(room) for cell in column])
    lines = ["  ".join(row) for row in zip(*aligned, strict=True)]
    room = width - len(lines[0]) - 2
    below = []
    for place, job in enumerate(jobs, start=1):
        if reason(job) and room >= SHORTEST_REASON:
            lines[place] += f"  {cut(reason(job), room)}"
        elif reason(job):
            below.append(cut(f"job {job.number}: {reason(job)}", width))
    table = [line.rstrip() for line in lines]
    return "\n".join([*table, *below, *best_of_each(jobs, names)])


def best_of_each(jobs: Sequence[Record], names: Sequence[str]) -> list[str]:
    """A line that says which job has the best of each value, where there is a choice."""
    leading = {name: best(jobs, name) for name in names}
    told = [
        f"{name} {short(value)} (job {next(job.number for job in jobs if job.value(name) == value)})"
        for name, value in leading.items()
        if value is not None
    ]
    return ["", f"best: {', '.join(told)}"] if told else []


def cut(text: str, room: int) -> str:
    """The text on one line, or how it begins."""
    text = " ".join(text.split())
    return text if len(text) <= room else f"{text[: room - 3]}..."
