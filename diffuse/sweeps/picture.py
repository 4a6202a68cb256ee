"""The picture of a sweep: training curves with the last sample grids, samples, or scores against what was swept."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator
from PIL import Image

from diffuse.options.score_names import EVALUATIONS
from diffuse.runs.scalars import SCORE_PREFIX, read_metrics
from diffuse.sweeps.record import DONE, Record
from diffuse.sweeps.rows import SEEDS, Row, losses_differ, over_seeds, varied_keys
from diffuse.sweeps.table import finite_number, short, short_varied, with_deviation
from diffuse.system.files import atomic_path
from diffuse.system.text_table import cut

FIGURE_WIDTH = 11.0  # inches
MOST_GRIDS = 40  # in a montage; more would be too small to see anything
GRID_PIXELS = 400  # side of a grid in a montage; larger ones are made smaller
DISTINCT_COLOURS = 10  # for so many lines; the colours of more lines go from dark to light
LOGARITHMIC_FROM = 20.0  # ratio of the largest to the smallest value from which an axis is logarithmic
COSTS_LOGARITHMIC_FROM = 4.0  # of evaluations, which are doubled rather than raised
LABEL = 44  # characters
COST_KEYS = ("sampler.steps", "sampler.evaluations")  # what evaluations follow from
Curve = list[tuple[int, float]]  # (step, value)


def draw(sweep: Path, path: Path, jobs: Sequence[Record]) -> None:
    """Draw the results of the jobs so far to `path`; nothing is drawn without any."""
    jobs = [job for job in jobs if not job.refused]
    command = jobs[-1].command if jobs else ""
    curves = training_curves(sweep, jobs) if command == "train" else {}
    grids = [(job, file) for job in jobs if (file := last_grid(sweep / job.folder, command))]
    scores = list(dict.fromkeys(name for job in jobs for name in job.values)) if command == "eval" else []
    scores = [name for name in scores if name != EVALUATIONS]  # what the others are drawn against
    count = len(curves) + len(scores)
    if not count and not grids:
        return
    columns = 3 if curves and count in (3, 5, 6) else min(count, 2)
    upper = 3.6 * math.ceil(count / columns) if count else 0.0
    if scores and not numeric_keys(jobs):
        upper = max(upper, (1.2 + 0.28 * len(jobs)) * math.ceil(count / columns))
    grids, wide = by_sampler(grids) or (grids, 0)
    tiles = grids[:MOST_GRIDS]
    wide = wide or min(len(tiles), 6 if len(tiles) > 8 else 4)
    lower = math.ceil(len(tiles) / wide) * (FIGURE_WIDTH / max(wide, 3) + 0.2) + 0.4 if tiles else 0.0
    figure = Figure(figsize=(FIGURE_WIDTH, upper + lower), layout="constrained", dpi=110)
    heights = [height for height in (upper, lower) if height]
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if curves:
        draw_curves(parts.pop(0), curves, jobs, columns)
    if scores:
        draw_scores(parts.pop(0), scores, jobs, columns)
    if tiles:
        left_out = f"; {len(grids) - MOST_GRIDS} more are left out" if grids[MOST_GRIDS:] else ""
        draw_montage(parts.pop(0), tiles, varied_keys(jobs), wide, left_out)
    with atomic_path(path, survives_power_cut=False) as beside:
        figure.savefig(beside, format="png")


def label(job: Record, keys: Iterable[str]) -> str:
    """The values of the keys that vary, or the job's number if none does."""
    return cut(", ".join(short_varied(job, key, "-") for key in keys), LABEL) or f"job {job.number}"


def colours(count: int) -> list[Any]:
    """A colour for each line."""
    if count <= DISTINCT_COLOURS:
        return [f"C{place}" for place in range(count)]
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.95, count)))


def training_curves(sweep: Path, jobs: Sequence[Record]) -> dict[str, dict[int, Curve]]:
    """{"loss": {place of the job: curve}, ...}: the loss, and every score that was computed while training."""
    found: dict[str, dict[int, Curve]] = {"loss": {}}
    for place, job in enumerate(jobs):
        for line in read_metrics(sweep / job.folder):
            for name in line:
                if name == "loss" or name.startswith(SCORE_PREFIX):
                    found.setdefault(name, {}).setdefault(place, []).append((line["step"], line[name]))
    return {name: lines for name, lines in found.items() if lines}


def last_grid(folder: Path, command: str) -> Path | None:
    """The newest sample grid of a training, or the grid of `diffuse sample`."""
    pattern = {"train": "images/step_*.png", "sample": "grid.png"}.get(command)
    return max(folder.glob(pattern), default=None) if pattern else None


