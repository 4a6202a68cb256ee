"""Checkpoints: tensors and plain values in one file, written atomically, enough to sample on another machine.

The file is PyTorch's zip file. Its archive comment, which readers of zip files ignore, is a seal: the SHA-256 of all
bytes before it. A damaged file is recognised by it wherever the file was copied to.
"""

import hashlib
import os
import pickle
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import diffuse
from diffuse.runs.checkpoint_files import BEST, CHECKPOINTS, LAST, MILESTONE, all_in, is_milestone, numbered
from diffuse.runs.listing import RUNNING, facts_of
from diffuse.runs.record import record_around
from diffuse.system.errors import UserError, did_you_mean
from diffuse.system.files import AT_BEST, RECORD, as_word, atomic_path, link_atomic, run_path, sha256, short_path
from diffuse.system.progress import log

# The formats that can be read; the last one is written. In format 3 a `_target_` is the path of a module, and there is
# always a config.
FORMATS = (3, 4)
SEAL_LENGTH = 64
# How a zip file ends: "PK\5\6", 16 bytes, and the length of the comment that follows, in two bytes.
ZIP_END = b"PK\x05\x06"
ZIP_END_LENGTH = 22


class Damaged(UserError):
    """The content of the file has changed since it was written, or it never was a checkpoint."""


class Unsealed(Damaged):
    """The file has no seal: its end is missing, or it is none of this program's."""


@dataclass(frozen=True)
class Stored:
    """A checkpoint that was read: its path, the SHA-256 of the file, and its content."""

    path: Path
    sha256: str
    content: dict[str, Any]


def save(folder: Path, step: int, content: Mapping[str, Any], keep: int, milestone_every: int | None = None) -> Path:
    """Write folder/step_00001000.pt, point last.pt at it, and remove all but the `keep` newest.

    A milestone is named step_00001000.milestone.pt. Milestones are never removed, whatever milestone_every is later,
    and do not count towards `keep`.
    """
    path = folder / f"step_{step:08d}{MILESTONE if is_milestone(step, milestone_every) else ''}.pt"
    write(path, step, content)
    point_to(path)
    for old in [old for old in all_in(folder) if MILESTONE not in old.name][:-keep]:
        old.unlink()
    return path


def point_to(newest: Path) -> None:
    """Make last.pt another name of this checkpoint, where the file system has links. It is for people."""
    link = newest.parent / LAST
    if not link.exists() or not link.samefile(newest):
        with suppress(OSError):
            link_atomic(link, newest)


def write(path: Path, step: int, content: Mapping[str, Any]) -> None:
    """Write one sealed file, atomically."""
    header = {"format": FORMATS[-1], "program": f"diffuse {diffuse.__version__}", "step": step}
    with atomic_path(path) as beside:
        try:
            torch.save({**header, **content}, beside)
        except RuntimeError as error:
            if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
                raise
            raise UserError(  # how torch's writer reports that the disk is full
                f"{path} could not be written; is the disk full?\n"
                "Make room and give the command again: the checkpoints before it are complete"
            ) from error
        seal(beside)


def seal(path: Path) -> None:
    """Append the SHA-256 of a zip file as its comment; the two bytes before a comment hold the comment's length."""
    with open(path, "rb+") as file:
        file.seek(-ZIP_END_LENGTH, os.SEEK_END)
        assert file.read(4) == ZIP_END, "torch.save no longer writes a zip file without a comment"
        file.seek(-2, os.SEEK_END)
        file.write(SEAL_LENGTH.to_bytes(2, "little"))
        file.flush()
        file.write(sha256(path).encode())


def verify(path: Path) -> str:
    """The SHA-256 of the whole file. Raises Damaged where the seal is not the hash of the content before it."""
    digest, left = hashlib.sha256(), path.stat().st_size - SEAL_LENGTH
    end = b""
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            end = (end + block)[-ZIP_END_LENGTH:]
            left -= len(block)
        comment = file.read()
    if not end.startswith(ZIP_END) or not end.endswith(SEAL_LENGTH.to_bytes(2, "little")):
        raise Unsealed(f"{path} is not a checkpoint of this program, or its end is missing; use another one")
    if digest.hexdigest().encode() != comment:
        raise Damaged(f"{path} is damaged: its content has changed since it was written (SHA-256); use another one")
    digest.update(comment)
    return digest.hexdigest()


