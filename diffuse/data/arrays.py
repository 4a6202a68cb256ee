"""Every data set of images is prepared once: into one memory-mapped uint8 array [N, C, H, W] a split, and int64 labels.

    DATA_DIR/prepared/<name>-<key>/   train_images.npy  train_labels.npy  test_images.npy  test_labels.npy  about.json

The key is a hash of what the arrays depend on. A folder appears whole or not at all, is checked against its hashes
whenever it is used, and two runs that need it at the same time prepare it once.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import numpy as np

import diffuse
from diffuse.system.errors import UserError
from diffuse.system.files import (
    FULL,
    flush_folder,
    format_bytes,
    hold_lock,
    make_folder,
    sha256,
    write_atomic,
    write_json,
)
from diffuse.system.growing_array import GrowingArray
from diffuse.system.progress import Progress, log
from diffuse.system.signals import raise_pending

FORMAT = 1
ABOUT = "about.json"
NAMED = 20
Block = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Split:
    """images [N, C, H, W], uint8 or float32; labels [N] int64, or None where the data set has none."""

    images: np.ndarray
    labels: np.ndarray | None = None
    known_sha256: str | None = None

    @cached_property
    def sha256(self) -> str:
        """What identifies the images and their labels."""
        if self.known_sha256:
            return self.known_sha256
        digest = hashlib.sha256(repr(self.images.shape).encode())
        for array in (self.images, self.labels):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass
class Source:
    """One split on its way into an array.

    count: how many images there are at most; blocks: (images uint8 [k, C, H, W], labels [k] or None) in order;
    unreadable: file names, with the reason, that were left out of the blocks so far.
    """

    count: int
    blocks: Iterable[Block]
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """How a data set is made: its name, the shape of an image, what its arrays depend on, and where they come from.

    sources opens them; it is called only where the arrays are not there yet, and may take long (a download).
    skip_bad: leave out images that cannot be read, instead of refusing the data set.
    """

    name: str
    shape: tuple[int, int, int]
    depends_on: Mapping[str, Any]
    sources: Callable[[], Mapping[str, Source]]
    skip_bad: bool = False

    @property
    def folder_name(self) -> str:
        facts = {"format": FORMAT, "shape": self.shape, **self.depends_on}
        return f"{self.name}-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]}"


def prepared(recipe: Recipe, data_dir: Path) -> dict[str, Split]:
    """The splits of a data set, prepared now if they are not there yet or are damaged."""
    folder = data_dir / "prepared" / recipe.folder_name
    try:
        if (splits := _reused(recipe, folder, warn=False)) is None:  # without the lock: it may be about to be replaced
            splits = _prepared_once(recipe, folder)
    except OSError as error:
        if error.errno in FULL:
            raise
        reason = f"{error.strerror or error} ({error.filename or folder})"
        raise UserError(f"data_dir={data_dir} cannot be used: {reason}; choose another data_dir=") from error
    if splits is None:
        raise UserError(f"{folder} is damaged as soon as it is written; is the disk in order? Choose another data_dir=")
    return splits


def _prepared_once(recipe: Recipe, folder: Path) -> dict[str, Split] | None:
    """The splits, prepared by this process unless another one has just done so."""
    if getattr(current_process(), "_inheriting", False):
        # A worker that decodes images imports the script that it serves. It would come here, and wait for its parent.
        raise RuntimeError("a script that prepares data must do so below: if __name__ == '__main__':")
    make_folder(folder.parent)
    taken = f"waiting for another process, which is preparing {recipe.name}"
    with hold_lock(folder.with_name(f".{folder.name}.lock"), if_taken=lambda: log.info(taken)):
        if (splits := _reused(recipe, folder)) is None:
            _prepare(recipe, folder)
            splits = _reused(recipe, folder)
    return splits


def _reused(recipe: Recipe, folder: Path, warn: bool = True) -> dict[str, Split] | None:
    """The splits in a folder made earlier, or None where there are none that can be trusted."""
    if not folder.is_dir():
        return None
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        for name, expected in about["sha256"].items():
            if sha256(folder / name) != expected:
                raise ValueError(f"{name} is not what was written")
        splits = {split: _load(folder, split, about["sha256"]) for split in about["images"]}
        unreadable = list(about["unreadable"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        if warn:
            log.warning(f"{folder} is damaged ({error}); preparing {recipe.name} again")
        return None
    total = sum(len(split.images) for split in splits.values()) + len(unreadable)
    refuse_unreadable(unreadable, recipe, folder, total)
    if unreadable:
        log.warning(f"{recipe.name}: {len(unreadable)} of {total:,} images cannot be read and are left out")
    return splits


def _load(folder: Path, split: str, hashes: Mapping[str, str]) -> Split:
    """Copy on write: torch asks for arrays that could be written to, and the file stays as it is."""
    images, labels = f"{split}_images.npy", f"{split}_labels.npy"
    together = hashlib.sha256(f"{hashes[images]} {hashes.get(labels)}".encode()).hexdigest()
    classes = np.load(folder / labels) if labels in hashes else None
    return Split(np.load(folder / images, mmap_mode="c"), classes, together)


def _prepare(recipe: Recipe, folder: Path) -> None:
    """Write the arrays beside their place, and move them there when all is well."""
    for left_over in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(left_over, ignore_errors=True)  # of a process that was killed; we have the lock
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    beside.mkdir()
    try:
        sources = recipe.sources()
        total = sum(source.count for source in sources.values())
        refuse_without_room(recipe, total, folder.parent)
        with Progress(f"preparing {recipe.name}", total, "image") as progress:
            images = {split: _write(beside, split, recipe, source, progress) for split, source in sources.items()}
        unreadable = [name for source in sources.values() for name in source.unreadable]
        refuse_unreadable(unreadable, recipe, folder, total)
        for split, count in images.items():
            if not count:
                raise UserError(f"{recipe.name} has no image in its {split} split")
        about = {
            "name": recipe.name,
            "program": f"diffuse {diffuse.__version__}",
            "depends_on": recipe.depends_on,
            "images": images,
            "sha256": {path.name: sha256(path) for path in sorted(beside.glob("*.npy"))},
            "unreadable": unreadable,
        }
        write_json(beside / ABOUT, about)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
        flush_folder(folder.parent)
        log.info(f"{recipe.name}: {sum(images.values()):,} images prepared in {folder}")
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write(folder: Path, split: str, recipe: Recipe, source: Source, progress: Progress) -> int:
    """Write the blocks of one split as they come; the number of images."""
    with ExitStack() as files:
        images = files.enter_context(GrowingArray(folder / f"{split}_images.npy", np.dtype(np.uint8), recipe.shape))
        labels: GrowingArray | None = None
        for block, classes in source.blocks:
            images.append(block)
            if classes is not None:
                path = folder / f"{split}_labels.npy"
                labels = labels or files.enter_context(GrowingArray(path, np.dtype(np.int64), ()))
                labels.append(classes)
            raise_pending()
            progress.advance(len(block))
        return images.count


def refuse_without_room(recipe: Recipe, count: int, folder: Path) -> None:
    """Raise UserError where the arrays would not fit on the disk."""
    needed, free = count * int(np.prod(recipe.shape)), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{recipe.name} needs {format_bytes(needed)} in {folder}, where {format_bytes(free)} are free; "
            "make room or choose another data_dir="
        )


def refuse_unreadable(unreadable: list[str], recipe: Recipe, folder: Path, total: int) -> None:
    """Raise UserError with the names of images that cannot be read, unless they may be skipped."""
    if not unreadable or recipe.skip_bad:
        return
    listed = "; ".join(unreadable[:NAMED])
    if unreadable[NAMED:]:
        path = folder.with_name(f"{recipe.name}-unreadable.txt")
        write_atomic(path, lambda file: file.write("\n".join(unreadable) + "\n"))
        listed += f"; and {len(unreadable) - NAMED} more, all of them listed in {path}"
    raise UserError(
        f"{len(unreadable)} of {total:,} images of {recipe.name} cannot be read: {listed}\n"
        "Mend or remove them, or leave them out with dataset.skip_bad=true"
    )
