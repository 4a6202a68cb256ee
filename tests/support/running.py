"""Runs of seconds in the current folder, and what a crash would leave of them."""

import json
from pathlib import Path

import numpy as np

from diffuse.commands import eval as evaluation
from diffuse.commands import sample, train
from diffuse.options.schema import TrainConfig
from diffuse.runs.checkpoint_files import all_in, step_of
from diffuse.training.trainer import Trainer
from tests.support.commands import FAST, TINY, config, output


def trained(name: str, *overrides: str) -> Path:
    """`diffuse train name=... OVERRIDES`; the run folder."""
    train.run(config("train", *TINY, f"name={name}", *overrides), output())
    return Path("outputs") / name


def trainer_of(typed: TrainConfig) -> Trainer:
    """The trainer of a config, without a run folder."""
    return train.build_training(typed).trainer


def as_it_is(folder: Path) -> dict[Path, int]:
    """Every file and folder, and when it was changed last."""
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def forget_from(folder: Path, step: int) -> None:
    """Leave the run as a crash would that came before this step was saved."""
    for path in all_in(folder / "checkpoints"):
        if step_of(path) >= step:
            path.unlink()
    (folder / "checkpoints" / "last.pt").unlink()


def sampled(run: Path, *overrides: str) -> np.ndarray:
    options = ["name=s", "n=3", "sampler.steps=4", *FAST, *overrides]
    sample.run(config("sample", f"ckpt={run}", *options), output())
    name = next(word.partition("=")[2] for word in reversed(options) if word.startswith("name="))
    return np.load(run / "samples" / name / "samples.npz")["arr_0"]


def scored(run: Path, *overrides: str) -> dict:
    name = f"e{len(list(run.glob('eval/*')))}"
    evaluation.run(config("eval", f"ckpt={run}", f"name={name}", "n=4", "levels=5", *FAST, *overrides), output())
    return json.loads((run / "eval" / name / "eval.json").read_text())
