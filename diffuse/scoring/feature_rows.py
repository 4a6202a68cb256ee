"""Feature vectors on disk: rows that are added as images come, so that memory does not grow with their number.

A folder holds a file of numbers for each output of a feature network, float32 vectors or uint8 pixels, and `rows.json`,
which says how wide they are, what they were made from and, of outputs that are complete, their hash. Whoever is
interrupted goes on after the last row that is whole.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.data.own_images import DAMAGED
from diffuse.scoring.distances import Statistics, radii, statistics
from diffuse.system.errors import UserError
from diffuse.system.files import json_round_trip, make_folder, sha256, write_atomic, write_json

ABOUT, STATISTICS = "rows.json", "statistics.npz"
Batch = Mapping[str, np.ndarray]


class Rows:
    """The rows in a folder. made_from: what they depend on; rows made from anything else are thrown away.

    So are complete ones that are not what was written.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any]):
        self.folder, self.made_from = folder, json_round_trip(made_from)
        self.about: dict[str, dict[str, Any]] = {}
        try:
            content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            self.about = dict(content["outputs"]) if content["made_from"] == self.made_from else {}
            damaged = [name for name, facts in self.about.items() if not self._is_as_written(name, facts["sha256"])]
        except (OSError, ValueError, KeyError, TypeError):
            self.about, damaged = {}, []
        for name in damaged:
            self._path(name).unlink(missing_ok=True)
            del self.about[name]
        if not self.about:
            shutil.rmtree(folder, ignore_errors=True)

    def _is_as_written(self, name: str, digest: str | None) -> bool:
        return digest is None or (self._path(name).exists() and sha256(self._path(name)) == digest)

    def count(self, name: str) -> int:
        """How many whole rows there are of an output."""
        path = self._path(name)
        return path.stat().st_size // self._row_bytes(name) if name in self.about and path.exists() else 0

    def _row_bytes(self, name: str) -> int:
        return int(self.about[name]["width"] * np.dtype(self.about[name]["type"]).itemsize)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.rows"

    def extend(self, total: int, names: Sequence[str], batches: Callable[[int], Iterator[Batch]]) -> None:
        """Add rows of these outputs until there are `total` of each: batches(k) gives them from row k on.

        What is there is not written again, where one output has more rows than another.
        """
        at = min(self.count(name) for name in names)
        if at >= total:
            return
        for batch in batches(at):
            rows = 0
            for name in names:
                rows = len(batch[name])
                self._append(name, batch[name][max(0, self.count(name) - at) :])
            at += rows
        if at >= total:
            for name in names:
                self.about[name]["sha256"] = sha256(self._path(name))
            self._write_about()

    def _append(self, name: str, rows: np.ndarray) -> None:
        """Add rows after the last one that is whole."""
        if name not in self.about:
            make_folder(self.folder)
            kind = "uint8" if rows.dtype == np.uint8 else "float32"
            self.about[name] = {"width": rows.shape[1], "type": kind, "sha256": None}
            self._write_about()
        end = self.count(name) * self._row_bytes(name)
        with open(self._path(name), "ab") as file:
            file.truncate(end)
            file.write(np.ascontiguousarray(rows, self.about[name]["type"]).data)
            file.flush()
            os.fsync(file.fileno())

    def _write_about(self) -> None:
        write_json(self.folder / ABOUT, {"outputs": self.about, "made_from": self.made_from})

    def __getitem__(self, name: str) -> np.ndarray:
        """The rows [count, width] of an output, read from its file where they are looked at."""
        about = self.about[name]
        return np.memmap(self._path(name), about["type"], "r", shape=(self.count(name), about["width"]))

    def statistics(self, name: str) -> Statistics:
        """Mean and covariance of an output's rows, kept beside them."""
        path = self.folder / f"{name}-{self.count(name)}-{STATISTICS}"
        try:
            return read_statistics(path)
        except UserError:  # not there, or damaged
            found = statistics(self[name])
            write_statistics(path, found)
            return found

    def radii(self, name: str, k: int) -> np.ndarray:
        """The distance of each of an output's rows to the k-th nearest other one, kept beside them."""
        path = self.folder / f"{name}-{self.count(name)}-radii-{k}.npy"
        try:
            found = np.load(path, allow_pickle=False)
        except DAMAGED:  # not there, too
            found = radii(self[name], k)
            write_atomic(path, lambda file: np.save(file, found), mode="wb")
        return found


def read_statistics(path: Path) -> Statistics:
    """The `mu` and `sigma` in an npz file, the form in which the field passes them on; ours name the network too."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mu, sigma = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
            found = Statistics(mu, sigma, str(arrays["features"]) if "features" in arrays else None)
    except DAMAGED as error:
        raise UserError(f"{path} is no npz file with mu and sigma: {error}") from error
    if found.mu.ndim != 1 or found.sigma.shape != 2 * found.mu.shape:
        raise UserError(f"{path}: mu must be [D] and sigma [D, D], not {found.mu.shape} and {found.sigma.shape}")
    return found


def write_statistics(path: Path, found: Statistics) -> None:
    """Write `mu` and `sigma`, in float64, and what identifies their feature network."""
    arrays: dict[str, Any] = {"mu": found.mu, "sigma": found.sigma}
    if found.features is not None:
        arrays["features"] = np.asarray(found.features)
    write_atomic(path, lambda file: np.savez(file, **arrays), mode="wb")
