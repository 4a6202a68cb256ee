"""The table of a sweep: a row for each job, as CSV for programs, Markdown for people and text for a terminal."""

import csv
import io
import math
from collections.abc import Iterable, Sequence

from diffuse.options.score_names import LESS_IS_BETTER, MORE_IS_BETTER
from diffuse.sweeps.record import Record
from diffuse.system.progress import duration

SHORTEST_REASON = 24
# The loss of one option of these groups is another quantity than that of the next: the smaller is not the better one.
LOSSES_DIFFER_BY = {"dataset", "schedule", "prediction", "loss", "weight", "times", "method"}


def varied_keys(jobs: Iterable[Record]) -> list[str]:
    """The keys that differ between jobs, in the order of the first job that has each."""
    return list(dict.fromkeys(key for job in jobs for key in job.varied))


def value_names(jobs: Iterable[Record]) -> list[str]:
    """The names of the values that jobs reported, in the order of the first job that has each."""
    return list(dict.fromkeys(name for job in jobs if not job.refused for name in job.values))


def best(jobs: Sequence[Record], name: str) -> float | None:
    """The best of the values of this name; None if there is no choice, or if less or more is not better."""
    if name == "loss" and {key.partition(".")[0] for key in varied_keys(jobs)} & LOSSES_DIFFER_BY:
        return None
    values = [value for job in jobs if (value := job.value(name)) is not None]
    kind = name.partition("_")[0]  # fid_classifier is a fid
    if len(set(values)) < 2 or kind not in LESS_IS_BETTER + MORE_IS_BETTER:
        return None
    return max(values) if kind in MORE_IS_BETTER else min(values)


def short(value: float | None) -> str:
    """A number in about four digits; nothing for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"


def finite_number(text: str) -> float | None:
    """The finite number that a text stands for, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def short_varied(job: Record, key: str, default: str = "") -> str:
    """The value of a varied key as it was typed; a number with more digits than people type is cut to four."""
    text = job.varied.get(key, default)
    return (short(finite_number(text)) if len(text) > 8 else "") or text


def status(job: Record) -> str:
    """How a job ended; one that was refused has failed, whatever it did before."""
    return "failed" if job.refused else job.status


def failure_reason(job: Record) -> str:
    """Why a job failed, in one sentence."""
    return (job.refused or job.reason).partition(". ")[0]


def as_csv(jobs: Sequence[Record]) -> str:
    """Every digit, a column for each varied key and each value."""
    keys, names = varied_keys(jobs), value_names(jobs)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["job", *keys, *names, "seconds", "status", "reason", "folder"])
    for job in jobs:
        varied, values = [job.varied.get(key, "") for key in keys], [job.value(name) for name in names]
        end = [round(job.seconds, 1), status(job), failure_reason(job), job.folder]
        table.writerow([job.number, *varied, *values, *end])  # None is an empty cell
    return text.getvalue()


def as_markdown(jobs: Sequence[Record], picture: str | None) -> str:
    """The command line, the table with the best of each value in bold, and the picture if there is one."""
    keys, names = varied_keys(jobs), value_names(jobs)
    leading = {name: best(jobs, name) for name in names}

    def cell(value: float | None, name: str) -> str:
        return f"**{short(value)}**" if value is not None and value == leading[name] else short(value)

    rows = [["job", *keys, *names, "time", "status", "reason"]]
    rows += [["--:", *["---"] * len(keys), *["--:"] * len(names), "--:", "---", "---"]]
    for job in jobs:
        varied = [escape(short_varied(job, key)) for key in keys]
        end = [duration(job.seconds), status(job), escape(failure_reason(job))]
        rows.append(
            [f"[{job.number}](<{job.folder}>)", *varied, *(cell(job.value(name), name) for name in names), *end]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    newest = max(jobs, key=lambda job: job.began, default=None)
    typed = ["    " + newest.typed, ""] if newest else []
    shown = ["", f"![{picture}]({picture})"] if picture else []
    return "\n".join([*typed, *lines, *shown, ""])


def escape(text: str) -> str:
    """Text that stays in its cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def as_text(jobs: Sequence[Record], width: int) -> str:
    """Aligned columns, at most `width` characters wide if possible: long values and reasons are cut.

    A reason stands at the end of its job's line, or below the table if there is no room.
    """
    keys, names = varied_keys(jobs), value_names(jobs)
    rows = [["job", *keys, *names, "time", "status"]]
    for job in jobs:
        varied, values = [short_varied(job, key) for key in keys], [short(job.value(name)) for name in names]
        rows.append([str(job.number), *varied, *values, duration(job.seconds), status(job)])
    widest = max(12, (width - 30 - 10 * len(names)) // max(1, len(keys)))
    columns = [[cut(cell, widest) for cell in column] for column in zip(*rows, strict=True)]
    sides = [">", *"<" * len(keys), *">" * len(names), ">", "<"]  # numbers to the right, words to the left
    formats = [f"{side}{max(map(len, column))}" for side, column in zip(sides, columns, strict=True)]
    lines = ["  ".join(map(format, row, formats)) for row in zip(*columns, strict=True)]
    room = width - len(lines[0]) - 2
    below = []
    for place, job in enumerate(jobs, start=1):
        if (reason := failure_reason(job)) and room >= SHORTEST_REASON:
            lines[place] += f"  {cut(reason, room)}"
        elif reason:
            below.append(cut(f"job {job.number}: {reason}", width))
    return "\n".join([*(line.rstrip() for line in lines), *below, *best_values(jobs, names)])


def best_values(jobs: Sequence[Record], names: Sequence[str]) -> list[str]:
    """A line with the best of each value, if there is a choice, and its job."""
    leading = {name: value for name in names if (value := best(jobs, name)) is not None}
    numbers = {name: next(job.number for job in jobs if job.value(name) == leading[name]) for name in leading}
    listed = [f"{name} {short(value)} (job {numbers[name]})" for name, value in leading.items()]
    return ["", f"best: {', '.join(listed)}"] if listed else []


def cut(text: str, room: int) -> str:
    """The text on one line, at most `room` characters long."""
    text = " ".join(text.split())
    return text if len(text) <= room else f"{text[: room - 3]}..."
