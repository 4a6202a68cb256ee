"""The picture of a sweep: curves and last grids of trainings, scores against what was swept, samples side by side."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from diffuse.runs.scalars import METRICS, whole_lines
from diffuse.sweeps.record import Record
from diffuse.sweeps.table import as_typed_or_short, cut, short, varied_keys
from diffuse.system.files import atomic_path

WIDTH = 11.0
MOST_GRIDS = 40  # in a montage; more would be too small to see anything
GRID_PIXELS = 400  # of a grid in a montage, larger ones are made smaller
TOLD_APART = 10  # lines that colours of their own can tell apart; more go from dark to light
LOGARITHMIC_FROM = 20.0  # how many times the smallest value the largest is, for an axis to be logarithmic
LABEL = 44  # letters


def draw(sweep: Path, path: Path, jobs: Sequence[Record]) -> None:
    """Draw what the jobs have made so far, if that is anything, to `path`."""
    jobs = [job for job in jobs if not job.refused]
    command = jobs[-1].command if jobs else ""
    curves = training_curves(sweep, jobs) if command == "train" else {}
    grids = [(job, file) for job in jobs if (file := last_grid(sweep / job.folder, command))]
    scores = list(dict.fromkeys(name for job in jobs for name in job.values)) if command == "eval" else []
    panels = len(curves) + len(scores)
    if not panels and not grids:
        return
    keys = varied_keys(jobs)
    columns = 3 if curves and panels in (3, 5, 6) else min(panels, 2)
    upper = 3.6 * math.ceil(panels / columns) if panels else 0.0
    if scores and len(numeric_keys(jobs)) == 0:
        upper = max(upper, (1.2 + 0.28 * len(jobs)) * math.ceil(panels / columns))
    tiles = grids[:MOST_GRIDS]
    wide = min(len(tiles), 6 if len(tiles) > 8 else 4)
    lower = math.ceil(len(tiles) / wide) * (WIDTH / max(wide, 3) + 0.2) + 0.4 if tiles else 0.0
    figure = Figure(figsize=(WIDTH, upper + lower), layout="constrained", dpi=110)
    heights = [height for height in (upper, lower) if height]
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if curves:
        draw_curves(parts.pop(0), curves, jobs, keys, columns)
    if scores:
        draw_scores(parts.pop(0), scores, jobs, columns)
    if tiles:
        left_out = f"; {len(grids) - MOST_GRIDS} more are left out" if grids[MOST_GRIDS:] else ""
        draw_montage(parts.pop(0), tiles, keys, wide, left_out)
    with atomic_path(path, survives_power_cut=False) as beside:
        figure.savefig(beside, format="png")


def label(job: Record, keys: Iterable[str]) -> str:
    """The job in a word: the values of the keys that vary, or its number where none does."""
    values = [as_typed_or_short(job.varied.get(key, "-")) for key in keys]
    return cut(", ".join(values), LABEL) if values else f"job {job.number}"


def colours(count: int) -> list[Any]:
    """As many colours as there are lines."""
    if count <= TOLD_APART:
        return [f"C{place}" for place in range(count)]
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.95, count)))


def training_curves(sweep: Path, jobs: Sequence[Record]) -> dict[str, dict[int, tuple[list[int], list[float]]]]:
    """{"loss": {job: (steps, values)}, ...}: the loss, and every score that was computed while training."""
    found: dict[str, dict[int, tuple[list[int], list[float]]]] = {"loss": {}}
    for place, job in enumerate(jobs):
        for _, line in whole_lines(sweep / job.folder / METRICS):
            for name, value in line.items():
                if name == "loss" or name.startswith("eval/"):
                    steps, values = found.setdefault(name, {}).setdefault(place, ([], []))
                    steps.append(int(line["step"]))
                    values.append(value)
    return {name: lines for name, lines in found.items() if lines}


def last_grid(folder: Path, command: str) -> Path | None:
    """The newest grid of samples of a training, or the grid of samples."""
    if command == "train":
        return max(folder.glob("images/step_*.png"), default=None)
    grid = folder / "grid.png"
    return grid if command == "sample" and grid.exists() else None


def draw_curves(
    part: SubFigure,
    curves: Mapping[str, Mapping[int, tuple[list[int], list[float]]]],
    jobs: Sequence[Record],
    keys: Sequence[str],
    columns: int,
) -> None:
    """A panel for each value, a line for each job, and one legend."""
    axes = np.ravel(part.subplots(math.ceil(len(curves) / columns), columns, squeeze=False))
    palette, shown = colours(len(jobs)), {}
    for panel, (name, lines) in zip(axes, curves.items(), strict=False):
        for place, (steps, values) in lines.items():
            marker = "." if len(steps) < 25 else None
            (shown[place],) = panel.plot(steps, values, color=palette[place], marker=marker, linewidth=1.3)
        panel.set(xlabel="step", title=name.removeprefix("eval/"))
        panel.set_yscale(scale([value for _, values in lines.values() for value in values]))
        panel.grid(alpha=0.3)
    for panel in axes[len(curves) :]:
        panel.set_axis_off()
    places = sorted(shown)
    part.legend(
        [shown[place] for place in places],
        [label(jobs[place], keys) for place in places],
        title=cut(", ".join(keys), LABEL) or None,
        loc="outside right upper",
        fontsize="small" if len(places) <= 16 else "x-small",
        title_fontsize="small",
        ncols=1 if len(places) <= 20 else 2,
    )


def draw_montage(
    part: SubFigure, grids: Sequence[tuple[Record, Path]], keys: Sequence[str], wide: int, left_out: str
) -> None:
    """Pictures side by side, each under its job's label."""
    axes = np.ravel(part.subplots(math.ceil(len(grids) / wide), max(wide, 3), squeeze=False)[:, :wide])
    for panel in part.axes:
        panel.set_axis_off()
    for panel, (job, path) in zip(axes, grids, strict=False):
        with Image.open(path) as image:
            image.thumbnail((GRID_PIXELS, GRID_PIXELS))
            panel.imshow(np.asarray(image.convert("RGB")))
        step = (
            f", step {int(path.stem.removeprefix('step_')):,}" if job.status != "done" and "step_" in path.stem else ""
        )
        panel.set_title(in_lines(label(job, keys) + step, 22 if wide > 4 else 32), fontsize="small")
    part.suptitle(f"samples, by {', '.join(keys)}{left_out}" if keys else "samples", fontsize="medium")