def by_sampler(grids: Sequence[tuple[Record, Path]]) -> tuple[list[tuple[Record, Path]], int] | None:
    """The grids in rows of one sampler each, its evaluations growing from left to right, and their number in a row.

    None where rows would have different lengths, or a single grid each.
    """
    rows: dict[str, list[tuple[Record, Path]]] = {}
    for job, path in grids:
        others = [f"{key}={value}" for key, value in job.varied.items() if key not in COST_KEYS]
        rows.setdefault(" ".join(others), []).append((job, path))
    lengths = {len(row) for row in rows.values()}
    if len(lengths) != 1 or max(lengths) < 2 or any(job.value(EVALUATIONS) is None for job, _ in grids):
        return None
    ordered = [sorted(row, key=lambda each: each[0].value(EVALUATIONS) or 0.0) for row in rows.values()]
    return [each for row in ordered for each in row], lengths.pop()


def panels(part: SubFigure, count: int, columns: int) -> Sequence[Axes]:
    """`count` panels, from left to right and from top to bottom; the places after them stay empty."""
    axes = np.ravel(part.subplots(math.ceil(count / columns), columns, squeeze=False))
    for panel in axes[count:]:
        panel.set_axis_off()
    return list(axes[:count])


def draw_curves(
    part: SubFigure, curves: Mapping[str, Mapping[int, Curve]], jobs: Sequence[Record], columns: int
) -> None:
    """A panel for each value, a line for each job, and one legend. Jobs that differ in their seed have one colour."""
    (rows, keys), lines = rows_and_keys(jobs), dict[int, Any]()
    row_of = {job.folder: number for number, row in enumerate(rows) for job in row.jobs}
    palette = colours(len(rows))
    for panel, (name, points) in zip(panels(part, len(curves), columns), curves.items(), strict=True):
        for place, curve in points.items():
            marker, number = "." if len(curve) < 25 else None, row_of[jobs[place].folder]
            steps, values = zip(*curve, strict=True)
            (lines[number],) = panel.plot(steps, values, color=palette[number], marker=marker, linewidth=1.3)
        apart = "\n(different quantities: not to be compared)" if name == "loss" and losses_differ(jobs) else ""
        panel.set(xlabel="step", title=name.removeprefix(SCORE_PREFIX) + apart)
        panel.set_yscale(axis_scale([value for curve in points.values() for _, value in curve]))
        panel.grid(alpha=0.3)
    part.legend(
        [lines[number] for number in sorted(lines)],
        [label(rows[number].jobs[0], keys) for number in sorted(lines)],
        title=cut(", ".join(keys), LABEL) or None,
        loc="outside right upper",
        fontsize="small" if len(lines) <= 16 else "x-small",
        title_fontsize="small",
        ncols=1 if len(lines) <= 20 else 2,
    )


def draw_montage(
    part: SubFigure, grids: Sequence[tuple[Record, Path]], keys: Sequence[str], wide: int, left_out: str
) -> None:
    """Sample grids side by side, each under its job's label."""
    for panel, (job, path) in zip(panels(part, len(grids), max(wide, 3)), grids, strict=True):
        with Image.open(path) as image:
            image.thumbnail((GRID_PIXELS, GRID_PIXELS))
            panel.imshow(np.asarray(image.convert("RGB")))
        panel.set_axis_off()
        unfinished = job.status != DONE and "step_" in path.stem
        step = f", step {int(path.stem.removeprefix('step_')):,}" if unfinished else ""
        calls = job.value(EVALUATIONS)
        cost = f", {calls:.0f} evaluations" if calls else ""
        shown = [key for key in keys if not (calls and key in COST_KEYS)] or keys
        panel.set_title(wrap(label(job, shown) + step + cost, 22 if wide > 4 else 32), fontsize="small")
    part.suptitle(f"samples, by {', '.join(keys)}{left_out}" if keys else "samples", fontsize="medium")


def wrap(text: str, room: int) -> str:
    """Text in lines of about `room` characters, broken between words."""
    return textwrap.fill(text, room, break_long_words=False, break_on_hyphens=False)


def rows_and_keys(jobs: Sequence[Record]) -> tuple[list[Row], list[str]]:
    """The rows that are drawn, and the keys that tell them apart: over seeds, unless nothing else varies."""
    rows = over_seeds(jobs)
    if len(rows) > 1:
        return rows, [key for key in varied_keys(jobs) if key not in SEEDS]
    return [Row([job]) for job in jobs], varied_keys(jobs)


def numeric_keys(jobs: Sequence[Record]) -> list[str]:
    """The varied keys whose values are all numbers, the one with the most values first."""
    _, keys = rows_and_keys(jobs)
    numeric = [key for key in keys if all(finite_number(job.varied.get(key, "")) is not None for job in jobs)]
    return sorted(numeric, key=lambda key: -len({job.varied[key] for job in jobs}))


