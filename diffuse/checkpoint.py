"""Checkpoints: tensors and plain values in one file, written whole, enough to sample on another machine."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import diffuse
from diffuse.build import build_network, build_schedule
from diffuse.errors import UserError
from diffuse.files import link_whole, sha256, written_whole
from diffuse.images import ImageKind
from diffuse.schedules import Schedule

FORMAT = 1
FOLDER = "checkpoints"
NEWEST = "last.pt"


def save(folder: Path, step: int, content: Mapping[str, Any], keep: int) -> Path:
    """Write folder/step_00001000.pt, point last.pt at it, and remove all but the `keep` newest."""
    path = folder / f"step_{step:08d}.pt"
    stamped = {"format": FORMAT, "program": f"diffuse {diffuse.__version__}", "step": step, **content}
    with written_whole(path) as beside:
        try:
            torch.save(stamped, beside)
        except RuntimeError as error:  # how torch's writer reports that the disk is full
            raise UserError(f"{path} could not be written; is the disk full? ({str(error).splitlines()[0]})") from error
    link_whole(folder / NEWEST, path.name)
    for old in all_in(folder)[:-keep]:
        old.unlink()
    return path


def all_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_*.pt"))


def newest(folder: Path) -> Path | None:
    """The newest checkpoint in a folder, if there is one."""
    if (folder / NEWEST).is_file():
        return (folder / NEWEST).resolve()
    return all_in(folder)[-1].resolve() if all_in(folder) else None


def find(ckpt: str) -> Path:
    """The checkpoint file that `ckpt` means: that file, or the newest of that run folder."""
    path = Path(ckpt).expanduser()
    if path.is_file():
        return path.resolve()
    if not path.exists():
        raise UserError(f"ckpt={ckpt} does not exist; give a run folder or a checkpoint file")
    for folder in (path / FOLDER, path):
        if found := newest(folder):
            return found
    runs = sorted({str(inside.parent.parent) for inside in path.glob(f"*/{FOLDER}/step_*.pt")})
    hint = f" It holds runs, though: {', '.join(runs[:3])}{' ...' if len(runs) > 3 else ''}" if runs else ""
    raise UserError(f"ckpt={ckpt} is a folder without checkpoints ({FOLDER}/step_*.pt).{hint}")


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file. Nothing in it is run; whatever is wrong with it is said in words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of foreign pickles; the error below says enough
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was not read: it is no checkpoint of this program, or it holds code that loading would run"
        ) from error
    except PermissionError:
        raise
    except Exception as error:  # what torch raises depends on where the damage is
        raise UserError(
            f"{path} is damaged or no checkpoint at all; use another one ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict) or "format" not in content or "config" not in content:
        raise UserError(f"{path} is not a checkpoint of this program; `diffuse train` writes them")
    if content["format"] != FORMAT:
        raise UserError(
            f"{path} has format {content['format']}, and diffuse {diffuse.__version__} reads format {FORMAT}; "
            f"it was written by {content.get('program', 'an unknown version')}"
        )
    return content


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds, ready to sample from or to score: the network has the EMA weights."""

    path: Path
    sha256: str
    step: int
    config: dict[str, Any]
    kind: ImageKind
    schedule: Schedule
    net: nn.Module

    @property
    def provenance(self) -> dict[str, Any]:
        """Which checkpoint this is, for the records of whatever is made with it."""
        return {
            "checkpoint": str(self.path),
            "checkpoint_sha256": self.sha256,
            "step": self.step,
            "weights": "ema",
        }

    @property
    def home(self) -> Path:
        """The run folder that the checkpoint is in, or the folder of a checkpoint that is in none."""
        folder = self.path.parent
        return folder.parent if folder.name == FOLDER else folder


def load_trained(ckpt: str, trust: Sequence[str]) -> Trained:
    """Rebuild schedule and network from the config stored in a checkpoint, with its EMA weights."""
    path = find(ckpt)
    content, digest = read(path), sha256(path)
    try:
        config, kind, step = content["config"], ImageKind(**content["kind"]), int(content["step"])
        schedule = build_schedule(config, trust)
        net = build_network(config, kind, trust)
        net.load_state_dict(content["ema"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} does not fit together: {str(error).splitlines()[0][:200]}") from error
    return Trained(path, digest, step, config, kind, schedule, net.eval().requires_grad_(False))
