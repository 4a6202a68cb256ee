"""Atomic writes, locks and new folders: a file appears whole or not at all."""

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import yaml
from filelock import FileLock, Timeout

from diffuse.system.errors import UsageError, UserError
from diffuse.system.progress import log

# Beside the package in the repository, inside it in a wheel.
CONFIGS = next(path for up in Path(__file__).resolve().parents[1:3] if (path := up / "configs").is_dir())
OUTPUTS = Path("outputs")
RECORD, SWEEP_RECORD = "config.yaml", "multirun.yaml"
AT_BEST = "@best"  # RUN@best, the checkpoint of a run with the best score
LONGEST_SLUG = 120
MOST_NODES = 1_000_000  # values in a YAML file
PATIENCE = 0.2  # seconds to wait for a lock: `diffuse ls` holds it for a moment to see whether it is free
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the errors of a full disk
PLAIN = re.compile(r"[A-Za-z0-9._-]*/[A-Za-z0-9._/@+-]*")  # values that Hydra takes for text, without quotes
UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")  # characters that a shell, or another system, may read differently


@contextmanager
def atomic_path(path: Path, survives_power_cut: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` to write to, which replaces `path` at the end, unless an error is raised.

    Flushing to the disk costs milliseconds: survives_power_cut=False is for thousands of small files.
    """
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        if survives_power_cut:
            flush(beside)
        os.replace(beside, path)
        if survives_power_cut:
            flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_atomic(path: Path, write: Callable[[IO[Any]], object], mode: str = "w") -> None:
    """Call write(file) with a file that becomes `path` when it is complete."""
    with atomic_path(path) as beside, open(beside, mode, encoding=None if "b" in mode else "utf-8") as file:
        write(file)


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts as JSON that people can read too: a line for each key, and lists on one line."""
    write_atomic(path, lambda file: file.write(_as_json(facts, "") + "\n"))


def json_round_trip(value: Any) -> Any:
    """The value after writing it as JSON and reading it again: tuples are lists, keys are text."""
    return json.loads(json.dumps(value))


def _as_json(value: Any, indent: str) -> str:
    if not isinstance(value, Mapping):
        return json.dumps(value)
    lines = [f"{indent}  {json.dumps(key)}: {_as_json(inside, indent + '  ')}" for key, inside in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def link_atomic(path: Path, target: Path) -> None:
    """Make `path` a second name of the file `target`, replacing what was there in one step.

    Unlike a symbolic link it can be copied alone. Where the file system has no hard links it is a symbolic one.
    """
    with atomic_path(path, survives_power_cut=False) as beside:
        beside.unlink(missing_ok=True)  # left by a killed process that had our number
        try:
            beside.hardlink_to(target)
        except OSError:
            beside.symlink_to(target.name)
    flush(path.parent)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, where they do not exist; new ones survive a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush(path.parent)


def make_new_folder(path: Path) -> Path:
    """Create `path`, or `path`-2, -3 ... if it exists: two runs begun in the same second never share a folder."""
    make_folder(path.parent)
    number, candidate = 1, path
    while True:
        with suppress(FileExistsError):
            candidate.mkdir()
            return candidate
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")


def may_write(path: Path) -> bool:
    """Whether a file or folder may be made or changed here, judged by the permissions of its folder."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return os.access(there, os.W_OK)


def short_path(path: Path) -> str:
    """The path, relative to the current folder if it lies in it, and absolute otherwise."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def as_word(key: str, value: str) -> str:
    """key=value for the command line, in quotes where Hydra's grammar needs them; `shlex.join` adds the shell's."""
    if PLAIN.fullmatch(value):
        return f"{key}={value}"
    quoted = value.replace("'", "\\'")
    return f"{key}='{quoted}'"


def data_folder(data_dir: str) -> Path:
    """The absolute path that data_dir= stands for."""
    return Path(data_dir).expanduser().absolute()


def absolute(place: str) -> Path:
    """The absolute path without `..`, in which symbolic links are kept."""
    return Path(os.path.abspath(Path(place).expanduser()))  # noqa: PTH100


def run_path(given: str) -> Path:
    """The path that ckpt= or resume= means: as it is given, or else in outputs/, where runs are."""
    path = Path(given).expanduser()
    return OUTPUTS / path if not path.exists() and (OUTPUTS / path).exists() else path


def check_name(name: str) -> str:
    """The name, if it needs no quoting in a shell and stays below its parent folder. Raises UsageError otherwise.

    The folder of all runs before it, as a shell completes it, is left out.
    """
    name = name.removeprefix(f"{OUTPUTS}/")
    if any(UNSAFE.search(part) or not part.strip(".") for part in name.split("/")):
        allowed = "letters, digits, '.', '_', '+' and '-', in parts divided by '/'"
        raise UsageError(f"name must be made of {allowed}, without '..' or a '/' at either end, not {name!r}")
    return name


def slug(text: str) -> str:
    """Any text as part of a file name that needs no quoting in a shell."""
    return UNSAFE.sub("-", text).strip("-")[:LONGEST_SLUG]


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_folder(path: Path, names: Sequence[str]) -> str:
    """The SHA-256 of what `sha256sum` prints for these files: a line for each, with its own hash and its name."""
    lines = (f"{sha256(path / name)}  {name}\n" for name in names)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove the temporary files of `atomic_path`, for files of these names or of any, in processes that were killed.

    The caller holds the lock under which those files are written.
    """
    for name in names or ("*",):
        for left_over in folder.glob(f".{name}.*.tmp"):
            left_over.unlink(missing_ok=True)


def refuse_explosions(path: Path) -> None:
    """Raise ValueError where the aliases of a YAML file stand for more than MOST_NODES values together."""
    sizes, open_nodes = dict[str, int](), list[list[Any]]()  # of anchors; [anchor, size] of what is not closed yet
    with open(path, encoding="utf-8") as file:
        for event in yaml.parse(file):
            size, name = 1, getattr(event, "anchor", None)
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append([name, 1])
                continue
            if isinstance(event, yaml.AliasEvent):
                size = sizes.get(event.anchor, 1)
            elif isinstance(event, yaml.CollectionEndEvent):
                name, size = open_nodes.pop()
            elif not isinstance(event, yaml.ScalarEvent):
                continue
            if name and not isinstance(event, yaml.AliasEvent):
                sizes[name] = size
            if open_nodes:
                open_nodes[-1][1] += size
            if size > MOST_NODES:
                raise ValueError(f"its aliases (*name) stand for more than {MOST_NODES:,} values")


def refuse_aliases(path: Path) -> None:
    """Raise ValueError where a YAML file has aliases: nine of nine of nine ... would fill the memory."""
    with open(path, encoding="utf-8") as file:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(file)):
            raise ValueError("it has aliases (*name), which no file of this program has")


def flush(path: Path) -> None:
    """Write a file's content, or a folder's entries, to the disk: a new file survives a power cut only after both."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def hold_lock(path: Path, refusal: str = "", waiting: str = "") -> Iterator[None]:
    """Hold a lock, which the system releases when its process ends. The file at `path` and its folder stay.

    If another process holds the lock, raises UserError(refusal), or else logs `waiting` and waits.
    """
    make_folder(path.parent)
    try:
        held = lock_now(path, PATIENCE if refusal else 0.0)
    except Timeout:
        if refusal:
            raise UserError(refusal) from None
        if waiting:
            log.info(waiting)
        held = FileLock(path).acquire()
    with held:
        yield


def lock_now(path: Path, seconds: float = 0.0) -> AbstractContextManager[object]:
    """Take a lock, until the end of a context. Raises Timeout if another process still has it after these seconds.

    Some network file systems have no locks. There nothing is held, with a warning.
    """
    try:
        return FileLock(path).acquire(timeout=seconds, poll_interval=0.02)
    except OSError as error:  # Timeout is one too, without a number
        if error.errno not in NO_LOCKS:
            raise
        log.warning(f"{path.parent}: its file system has no locks ({error.strerror}); write there from one process")
        return nullcontext()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock at this path, which may be another user's; unknown counts as no."""
    try:
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except OSError:  # there is none, or its file system has no locks
        pass
    return False


def format_bytes(size: float) -> str:
    """'571 MB', '2.3 GB': bytes in powers of ten, as disks are sold."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
