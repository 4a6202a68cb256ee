"""Feature vectors on disk: rows that are added as images come, so that memory does not grow with their number.

A folder holds one array for each output of a feature network, float32 vectors or uint8 pixels, and `rows.json`: what
the rows were made from, and the hash of each complete array and of what was derived from it: a file with another hash
is made again. An evaluation that was killed continues after the last whole row.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.data.npz import DAMAGED
from diffuse.scoring.distances import Statistics, radii, statistics
from diffuse.system.errors import UserError
from diffuse.system.files import json_round_trip, may_write, sha256, write_atomic, write_json
from diffuse.system.growing_array import GrowingArray, whole_rows

ROWS_JSON = "rows.json"
ROUNDING = 1e-5  # of a covariance that somebody stored in float32, as a share of its largest number
Vectors = Mapping[str, np.ndarray]  # of some images, by output: [b, D] each


class Rows:
    """The rows in a folder. made_from: everything they depend on; rows made from anything else are removed.

    So are complete arrays whose content has changed since they were written.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any]):
        self.folder, self.made_from = folder, json_round_trip(made_from)
        self.sha256: dict[str, str] = {}
        self.derived: dict[str, str] = {}  # file name -> SHA-256
        try:
            content = json.loads((folder / ROWS_JSON).read_text(encoding="utf-8"))
            known = dict(content["sha256"]) if content["made_from"] == self.made_from else None
            self.derived = dict(content.get("derived", {}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            known = None
        if known is None:
            shutil.rmtree(folder, ignore_errors=True)
            self.derived = {}
        for name, digest in (known or {}).items():
            if self._path(name).exists() and sha256(self._path(name)) == digest:
                self.sha256[name] = digest
            else:
                self._path(name).unlink(missing_ok=True)

    def count(self, name: str) -> int:
        """The number of whole rows of an output."""
        return kept_rows(self.folder, name)

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
        facts = {"made_from": self.made_from, "sha256": self.sha256, "derived": self.derived}
        write_json(self.folder / ROWS_JSON, facts)

    def statistics(self, name: str) -> Statistics:
        """Mean and covariance of an output's rows, kept in the folder."""
        path = self.folder / f"{name}-{self.count(name)}-statistics.npz"
        if self._is_sealed(path):
            return read_statistics(path)
        found = statistics(self[name])
        if may_write(self.folder):
            write_statistics(path, found)
            self._seal(path)
        return found

    def radii(self, name: str, k: int) -> np.ndarray:
        """The distance of each of an output's rows to its k-th nearest neighbour, kept in the folder."""
        path = self.folder / f"{name}-{self.count(name)}-radii-{k}.npy"
        if self._is_sealed(path):
            return np.load(path, allow_pickle=False)
        found = radii(self[name], k)
        if may_write(self.folder):
            write_atomic(path, lambda file: np.save(file, found), mode="wb")
            self._seal(path)
        return found

    def _is_sealed(self, path: Path) -> bool:
        """Whether the file is as it was written."""
        return path.name in self.derived and path.is_file() and sha256(path) == self.derived[path.name]

    def _seal(self, path: Path) -> None:
        self.derived[path.name] = sha256(path)
        self._write_json()


def kept_rows(folder: Path, name: str) -> int:
    """The number of rows of an output in a folder of features, unchecked; 0 where there are none."""
    try:
        return len(whole_rows(folder / f"{name}.npy"))
    except (OSError, ValueError):
        return 0


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
    if mu.ndim != 1 or sigma.shape != 2 * mu.shape or not len(mu):
        raise UserError(f"{path}: mu must be [D] and sigma [D, D], not {mu.shape} and {sigma.shape}")
    if reason := why_impossible(mu, sigma):
        raise UserError(f"{path} does not hold the mean and covariance of anything: {reason}")
    return Statistics(mu, sigma, features)


def why_impossible(mu: np.ndarray, sigma: np.ndarray) -> str:
    """Why these are not a mean and a covariance, beyond rounding to float32; empty if they may be."""
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        return "mu or sigma has numbers that are NaN or infinite"
    largest = np.abs(sigma).max()
    if np.abs(sigma - sigma.T).max() > ROUNDING * largest:
        return "sigma is not symmetric"
    lowest, highest = np.linalg.eigvalsh(sigma)[[0, -1]]
    if lowest < -ROUNDING * max(highest, largest):
        return f"sigma has a negative eigenvalue, {lowest:.3g} (the largest is {highest:.3g})"
    return ""


def write_statistics(path: Path, found: Statistics) -> None:
    """Write `mu` and `sigma`, in float64, and the hash of their feature network where it is known."""
    arrays = {name: value for name, value in vars(found).items() if value is not None}
    write_atomic(path, lambda file: np.savez(file, **arrays), mode="wb")
