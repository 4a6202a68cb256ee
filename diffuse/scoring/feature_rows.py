"""Feature vectors on disk: rows that are added as images come, so that memory does not grow with their number.

A folder holds an array for each output of a feature network, float32 vectors or uint8 pixels, and `rows.json`, which
says what they were made from and, of outputs that are complete, their hash. An evaluation that was killed goes on after
the last row that is whole.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.data.own_images import DAMAGED
from diffuse.scoring.distances import Statistics, radii, statistics
from diffuse.system.errors import UserError
from diffuse.system.files import json_round_trip, sha256, write_atomic, write_json
from diffuse.system.growing_array import GrowingArray, whole_rows

ABOUT, STATISTICS = "rows.json", "statistics.npz"
Batch = Mapping[str, np.ndarray]


class Rows:
    """The rows in a folder. made_from: what they depend on; rows made from anything else are removed.

    So are complete ones that are not as they were written.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any]):
        self.folder, self.made_from = folder, json_round_trip(made_from)
        self.sha256: dict[str, str] = {}
        try:
            content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            made_from, self.sha256 = content["made_from"], dict(content["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            made_from = {}
        if made_from != self.made_from:
            self.sha256 = {}
            shutil.rmtree(folder, ignore_errors=True)
        for name, digest in list(self.sha256.items()):
            if not self._path(name).exists() or sha256(self._path(name)) != digest:
                self._path(name).unlink(missing_ok=True)
                del self.sha256[name]

    def count(self, name: str) -> int:
        """How many whole rows there are of an output."""
        try:
            return len(self[name])
        except (OSError, ValueError):  # not there, or killed before its header was written
            return 0

    def __getitem__(self, name: str) -> np.ndarray:
        """The rows [count, width] of an output, read from its file where they are looked at."""
        return whole_rows(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def extend(self, total: int, names: Sequence[str], batches: Callable[[int], Iterator[Batch]]) -> None:
        """Add rows of these outputs until there are `total` of each: batches(k) gives them from row k on.

        What is there is not written again, where one output has more rows than another.
        """
        at = min(self.count(name) for name in names)
        if at >= total:
            return
        self._write_about()  # before any row
        for batch in batches(at):
            for name in names:
                rows = batch[name] if batch[name].dtype == np.uint8 else batch[name].astype(np.float32, copy=False)
                with GrowingArray(self._path(name), rows.dtype, rows.shape[1:]) as file:
                    file.append(rows[max(0, file.count - at) :])
            at += len(rows)
        if at >= total:
            self.sha256 |= {name: sha256(self._path(name)) for name in names}
            self._write_about()

    def _write_about(self) -> None:
        write_json(self.folder / ABOUT, {"made_from": self.made_from, "sha256": self.sha256})

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
