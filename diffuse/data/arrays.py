"""Every data set of images is prepared once: one memory-mapped array [N, C, H, W] per split, and int64 labels.

    DATA_DIR/prepared/<name>-<key>/   train_images.npy  train_labels.npy  test_images.npy  test_labels.npy  about.json

The key is a hash of what the arrays depend on. A folder appears whole or not at all, is checked against its hashes
whenever it is used, and two runs that need it at the same time prepare it once.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import numpy as np

import diffuse
from diffuse.system.errors import UserError
from diffuse.system.files import FULL, flush, format_bytes, hold_lock, sha256, write_atomic, write_json
from diffuse.system.growing_array import GrowingArray
from diffuse.system.progress import Progress, log
from diffuse.system.signals import raise_pending

ARRAY_FORMAT = 1
MANIFEST = "about.json"
LISTED = 20  # unreadable images in a message
Block = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Split:
    """images [N, C, H, W], uint8 or float32; labels [N] int64, or None where the data set has none."""

    images: np.ndarray
    labels: np.ndarray | None = None
    known_sha256: str | None = None

    @cached_property
    def sha256(self) -> str:
        """A hash of the images and their labels."""
        if self.known_sha256:
            return self.known_sha256
        digest = hashlib.sha256(repr(self.images.shape).encode())
        for array in (self.images, self.labels):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass
class Source:
    """The images of one split, before they are in an array.

    count: the number of images, or more; blocks: (images [k, C, H, W], labels [k] or None) in order;
    unreadable: the files that were left out of the blocks so far, each with the reason.
    """

    count: int
    blocks: Iterable[Block]
    unreadable: list[str] = field(default_factory=list)


Sources = Callable[[], Mapping[str, Source]]


@dataclass(frozen=True)
class Recipe:
    """How a data set is made: its name, the shape of an image, what its arrays depend on, and where they come from.

    dtype: of the images, uint8 or float32.
    sources opens the splits; it is called only if the arrays do not exist yet, and may take long (a download).
    skip_bad: leave out images that cannot be read, instead of raising an error.
    """

    name: str
    shape: tuple[int, int, int]
    depends_on: Mapping[str, Any]
    sources: Sources
    skip_bad: bool = False
    dtype: str = "uint8"

    @property
    def folder_name(self) -> str:
        facts = {"format": ARRAY_FORMAT, "shape": self.shape, **self.depends_on}
        facts |= {"dtype": self.dtype} if self.dtype != "uint8" else {}
        return f"{self.name}-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]}"


def prepare(recipe: Recipe, data_dir: Path) -> dict[str, Split]:
    """The splits of a data set, prepared now if they do not exist yet or are damaged."""
    folder = data_dir / "prepared" / recipe.folder_name
    try:
        # First without the lock, under which another process may be about to replace the folder.
        splits = _load(recipe, folder, warn=False) or _prepare_once(recipe, folder)
    except OSError as error:
        if error.errno in FULL:
            raise
        reason = f"{error.strerror or error} ({error.filename or folder})"
        raise UserError(f"data_dir={data_dir} cannot be used: {reason}; choose another data_dir=") from error
    if not splits:
        raise UserError(f"{folder} is damaged as soon as it is written; check the disk or choose another data_dir=")
    return splits


def _prepare_once(recipe: Recipe, folder: Path) -> dict[str, Split] | None:
    """The splits, prepared by this process unless another one has just done so."""
    if getattr(current_process(), "_inheriting", False):
        # A worker that decodes images imports the script that started it. It would come here, and wait for its parent.
        raise RuntimeError("a script that prepares data must do so below: if __name__ == '__main__':")
    waiting = f"waiting for another process, which is preparing {recipe.name}"
    with hold_lock(folder.with_name(f".{folder.name}.lock"), waiting=waiting):
        if splits := _load(recipe, folder):
            return splits
        _write(recipe, folder)
        return _load(recipe, folder)


def _load(recipe: Recipe, folder: Path, warn: bool = True) -> dict[str, Split] | None:
    """The splits in a folder that was prepared earlier, or None if there is none or it is damaged."""
    if not folder.is_dir():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["sha256"].items():
            if sha256(folder / name) != expected:
                raise ValueError(f"{name} is not what was written")
        splits = {split: _load_split(folder, split, manifest["sha256"]) for split in manifest["images"]}
        unreadable = list(manifest["unreadable"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        if warn:
            log.warning(f"{folder} is damaged ({error}); preparing {recipe.name} again")
        return None
    total = sum(len(split.images) for split in splits.values()) + len(unreadable)
    refuse_unreadable(unreadable, recipe, folder, total)
    if unreadable:
        log.warning(f"{recipe.name}: {len(unreadable)} of {total:,} images cannot be read and are left out")
    return splits


def _load_split(folder: Path, split: str, hashes: Mapping[str, str]) -> Split:
    """One split, its images mapped copy-on-write: torch asks for arrays that could be written to."""
    images, labels = f"{split}_images.npy", f"{split}_labels.npy"
    together = hashlib.sha256(f"{hashes[images]} {hashes.get(labels)}".encode()).hexdigest()
    classes = np.load(folder / labels) if labels in hashes else None
    return Split(np.load(folder / images, mmap_mode="c"), classes, together)


def _write(recipe: Recipe, folder: Path) -> None:
    """Write the arrays to a temporary folder beside `folder`, and rename it when it is complete."""
    beside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)  # left by a process that was killed; we have the lock
    beside.mkdir()
    try:
        sources = recipe.sources()
        total = sum(source.count for source in sources.values())
        refuse_without_room(recipe, total, folder.parent)
        with Progress(f"preparing {recipe.name}", total, "image") as progress:
            images = {split: _write_split(beside, split, recipe, source, progress) for split, source in sources.items()}
        unreadable = [name for source in sources.values() for name in source.unreadable]
        refuse_unreadable(unreadable, recipe, folder, total)
        if empty := [split for split, count in images.items() if not count]:
            raise UserError(f"{recipe.name} has no image in its {empty[0]} split")
        manifest = {
            "name": recipe.name,
            "program": f"diffuse {diffuse.__version__}",
            "depends_on": recipe.depends_on,
            "images": images,
            "sha256": {path.name: sha256(path) for path in sorted(beside.glob("*.npy"))},
            "unreadable": unreadable,
        }
        write_json(beside / MANIFEST, manifest)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
        flush(folder.parent)
        log.info(f"{recipe.name}: {sum(images.values()):,} images prepared in {folder}")
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_split(folder: Path, split: str, recipe: Recipe, source: Source, progress: Progress) -> int:
    """Write the blocks of one split one after the other; returns the number of images."""
    labels = []
    with GrowingArray(folder / f"{split}_images.npy", np.dtype(recipe.dtype), recipe.shape) as images:
        for block, classes in source.blocks:
            images.append(block)
            if classes is not None:
                labels.append(classes)
            raise_pending()
            progress.advance(len(block))
    if labels:
        with GrowingArray(folder / f"{split}_labels.npy", np.dtype(np.int64), ()) as array:
            array.append(np.concatenate(labels))
    return images.count


def refuse_without_room(recipe: Recipe, count: int, folder: Path) -> None:
    """Raise UserError where the arrays would not fit on the disk."""
    needed, free = count * int(np.prod(recipe.shape)) * np.dtype(recipe.dtype).itemsize, shutil.disk_usage(folder).free
    if needed > free:
        what = f"{recipe.name} needs {format_bytes(needed)} in {folder}, where {format_bytes(free)} are free"
        raise UserError(f"{what}; make room or choose another data_dir=")


def refuse_unreadable(unreadable: list[str], recipe: Recipe, folder: Path, total: int) -> None:
    """Raise UserError with the names of images that cannot be read, unless they are to be skipped."""
    if not unreadable or recipe.skip_bad:
        return
    listed = "; ".join(unreadable[:LISTED])
    if unreadable[LISTED:]:
        path = folder.with_name(f"{recipe.name}-unreadable.txt")
        write_atomic(path, lambda file: file.write("\n".join(unreadable) + "\n"))
        listed += f"; and {len(unreadable) - LISTED} more, all of them listed in {path}"
    raise UserError(
        f"{len(unreadable)} of {total:,} images of {recipe.name} cannot be read: {listed}\n"
        "Repair or remove them, or leave them out with dataset.skip_bad=true"
    )
