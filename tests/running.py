"""Runs of seconds in the current folder, and what a crash would leave of them."""

from pathlib import Path

from diffuse import checkpoint, train
from tests.commands import TINY, config, job


def trained(name: str, *overrides: str) -> Path:
    """`diffuse train name=... OVERRIDES`; the run folder."""
    train.run(config("train", *TINY, f"name={name}", *overrides), job())
    return Path("outputs") / name


def as_it_is(folder: Path) -> dict[Path, int]:
    """Every file and folder, and when it was changed last."""
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def forget_from(folder: Path, step: int) -> None:
    """Leave the run as a crash would that came before this step was saved."""
    for path in checkpoint.all_in(folder / "checkpoints"):
        if checkpoint.step_of(path) >= step:
            path.unlink()
    (folder / "checkpoints" / "last.pt").unlink()
