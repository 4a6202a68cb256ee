"""Arrays on disk that grow row by row and survive a kill: the memory they need does not depend on their length."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.system.errors import UserError


def whole_rows(path: Path) -> np.ndarray:
    """The rows of a .npy file as a memory map, without a last row that is cut off.

    Raises OSError if there is no such file, and ValueError if it has no header of a .npy file.
    """
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        (_, *shape), _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    count = (path.stat().st_size - start) // (dtype.itemsize * math.prod(shape))
    if not count:
        return np.empty((0, *shape), dtype)
    return np.memmap(path, dtype, "c", start, (count, *shape))  # torch warns about read-only arrays


class GrowingArray:
    """A .npy file [count, *shape] to which rows are appended. Whole rows of this type and shape in it are kept.

    The header has the right number of rows once the array is closed. Until then, and after a kill, the number follows
    from the size of the file.
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
        with self.file:
            self.file.seek(0)
            self._write_header()  # numpy leaves room in it for the count to grow
            self.file.flush()
            os.fsync(self.file.fileno())

    def _write_header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)
