"""Power averages of a run's weights on disk, and an average of any length from them (`ema.length`).

averages/step_00000200.safetensors      every average at that step, in half precision
checkpoints/step_00001000.pt            the averages at its step, in single precision: they are continued from there
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffuse.foreign.files import read_safetensors
from diffuse.mathematics.power_average import Profile, combination, gamma_of
from diffuse.runs.checkpoint_files import CHECKPOINTS
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import atomic_path

AVERAGES = "averages"  # the folder in a run
FURTHER = 1.5  # a length may be so many times the longest that is stored
State = dict[str, Tensor]


class Average(NamedTuple):
    """An average at a step: its length, and its weights by name."""

    length: float
    weights: Mapping[str, Tensor]


def is_due(step: int, steps: int, count: int) -> bool:
    """Whether a step is one of the `count` evenly spaced ones, the last of which is the last step."""
    return step * count // steps > (step - 1) * count // steps


def place_of(run: Path, step: int) -> Path:
    """The file of the averages at a step."""
    return run / AVERAGES / f"step_{step:08d}.safetensors"


def write(run: Path, step: int, averages: Sequence[Average]) -> None:
    """Keep the averages at a step, atomically."""
    tensors = {
        f"{average.length}/{name}": value.detach().to("cpu", torch.float16).contiguous()
        for average in averages
        for name, value in average.weights.items()
    }
    path = place_of(run, step)
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as beside:
        save_file(tensors, beside)


def forget_after(run: Path, step: int) -> None:
    """Remove what was kept after a step, from which the run is continued."""
    for path in kept_in(run):
        if step_of(path) > step:
            path.unlink()


def kept_in(run: Path) -> list[Path]:
    """The files of averages of a run, oldest first."""
    return sorted((run / AVERAGES).glob("step_*.safetensors"))


def step_of(path: Path) -> int:
    """The step in the name of a file of averages."""
    return int(path.stem.removeprefix("step_"))


def of_length(length: float, path: Path, content: Mapping[str, Any]) -> State:
    """The weights of a checkpoint (its path, its content) averaged with this length.

    A length that is stored is taken as it is; any other is put together of all averages up to the checkpoint's step,
    which lie in its run. Raises UserError where there are none, and UsageError for a length that they do not reach.
    """
    now: dict[float, State] = {float(name): dict(state) for name, state in content.get("averages", {}).items()}
    if not now:
        raise UsageError(
            f"ema.length={length:g} is put together of power averages, and {path} has none: a training keeps them with "
            "ema.lengths=[0.05,0.1]. Leave ema.length out, or set 0 for the weights as trained"
        )
    if length in now:
        return now[length]
    shortest, longest = min(now), FURTHER * max(now)
    if not shortest <= length <= longest:
        raise UsageError(
            f"ema.length must be between {shortest:g} and {longest:g} for a run with ema.lengths="
            f"[{','.join(f'{each:g}' for each in now)}], not {length:g}; 0 is for the weights as trained"
        )
    step = int(content["step"])
    before = [file for file in kept_in(path.parent.parent) if step_of(file) < step] if is_in_run(path) else []
    if not before:
        raise UsageError(
            f"ema.length={length:g} needs the averages of the run, in {AVERAGES} beside {CHECKPOINTS}; {path} has "
            f"those of {' and '.join(f'{each:g}' for each in now)} alone"
        )
    places = [*((step_of(file), each) for file in before for each in now), *((step, each) for each in now)]
    factors = combination([Profile(at, gamma_of(each)) for at, each in places], Profile(step, gamma_of(length)))
    found = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in now[max(now)].items()}
    kept: dict[int, State] = {}
    for (at, each), factor in zip(places, factors.tolist(), strict=True):
        if at not in kept:
            kept = {at: read_safetensors(place_of(path.parent.parent, at)) if at < step else {}}
        for name, total in found.items():
            total += factor * (now[each][name] if at == step else of_name(kept[at], f"{each}/{name}", total, path))
    return {name: value.to(now[max(now)][name].dtype) for name, value in found.items()}


def is_in_run(path: Path) -> bool:
    """Whether a checkpoint lies in the folder of its run."""
    return path.parent.name == CHECKPOINTS


def of_name(kept: State, name: str, like: Tensor, path: Path) -> Tensor:
    """A tensor of a file of averages. Raises UserError where it has none such."""
    if (found := kept.get(name)) is None or found.shape != like.shape:
        raise UserError(
            f"the files in {path.parent.parent / AVERAGES} are not of this run: {name} is not as it should be"
        )
    return found.double()
