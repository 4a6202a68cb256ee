"""Feature vectors on disk: rows that are added as images come, so that memory does not grow with their number.

A folder holds one array for each output of a feature network, float32 vectors or uint8 pixels, and `rows.json`: what
the rows were made from, and the hash of each complete array. An evaluation that was killed continues after the last
whole row.
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

ROWS_JSON = "rows.json"
Vectors = Mapping[str, np.ndarray]  # of some images, by output: [b, D] each


class Rows:
    """The rows in a folder. made_from: everything they depend on; rows made from anything else are removed.

    So are complete arrays whose content has changed since they were written.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any]):
        self.folder, self.made_from = folder, json_round_trip(made_from)
        self.sha256: dict[str, str] = {}
        try:
            content = json.loads((folder / ROWS_JSON).read_text(encoding="utf-8"))
            known = dict(content["sha256"]) if content["made_from"] == self.made_from else None
        except (OSError, ValueError, KeyError, TypeError):
            known = None
        if known is None:
            shutil.rmtree(folder, ignore_errors=True)
        for name, digest in (known or {}).items():
            if self._path(name).exists() and sha256(self._path(name)) == digest:
                self.sha256[name] = digest
            else:
                self._path(name).unlink(missing_ok=True)

    def count(self, name: str) -> int:
        """The number of whole rows of an output."""
        try:
            return len(self[name])
        except (OSError, ValueError):  # no file, or a process was killed before it wrote the header
            return 0

    def __getitem__(self, name: str) -> np.ndarray:
        """The rows [count, D] of an output, memory-mapped."""
        return whole_rows(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def extend(self, total: int, names: Sequence[str], batches: Callable[[int], Iterator[Vectors]]) -> None:
        """Add rows of these outputs until there are `total` of each; batches(k) yields them from row k on.

        An output that has more rows than another keeps them.
        """
        count = min(self.count(name) for name in names)
        if count >= total:
            return
        self._write_json()  # before any row
        for batch in batches(count):
            for name in names:
                with GrowingArray(self._path(name), batch[name].dtype, batch[name].shape[1:]) as file:
                    file.append(batch[name][max(0, file.count - count) :])
            count += len(batch[names[0]])
        if count >= total:
            self.sha256 |= {name: sha256(self._path(name)) for name in names}
            self._write_json()

    def _write_json(self) -> None:
        write_json(self.folder / ROWS_JSON, {"made_from": self.made_from, "sha256": self.sha256})

    def statistics(self, name: str) -> Statistics:
        """Mean and covariance of an output's rows, kept in the folder."""
        path = self.folder / f"{name}-{self.count(name)}-statistics.npz"
        try:
            return read_statistics(path)
        except UserError:  # missing or damaged
            found = statistics(self[name])
            write_statistics(path, found)
            return found

    def radii(self, name: str, k: int) -> np.ndarray:
        """The distance of each of an output's rows to its k-th nearest neighbour, kept in the folder."""
        path = self.folder / f"{name}-{self.count(name)}-radii-{k}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except DAMAGED:  # or missing
            found = radii(self[name], k)
            write_atomic(path, lambda file: np.save(file, found), mode="wb")
            return found


def read_statistics(path: Path) -> Statistics:
    """The `mu` and `sigma` in an npz file, the usual form of published statistics, and `features` if it has them.

    Raises UserError where the file holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mu, sigma = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
            features = str(arrays["features"]) if "features" in arrays else None
    except DAMAGED as error:
        raise UserError(f"{path} is not an npz file with mu and sigma: {error}") from error
    if mu.ndim != 1 or sigma.shape != 2 * mu.shape:
        raise UserError(f"{path}: mu must be [D] and sigma [D, D], not {mu.shape} and {sigma.shape}")
    return Statistics(mu, sigma, features)


def write_statistics(path: Path, found: Statistics) -> None:
    """Write `mu` and `sigma`, in float64, and the hash of their feature network where it is known."""
    arrays = {name: value for name, value in vars(found).items() if value is not None}
    write_atomic(path, lambda file: np.savez(file, **arrays), mode="wb")
