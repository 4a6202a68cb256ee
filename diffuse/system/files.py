"""Atomic writes, locks and new folders: a file appears whole or not at all."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from diffuse.system.errors import UsageError

PACKAGE = Path(__file__).resolve().parent.parent
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
OUTPUTS = Path("outputs")
RECORD, SWEEP_RECORD = "config.yaml", "multirun.yaml"
LONGEST_SLUG = 120
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SAFE_NAME = re.compile(r"[A-Za-z0-9._+-]+")


@contextmanager
def atomic_path(path: Path, survives_power_cut: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` to write to, which is moved into place once it is written.

    Flushing it to the disk costs milliseconds: leave that out for thousands of small files.
    """
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        if survives_power_cut:
            flush_file(beside)
        os.replace(beside, path)
        if survives_power_cut:
            flush_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_atomic(path: Path, write: Callable[[IO[Any]], object], mode: str = "w") -> None:
    """Call write(file) with a file that becomes `path` when it is complete."""
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(path) as beside, open(beside, mode, encoding=encoding) as file:
        write(file)


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts as JSON for people and programs: one line a key, and lists on one line."""
    write_atomic(path, lambda file: file.write(_as_json(facts, "") + "\n"))


def json_round_trip(value: Any) -> Any:
    """The value as JSON gives it back: tuples are lists, keys are text."""
    return json.loads(json.dumps(value))


def _as_json(value: Any, indent: str) -> str:
    if not isinstance(value, Mapping):
        return json.dumps(value)
    lines = [f"{indent}  {json.dumps(key)}: {_as_json(inside, indent + '  ')}" for key, inside in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def link_atomic(path: Path, target: str) -> None:
    """Make `path` a symbolic link to `target`, replacing what was there in one step."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    os.replace(beside, path)
    flush_folder(path.parent)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, where they do not exist; new ones survive a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush_folder(path.parent)


def make_new_folder(path: Path) -> Path:
    """Create `path`, or `path`-2, -3 ... where that exists: two runs begun in the same second never share a folder."""
    make_folder(path.parent)
    number, candidate = 1, path
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")


def short_path(path: Path) -> str:
    """The path, relative to the current folder where it lies in it."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def data_folder(data_dir: str) -> Path:
    """The absolute path that data_dir= stands for."""
    return Path(data_dir).expanduser().absolute()


def check_name(name: str) -> str:
    """The name, if it needs no quoting in a shell and stays below its parent folder. Raises UsageError otherwise."""
    parts = name.split("/")
    if not all(SAFE_NAME.fullmatch(part) and part.strip(".") for part in parts):
        allowed = "letters, digits, '.', '_', '+' and '-', in parts divided by '/'"
        raise UsageError(f"name must be made of {allowed}, without '..' or a '/' at either end, not {name!r}")
    return name


def slug(text: str) -> str:
    """Any text as part of a file name that needs no quoting in a shell."""
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", text).strip("-")[:LONGEST_SLUG]


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Remove what `atomic_path` left in a folder when its process was killed. The caller holds a lock on the folder."""
    for left_over in folder.glob(".*.tmp"):
        left_over.unlink(missing_ok=True)


def flush_file(path: Path) -> None:
    """Write the file's buffers to the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Write a folder's entries to the disk: a renamed file survives a power cut only after that."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def hold_lock(path: Path, if_taken: Callable[[], object]) -> Iterator[None]:
    """Hold a lock that the system releases with its owner. `path` is a file that stays; by itself it means nothing.

    Where another process holds the lock, if_taken is called: it may raise an error, or return to wait.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if_taken()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def format_bytes(size: float) -> str:
    """'571 MB', '2.3 GB': bytes in powers of ten, as disks are sold."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