def newest(folder: Path) -> Stored | None:
    """The newest checkpoint in a folder that can be read; None where the folder has none.

    Damaged ones are skipped with a warning. Raises Damaged where all of them are damaged.
    """
    damaged: list[Damaged] = []
    for path in reversed(all_in(folder)):
        try:
            found = load_checkpoint(path.resolve())
        except Damaged as error:
            damaged.append(error)
        except FileNotFoundError:  # removed by a training that is running, and has newer ones now
            return newest(folder)
        else:
            for problem in damaged:
                log.warning(str(problem).replace("use another one", f"taking {path.name}"))
            return found
    if damaged:
        raise Damaged(
            f"none of the {len(damaged)} checkpoints in {folder} can be read: {damaged[0]}\n"
            "Restore one from a copy, or choose another name= to begin again"
        )
    return None


def find(ckpt: str, key: str = "ckpt") -> Stored:
    """The checkpoint that a key means: a file, the newest one of a run folder, or with RUN@best the best one."""
    path = run_path(ckpt)
    if not path.exists() and ckpt.endswith(AT_BEST):
        path = run_path(ckpt.removesuffix(AT_BEST)) / CHECKPOINTS / BEST
    if path.is_file():
        return load_checkpoint(numbered(path.resolve()))
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{key}={ckpt} is a link to {path.readlink()}, which is not there: copy that file, as `cp -L` does"
        )
    if not path.exists():
        if ckpt.endswith(AT_BEST) and run_path(ckpt.removesuffix(AT_BEST)).is_dir():
            raise UserError(f"{key}={ckpt}: this run has no best checkpoint, which diffuse train eval.every=N keeps")
        near = did_you_mean(path.name, [beside.name for beside in path.parent.glob("*") if beside.is_dir()])
        raise UserError(f"{key}={ckpt} does not exist; give a run folder or a checkpoint file.{near}")
    if found := newest(path / CHECKPOINTS) or newest(path):
        return found
    if (alone := path / CHECKPOINTS / LAST).is_file():  # it was copied without the others
        return load_checkpoint(alone.resolve())
    if (path / RECORD).is_file():
        raise UserError(why_without_checkpoint(path))
    runs = sorted({str(inside.parent.parent) for inside in path.glob(f"*/{CHECKPOINTS}/step_*.pt")})
    hint = f" It holds runs, though: {', '.join(runs[:3])}{' ...' if len(runs) > 3 else ''}" if runs else ""
    raise UserError(f"{key}={ckpt} is a folder without checkpoints ({CHECKPOINTS}/step_*.pt).{hint}")


def why_without_checkpoint(run: Path) -> str:
    """Why a run has no checkpoint yet, and what brings one."""
    facts, record = facts_of(run), record_around(str(run))
    first = f"the first comes at step {min(record.checkpoint.every, record.steps):,}" if record else "it has none yet"
    if facts.state == RUNNING:
        return f"{short_path(run)} is training and is at step {facts.step:,}: {first} (checkpoint.every)"
    again = shlex.join(["diffuse", "train", as_word("resume", short_path(run))])
    return f"{short_path(run)} was stopped before its first checkpoint; continue with: {again}"


def load_checkpoint(path: Path) -> Stored:
    """Read a checkpoint file. No code in it is run. Raises UserError where it cannot be read, Damaged if changed."""
    digest = verify(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles; the error below says enough
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise Damaged(
            f"{path} was not read: it is not a checkpoint of this program, or it holds code that loading would run"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # what torch raises depends on where the damage is
        raise Damaged(f"{path} is damaged or not a checkpoint; use another one ({type(error).__name__})") from error
    fields = content if isinstance(content, dict) else {}
    types = {"format": int, "step": int, "config" if "config" in fields else "model": dict}  # a Trainer has no config
    if not all(isinstance(fields.get(key), kind) for key, kind in types.items()):
        raise Damaged(f"{path} is not a checkpoint of this program; `diffuse train` writes them")
    if content["format"] not in FORMATS:
        raise UserError(
            f"{path} has format {content['format']}, and diffuse {diffuse.__version__} reads formats "
            f"{' and '.join(map(str, FORMATS))}; it was written by {content.get('program', 'an unknown version')}"
        )
    return Stored(path, digest, content)


@contextmanager
def refuse_mismatch(path: Path) -> Iterator[None]:
    """Raise UserError where parts of a checkpoint's content do not fit together, or do not fit this program."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError, AssertionError) as error:
        why = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{path} does not fit together: {type(error).__name__} {why}") from error


def check_shapes(tensors: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], what: str) -> None:
    """Raise ValueError unless these are float32 tensors of these shapes, and no others."""
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if found != {name: (torch.float32, tuple(shape)) for name, shape in shapes.items()}:
        raise ValueError(f"{what} must be float32 tensors of the shapes {dict(shapes)}, not {found}")