def in_lines(text: str, room: int) -> str:
    """Text in lines of about so many letters, broken after commas."""
    lines = [""]
    for word in text.split(", "):
        if lines[-1] and len(lines[-1]) + len(word) + 2 > room:
            lines[-1] += ","
            lines.append(word)
        else:
            lines[-1] += f", {word}" if lines[-1] else word
    return "\n".join(lines)


def numeric_keys(jobs: Sequence[Record]) -> list[str]:
    """The varied keys whose values are all numbers, the one with most values first, and the seed last."""
    keys = [key for key in varied_keys(jobs) if all(number(job.varied.get(key)) is not None for job in jobs)]
    return sorted(keys, key=lambda key: (key == "seed", -len({job.varied[key] for job in jobs})))


def number(text: str | None) -> float | None:
    """The finite number that was typed, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def draw_scores(part: SubFigure, names: Sequence[str], jobs: Sequence[Record], columns: int) -> None:
    """A panel for each score: lines against a number that was swept, or a bar for each job."""
    axes = np.ravel(part.subplots(math.ceil(len(names) / columns), columns, squeeze=False))
    numeric = numeric_keys(jobs)
    others = [key for key in varied_keys(jobs) if key not in numeric[:1]]
    handles: dict[str, Any] = {}
    for panel, name in zip(axes, names, strict=False):
        scored = [(job, value) for job in jobs if (value := job.value(name)) is not None]
        if numeric:
            handles |= draw_lines(panel, name, scored, numeric[0], others, jobs)
        else:
            draw_bars(panel, name, scored)
    for panel in axes[len(names) :]:
        panel.set_axis_off()
    if others and handles:
        title = cut(", ".join(others), LABEL)
        part.legend(handles.values(), handles.keys(), title=title, loc="outside right upper", fontsize="small")


def draw_lines(
    panel: Axes,
    name: str,
    scored: Sequence[tuple[Record, float]],
    key: str,
    others: Sequence[str],
    jobs: Sequence[Record],
) -> dict[str, Any]:
    """A line for each combination of the other varied keys; returns them by their labels."""
    combinations = list(dict.fromkeys(label(job, others) if others else "" for job in jobs))
    handles = {}
    for combination, colour in zip(combinations, colours(len(combinations)), strict=True):
        points = sorted(
            (float(job.varied[key]), value) for job, value in scored if not others or label(job, others) == combination
        )
        if points:
            x, y = zip(*points, strict=True)
            (handles[combination],) = panel.plot(x, y, marker="o", markersize=4, linewidth=1.3, color=colour)
    places = sorted({float(job.varied[key]) for job, _ in scored})
    panel.set(xlabel=key, title=name)
    panel.grid(alpha=0.3)
    panel.set(xscale=scale(places), yscale=scale([value for _, value in scored]))
    if len(places) <= 8 and far_apart(places):
        panel.set_xticks(places, [short(place) for place in places], minor=False)
        panel.set_xticks([], minor=True)
    return handles


def draw_bars(panel: Axes, name: str, scored: Sequence[tuple[Record, float]]) -> None:
    """A bar for each job, from top to bottom, with its number at the end."""
    keys = varied_keys(job for job, _ in scored)
    values = [value for _, value in scored]
    bars = panel.barh(range(len(scored)), values, color="C0")
    panel.bar_label(bars, [short(value) for value in values], padding=3, fontsize="small")
    panel.set_yticks(range(len(scored)), [in_lines(label(job, keys), 28) for job, _ in scored], fontsize="small")
    panel.invert_yaxis()
    panel.margins(x=0.25)
    panel.set(title=name)


def scale(values: Sequence[float]) -> str:
    """The kind of axis that suits the values: logarithmic where they span decades."""
    return "log" if values and min(values) > 0 and max(values) >= LOGARITHMIC_FROM * min(values) else "linear"


def far_apart(places: Sequence[float]) -> bool:
    """Whether a tick at each place leaves room for what is written at it."""
    scaled = [math.log(place) for place in places] if scale(places) == "log" else list(places)
    room = (scaled[-1] - scaled[0]) / 10 if scaled else 0
    return all(later - earlier >= room for earlier, later in pairwise(scaled))