def draw_scores(part: SubFigure, names: Sequence[str], jobs: Sequence[Record], columns: int) -> None:
    """A panel for each score: lines against a number that was swept, or bars; with deviations over seeds."""
    rows, all_keys = rows_and_keys(jobs)
    against_cost = costs_differ(rows)
    keys = [EVALUATIONS] if against_cost else numeric_keys(jobs)[:1]
    others = [key for key in all_keys if key not in (COST_KEYS if against_cost else keys)]
    handles: dict[str, Any] = {}
    for panel, name in zip(panels(part, len(names), columns), names, strict=True):
        scored = [row for row in rows if row.mean(name) is not None]
        panel.set(title=name)
        if keys:
            handles |= draw_lines(panel, scored, name, keys[0], others, rows)
        else:
            draw_bars(panel, scored, name, all_keys)
    if others and handles:
        title = cut(", ".join(others), LABEL)
        part.legend(handles.values(), handles.keys(), title=title, loc="outside right upper", fontsize="small")


def costs_differ(rows: Sequence[Row]) -> bool:
    """Whether the jobs drew images at different costs, against which their scores are drawn."""
    costs = {row.mean(EVALUATIONS) for row in rows}
    return None not in costs and len(costs) > 1


def place_of(row: Row, key: str) -> float:
    """Where a row is drawn: at its evaluations, or at the value of a key that was swept."""
    return row.mean(EVALUATIONS) or 0.0 if key == EVALUATIONS else float(row.varied(key))


def draw_lines(
    panel: Axes, scored: Sequence[Row], name: str, key: str, others: Sequence[str], rows: Sequence[Row]
) -> dict[str, Any]:
    """A line for each combination of the other varied keys; returns them by their labels."""

    def combination(row: Row) -> str:
        return label(row.jobs[0], others) if others else ""

    combinations = list(dict.fromkeys(map(combination, rows)))
    handles = {}
    for words, colour in zip(combinations, colours(len(combinations)), strict=True):
        chosen = [row for row in scored if combination(row) == words]
        if line := sorted((place_of(row, key), *mean_and_deviation(row, name)) for row in chosen):
            x, y, deviations = zip(*line, strict=True)
            bars = deviations if any(deviations) else None
            handles[words] = panel.errorbar(x, y, bars, color=colour, marker="o", ms=4, linewidth=1.3, capsize=2)
    places = sorted({place_of(row, key) for row in scored})
    panel.grid(alpha=0.3)
    values = [value for row in scored for value in row.values(name)]
    scale = axis_scale(places, COSTS_LOGARITHMIC_FROM if key == EVALUATIONS else LOGARITHMIC_FROM)
    panel.set(xlabel=key, xscale=scale, yscale=axis_scale(values))
    if panel.get_yscale() == "log":  # 0.5 in place of 5 x 10^-1
        few_decades = max(values) <= 1000 * min(values)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
        panel.yaxis.set_major_formatter(lambda value, place: short(value))
        panel.yaxis.set_minor_formatter("")
    if shown := ticks(places, scale):
        panel.set_xticks(shown, [short(place) for place in shown], minor=False)
        panel.set_xticks([], minor=True)
    return handles


def draw_bars(panel: Axes, scored: Sequence[Row], name: str, keys: Sequence[str]) -> None:
    """A bar for each row, from top to bottom, with its value at the end."""
    values = [mean_and_deviation(row, name) for row in scored]
    means, deviations = [mean for mean, _ in values], [deviation for _, deviation in values]
    bars = panel.barh(range(len(scored)), means, color="C0", xerr=deviations if any(deviations) else None)
    texts = [with_deviation(row, name) for row in scored]
    panel.bar_label(bars, texts, padding=3, fontsize="small")
    labels = [wrap(label(row.jobs[0], keys), 28) for row in scored]
    panel.set_yticks(range(len(scored)), labels, fontsize="small")
    panel.invert_yaxis()
    panel.margins(x=0.1 + 0.022 * max(map(len, texts), default=0))  # room for the values
    if min(means, default=0) >= 0:
        panel.set_xlim(left=0)


def mean_and_deviation(row: Row, name: str) -> tuple[float, float]:
    """For a picture: 0 is the deviation of a single value."""
    return row.mean(name) or 0.0, row.deviation(name) or 0.0


def axis_scale(values: Sequence[float], least: float = LOGARITHMIC_FROM) -> str:
    """The scale of an axis: logarithmic if the largest value is `least` times the smallest, otherwise linear."""
    return "log" if values and min(values) > 0 and max(values) >= least * min(values) else "linear"


def ticks(places: Sequence[float], scale: str) -> list[float]:
    """The places with a tick: on a logarithmic axis those that leave room for labels, otherwise all if they do."""
    scaled = {place: math.log(place) if scale == "log" else place for place in places}
    room = (scaled[places[-1]] - scaled[places[0]]) / 10 if places else 0
    shown: list[float] = []
    for place in places:
        if not shown or scaled[place] - scaled[shown[-1]] >= room:
            shown.append(place)
    return shown if scale == "log" or (len(places) <= 8 and len(shown) == len(places)) else []
