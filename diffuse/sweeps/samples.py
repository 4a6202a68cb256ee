"""How far the images of each job of a sweep over samplers are from the finest ones."""

import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffuse.options.score_names import DISTANCE, EVALUATIONS
from diffuse.sweeps.record import DONE, Record

COMPARED = 64  # images of each job


def with_distances(sweep: Path, jobs: Sequence[Record]) -> list[Record]:
    """The jobs of `diffuse sample` with a value more: the distance of their images from those of the finest job.

    The root mean square over the pixels of the first 64 images, in units in which they lie in [-1, 1]. Finest is the
    deterministic job with the most evaluations, then the highest order, among those that differ in their sampler alone,
    and so began with the same noise.
    """
    found = {job.folder: job for job in jobs}
    drawn = [job for job in jobs if job.command == "sample" and job.status == DONE and job.value(EVALUATIONS)]
    for group in _of_same_noise(drawn):
        images = {job.folder: _first_images(sweep / job.folder / "samples.npz") for job in group}
        orders = {job.folder: _order(sweep / job.folder / "samples.json") for job in group}
        flows = [job for job in group if orders[job.folder]]  # the others add noise, and do not end at the flow's ends
        finest = max(flows, key=lambda job: (job.value(EVALUATIONS) or 0.0, orders[job.folder]), default=group[0])
        for job in group if len(group) > 1 and flows else ():
            mine, best = images[job.folder], images[finest.folder]
            if mine is not None and best is not None and mine.shape == best.shape:
                distance = float(np.sqrt(np.mean((mine - best) ** 2)))
                found[job.folder] = replace(job, values={**job.values, DISTANCE: distance})
    return list(found.values())


def _of_same_noise(jobs: Sequence[Record]) -> list[list[Record]]:
    """The jobs in groups whose options differ in the group `sampler` alone."""
    groups: dict[tuple[tuple[str, str], ...], list[Record]] = {}
    for job in jobs:
        others = tuple((key, value) for key, value in job.varied.items() if key.partition(".")[0] != "sampler")
        groups.setdefault(others, []).append(job)
    return list(groups.values())


def _order(path: Path) -> int:
    """The order of a job's sampler, from its samples.json; 0 for one that adds noise."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["order"] or 0)
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _first_images(path: Path) -> np.ndarray | None:
    """The first images of a samples.npz in float64, 8-bit pixels in [-1, 1]; None where there is no such file."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            np.lib.format.read_magic(file)  # type: ignore[arg-type]
            (n, *shape), _, dtype = np.lib.format.read_array_header_1_0(file)  # type: ignore[arg-type]
            count = min(n, COMPARED)
            content = np.frombuffer(file.read(count * math.prod(shape) * dtype.itemsize), dtype)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    images = content.reshape(count, *shape).astype(np.float64)
    return images / 127.5 - 1 if dtype == np.uint8 else images
