"""The searched time grid of a trained network: found once for a number of steps, kept in its run."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffuse.data.conditions import Condition
from diffuse.mathematics.grid_search import Trajectories, searched_times
from diffuse.mathematics.spacings import SPACINGS, time_grid
from diffuse.mathematics.wrappers import Observed
from diffuse.runs.trained import TrainedNetwork
from diffuse.system.errors import Refused
from diffuse.system.files import atomic_path, json_round_trip, sha256, write_json
from diffuse.system.progress import Progress, log
from diffuse.system.randomness import ImageNoise
from diffuse.system.signals import raise_pending

IMAGES, FINE = 64, 60  # trajectories, and the steps of each


def searched(network: TrainedNetwork, condition: Condition, steps: int) -> list[float]:
    """The falling times of the best grid of so many steps, without 0, from the run's file or found now.

    The file is named by the checkpoint's hash, by which of its weights the network has, by the label and the steps.
    """
    label = "" if condition.label is None else f"_label-{condition.label}"
    path = network.home / "searched" / f"{network.sha256[:16]}_{network.weights}{label}_{steps}-steps.json"
    protocol = {"trajectories": IMAGES, "fine_steps": FINE, "steps": steps, **condition.record}
    protocol |= {key: value for key, value in network.provenance.items() if key != "checkpoint"}
    times = _read(path, protocol)
    if times is None:
        log.info(f"searching a grid of {steps} steps, by {IMAGES} trajectories of {FINE}, into {path}")
        times = _search(network, condition, steps)
        write_json(path, {**protocol, "times": times})
        _draw(path.with_suffix(".png"), network, times)
    network.sources[str(path)] = sha256(path)
    return times


def _read(path: Path, protocol: dict[str, object]) -> list[float] | None:
    """The times in a file, if it was made by the same protocol."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        times = [float(time) for time in content.pop("times")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return times if content == json_round_trip(protocol) else None


@torch.no_grad()
def _search(network: TrainedNetwork, condition: Condition, steps: int) -> list[float]:
    schedule, images = network.schedule, range(IMAGES)
    fine = time_grid(schedule, min(FINE, schedule.T), SPACINGS["karras"])
    if steps > len(fine) - 1:
        raise Refused("steps", f"must be at most {len(fine) - 1} for spacing=searched, not {steps}")
    shape = IMAGES, *network.kind.shape
    noise = ImageNoise(0, "searched", images)(torch.empty(shape, device=network.device.torch))
    denoiser = network.denoiser(clip=network.kind.bounded, float32=True)
    with Progress("search", len(fine) - 1, "step") as progress:

        def seen(guess: object) -> None:
            raise_pending()
            progress.advance()

        y = condition.of_samples(images, network.device.torch)
        found = Trajectories(Observed(denoiser, seen), noise * schedule.prior_std, fine, y)
    if len(found.times) == len(fine) - 1:
        return searched_times(found, steps)
    return [float(schedule.T), *searched_times(found, steps - 1)] if steps > 1 else [float(schedule.T)]


def _draw(path: Path, network: TrainedNetwork, times: Sequence[float]) -> None:
    """The grid beside the spacings of as many steps, each a row of points over log-SNR."""
    from matplotlib.figure import Figure  # a second to import

    schedule, rows = network.schedule, {"searched": torch.tensor(times, dtype=torch.float64)}
    for name in ("uniform", "quadratic", "log_snr", "karras"):
        try:
            rows[name] = time_grid(schedule, len(times), SPACINGS[name])[:-1]
        except Refused:
            continue
    figure = Figure(figsize=(8, 0.6 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, grid in enumerate(rows.values()):
        axes.plot(_finite(schedule.log_snr(grid)), [place] * len(grid), "o-", ms=4, lw=0.8)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set(xlabel="log-SNR", title=f"{len(times)} steps")
    axes.grid(alpha=0.3, axis="x")
    with atomic_path(path) as beside:
        figure.savefig(beside, format="png", dpi=110)


def _finite(log_snr: Tensor) -> list[float]:
    return log_snr.clamp(min=-20).tolist()
