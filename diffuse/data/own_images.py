"""The user's own images, a folder of files: what is there, and which are held out for testing."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffuse.data.arrays import Source
from diffuse.data.decoding import SUFFIXES, Shape
from diffuse.data.sources import from_files
from diffuse.system.errors import UserError
from diffuse.system.progress import log
from diffuse.system.randomness import hash_key

TEST_FOLDERS = ("test", "val", "valid", "validation")
MOST_NAMED = 5  # files in a message


class FolderImages:
    """All images in a folder and below. Subfolders are classes where every image lies in one.

    names, relative to the folder; classes, the names of the subfolders; labels [N], or None without classes; tested, a
    mask of the images to test on where the folder has `train` and `test` (or `val`, `valid`, `validation`), or None.
    """

    def __init__(self, root: Path):
        self.root = root
        inside = split_folders(root)
        found = {split: image_files(root / place) for split, place in inside.items()}
        self.names = [str(Path(inside[split], name)) for split, names in found.items() for name in names]
        if len(self.names) < 2 or not all(found.values()):
            counts = ", ".join(f"{len(names)} in {inside[split] or 'it'}" for split, names in found.items())
            needed = "2 images (jpg, png, webp, bmp) or more, and at least one in each split"
            raise UserError(f"dataset.path={root} must hold {needed}; found {counts}")
        folders = [name.partition("/")[0] if "/" in name else "" for names in found.values() for name in names]
        self.classes = sorted(set(folders)) if all(folders) else []
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = np.array([numbers[name] for name in folders]) if self.classes else None
        self.tested = np.arange(len(self.names)) >= len(found["train"]) if "test" in found else None

    def source(self, rows: np.ndarray, shape: Shape) -> Source:
        """The images at which the mask `rows` is true."""
        names = [name for name, chosen in zip(self.names, rows, strict=True) if chosen]
        return from_files(self.root, names, None if self.labels is None else self.labels[rows].tolist(), shape)


def fingerprint(root: Path, names: Sequence[str]) -> str:
    """A hash that changes when a file is added, removed, renamed or rewritten; contents are not read."""
    digest = hashlib.sha256(os.fsencode(root))
    for name in names:
        try:
            status = os.stat(f"{root}/{name}")
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:  # a broken link, say: reading it will raise an error
            state = "unreadable"
        digest.update(os.fsencode(f"{name}\0{state}\n"))
    return digest.hexdigest()


def image_files(folder: Path) -> list[str]:
    """All images in a folder and below, as sorted paths relative to it, without hidden files and folders.

    Other files, and folders that may not be read, are left out with a warning.
    """
    found, others, closed, seen = list[str](), list[str](), list[str](), set[tuple[int, int]]()

    def refused(error: OSError) -> None:
        closed.append(os.path.relpath(error.filename, folder))

    for inside, folders, files in os.walk(folder, onerror=refused, followlinks=True):
        status = os.stat(inside)
        if (status.st_dev, status.st_ino) in seen:  # links in a circle
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = "" if inside == str(folder) else Path(inside).relative_to(folder).as_posix() + "/"
        for name in files:
            if not name.startswith("."):
                (found if name.lower().endswith(SUFFIXES) else others).append(below + name)
    for names, what in ((others, "not jpg, png, webp or bmp"), (closed, "a folder that may not be read")):
        if names:
            log.warning(f"{folder}: {len(names):,} left out ({what}): {first_of(sorted(names))}")
    return sorted(found)


def first_of(names: Sequence[str]) -> str:
    """The first names, for a message."""
    more = ", ..." if names[MOST_NAMED:] else ""
    return ", ".join(name.encode(errors="backslashreplace").decode() for name in names[:MOST_NAMED]) + more


def split_folders(folder: Path) -> dict[str, str]:
    """The folder of each split: `train` and a test folder, or `train` if it is all there is, or the folder itself."""
    _, inside, _ = next(os.walk(folder), ("", [], []))
    tests = [name for name in TEST_FOLDERS if name in inside]
    if "train" in inside and tests:
        return {"train": "train", "test": tests[0]}
    return {"train": "train" if inside == ["train"] else ""}


def held_out(names: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Which of these names are held out for testing: a mask with `share` of them, at least one and never all.

    Names are sorted by a hash of (seed, name), so which images are held out hardly changes when others are added or
    removed.
    """
    order = sorted(range(len(names)), key=lambda number: hash_key("held out", seed, names[number]))
    mask = np.zeros(len(names), bool)
    mask[order[: min(max(1, round(share * len(names))), len(names) - 1)]] = True
    return mask
