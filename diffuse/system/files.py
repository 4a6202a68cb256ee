"""Files that appear whole or not at all, and folders that nobody else has."""

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
def written_whole(path: Path, survives_power_cut: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to, and move it into place once it is written.

    Waiting until it is on the disk as well costs milliseconds: leave that out for thousands of small files.
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


def write_whole(path: Path, write: Callable[[IO[Any]], object], mode: str = "w") -> None:
    """Call write(file) on a file that becomes `path` when it is complete."""
    encoding = None if "b" in mode else "utf-8"
    with written_whole(path) as beside, open(beside, mode, encoding=encoding) as file:
        write(file)


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts as JSON for people and programs: a line for each key, lists on one line."""
    write_whole(path, lambda file: file.write(_as_json(facts, "") + "\n"))


def as_json_gives_it_back(value: Any) -> Any:
    """The value as it will be when it is read again: tuples as lists, keys as text."""
    return json.loads(json.dumps(value))


def _as_json(value: Any, indent: str) -> str:
    if not isinstance(value, Mapping):
        return json.dumps(value)
    lines = [f"{indent}  {json.dumps(key)}: {_as_json(inside, indent + '  ')}" for key, inside in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def link_whole(path: Path, target: str) -> None:
    """Make `path` a symbolic link to `target`, replacing what was there in one move."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    os.replace(beside, path)
    flush_folder(path.parent)


def make_folder(path: Path) -> None:
    """Create a folder and those above it, where they are not there; new ones survive a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush_folder(path.parent)


def make_own_folder(path: Path) -> Path:
    """Create `path`, or `path`-2, -3 ... where that exists: two runs started in one second never share a folder."""
    make_folder(path.parent)
    number, candidate = 1, path
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")


def shown(path: Path) -> str:
    """The path as short as it can be typed from here."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def folder_of_data(data_dir: str) -> Path:
    """What data_dir= stands for, as an absolute path."""
    return Path(data_dir).expanduser().absolute()


def checked_name(name: str) -> str:
    """The name, if it can be a folder that needs no quoting in a shell and lies below the folder it is put into."""
    parts = name.split("/")
    if not all(SAFE_NAME.fullmatch(part) and part.strip(".") for part in parts):
        made_of = "letters, digits, '.', '_', '+' and '-', in parts divided by '/'"
        raise UsageError(f"name must be made of {made_of}, without '..' or a '/' at either end, not {name!r}")
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
    """Remove what `written_whole` was writing into a folder when its process was killed. Hold a lock on it."""
    for left_over in folder.glob(".*.tmp"):
        left_over.unlink(missing_ok=True)


def flush_file(path: Path) -> None:
    """Wait until the file is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """A renamed file survives a power cut only once its folder is on the disk too."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, if_taken: Callable[[], object]) -> Iterator[None]:
    """Hold a lock that dies with its owner. `path` is a file that stays; it means nothing by itself.

    Where another process holds the lock, if_taken is called: it may raise, or return to wait.
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


def size_in_words(size: float) -> str:
    """'571 MB', '2.3 GB': bytes the way disks are sold, in powers of ten."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
