"""The table of a sweep: a row for each job, as CSV for programs, Markdown for people and text for a terminal."""

import csv
import io
import math
from collections.abc import Sequence

from diffuse.sweeps.record import Record
from diffuse.sweeps.rows import SEEDS, Row, best, over_seeds, value_names, varied_keys
from diffuse.system.progress import duration
from diffuse.system.text_table import aligned, cut, without_middle

SHORTEST_REASON = 24
LONGEST = 60  # characters of an option: it may be a table of betas


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
    return (short(finite_number(text)) if len(text) > 8 else "") or without_middle(text, LONGEST)


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
    """The command line, the table with the best of each value in bold, the same over seeds, and the picture."""
    keys, names, combined = varied_keys(jobs), value_names(jobs), over_seeds(jobs)
    leading = {} if combined else {name: best([Row([job]) for job in jobs], name) for name in names}
    rows = [["job", *keys, *names, "time", "status", "reason"]]
    rows += [["--:", *["---"] * len(keys), *["--:"] * len(names), "--:", "---", "---"]]
    for job in jobs:
        varied = [escape(short_varied(job, key)) for key in keys]
        values = [bold(short(job.value(name)), leading.get(name), job) for name in names]
        end = [duration(job.seconds), status(job), escape(failure_reason(job))]
        rows.append([f"[{job.number}](<{job.folder}>)", *varied, *values, *end])
    newest = max(jobs, key=lambda job: job.began, default=None)
    typed = ["    " + newest.typed, ""] if newest else []
    shown = ["", f"![{picture}]({picture})"] if picture else []
    return "\n".join([*typed, *map(line_of, rows), *over_seeds_as_markdown(combined, keys, names), *shown, ""])


def over_seeds_as_markdown(rows: Sequence[Row], keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """A table of means and standard deviations over seeds."""
    if not rows:
        return []
    leading = {name: best(rows, name) for name in names}
    titles = ["jobs", *keys, *names]
    lines = [titles, ["--:", *["---"] * len(keys), *["--:"] * len(names)]]
    for row in rows:
        values = [bold(with_deviation(row, name), leading[name], row.jobs[0]) for name in names]
        lines.append([numbers(row), *(escape(row.varied(key)) for key in keys), *values])
    return ["", "Mean and standard deviation over seeds:", "", *map(line_of, lines)]


def line_of(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def bold(text: str, leader: Row | None, job: Record) -> str:
    """The text, in bold where the job is of the best row."""
    return f"**{text}**" if leader and job in leader.jobs and text else text


def escape(text: str) -> str:
    """Text that stays in its cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def as_text(jobs: Sequence[Record], width: int) -> str:
    """Aligned columns, at most `width` characters wide if possible: long values and reasons are cut.

    A reason stands at the end of its job's line, or below the table if there is no room.
    """
    keys, names, combined = varied_keys(jobs), value_names(jobs), over_seeds(jobs)
    cells = [["job", *keys, *names, "time", "status"]]
    for job in jobs:
        varied, values = [short_varied(job, key) for key in keys], [short(job.value(name)) for name in names]
        cells.append([str(job.number), *varied, *values, duration(job.seconds), status(job)])
    lines = lines_of(cells, len(keys), len(names), width)
    room = width - len(lines[0]) - 2
    below = []
    for place, job in enumerate(jobs, start=1):
        if (reason := failure_reason(job)) and room >= SHORTEST_REASON:
            lines[place] += f"  {cut(reason, room)}"
        elif reason:
            below.append(cut(f"job {job.number}: {reason}", width))
    rows = combined or [Row([job]) for job in jobs]
    return "\n".join(
        [*(line.rstrip() for line in lines), *below, *over_seeds_as_text(combined, width), *best_values(rows, names)]
    )


def over_seeds_as_text(rows: Sequence[Row], width: int) -> list[str]:
    """A table of means and standard deviations over seeds."""
    if not rows:
        return []
    jobs = [job for row in rows for job in row.jobs]
    keys, names = varied_keys(jobs), value_names(jobs)
    cells = [["jobs", *keys, *names]]
    for row in rows:
        varied = [row.varied(key) if key in SEEDS else short_varied(row.jobs[0], key) for key in keys]
        cells.append([numbers(row), *varied, *(with_deviation(row, name) for name in names)])
    lines = lines_of(cells, len(keys), len(names), width)
    return ["", "mean +- standard deviation over seeds", *(line.rstrip() for line in lines)]


def lines_of(cells: Sequence[Sequence[str]], keys: int, names: int, width: int) -> list[str]:
    """Lines of equal columns: a number, `keys` options, `names` values, and what follows; long options are cut."""
    after = len(cells[0]) - 1 - keys - names
    widest = max(12, (width - 30 - 10 * names) // max(1, keys))
    sides = f">{'<' * keys}{'>' * names}{'><'[:after]}"  # numbers to the right, words to the left
    return aligned(cells, sides, [widest] * len(sides))


def best_values(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """A line with the best of each value, if there is a choice, and its jobs."""
    leading = {name: row for name in names if (row := best(rows, name)) is not None}
    listed = [f"{name} {with_deviation(row, name)} ({numbers(row, 'job')})" for name, row in leading.items()]
    return ["", f"best: {', '.join(listed)}"] if listed else []


def numbers(row: Row, word: str = "") -> str:
    """The numbers of a row's jobs: "0, 2"; with a word "job 0" or "jobs 0, 2"."""
    listed = ", ".join(str(job.number) for job in row.jobs)
    return f"{word}{'s' if len(row.jobs) > 1 else ''} {listed}" if word else listed


def with_deviation(row: Row, name: str) -> str:
    """A mean and its standard deviation; a single value alone."""
    mean, deviation = row.mean(name), row.deviation(name)
    if deviation == 0:
        return short(mean)
    if mean is None or deviation is None or not 1e-9 < deviation < 1e3:
        return short(mean) + ("" if deviation is None else f" +- {deviation:.2g}")
    decimals = max(0, 1 - math.floor(math.log10(deviation)))  # two digits of the deviation, as many of the mean
    return f"{mean:.{decimals}f} +- {deviation:.{decimals}f}"
