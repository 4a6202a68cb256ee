"""Arrays on disk that grow row by row, so that memory does not depend on their length, and that survive a kill."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.system.errors import UserError


def whole_rows(path: Path) -> np.ndarray:
    """The rows that a file holds, read where they are looked at; a last one that is cut off does not count.

    Raises OSError where there is no such file, and ValueError where it has no header of a .npy file.
    """
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        (_, *shape), _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    count = (path.stat().st_size - start) // (dtype.itemsize * math.prod(shape))
    return np.memmap(path, dtype, "r", start, (count, *shape)) if count else np.empty((0, *shape), dtype)


class GrowingArray:
    """A .npy file [count, *shape] to which rows are appended; rows of this kind that it holds already are kept.

    Its header says how many there are once the array is closed. Until then, and after a kill, its size does.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]):
        self.path, self.dtype, self.shape, self.count = path, dtype, shape, 0
        try:
            found = whole_rows(path)
            self.count = len(found) if (found.dtype, found.shape[1:]) == (dtype, shape) else 0
        except (OSError, ValueError):  # not there, or killed before its header was written
            path.touch()
        self.file = open(path, "rb+")  # noqa: SIM115
        self._write_header()
        self.file.truncate(self.file.tell() + self.count * dtype.itemsize * math.prod(shape))
        self.file.seek(0, os.SEEK_END)

    def append(self, rows: np.ndarray) -> None:
        if rows.shape[1:] != self.shape:
            raise UserError(f"the source of {self.path.name} has images of shape {rows.shape[1:]}, not {self.shape}")
        self.file.write(np.ascontiguousarray(rows.astype(self.dtype, casting="safe", copy=False)).data)
        self.count += len(rows)

    def __enter__(self) -> "GrowingArray":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.file.seek(0)
            self._write_header()  # numpy leaves room in it for the count to grow
            self.file.flush()
            os.fsync(self.file.fileno())
        finally:
            self.file.close()

    def _write_header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)
