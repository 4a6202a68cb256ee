"""The searched time grid of a trained network: found once for a number of steps, kept in its run."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffuse.data.conditions import Condition
from diffuse.mathematics.denoiser import AnyDenoiser
from diffuse.mathematics.grid_search import Trajectories, candidates, distance
from diffuse.mathematics.samplers.ddim import ddim
from diffuse.mathematics.samplers.sampler import order_of
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.spacings import SPACINGS, time_grid
from diffuse.mathematics.wrappers import Observed, Seen
from diffuse.runs.guidance import Guidance
from diffuse.runs.trained import TrainedNetwork
from diffuse.system.errors import Refused
from diffuse.system.files import atomic_path, json_round_trip, sha256, short_path, write_json
from diffuse.system.progress import Progress, log
from diffuse.system.randomness import ImageNoise
from diffuse.system.signals import raise_pending

IMAGES, FINE = 64, 60  # trajectories, and the steps of each
HELD = 2**28  # bytes of trajectories at a time
SPACED = ("uniform", "quadratic", "log_snr", "karras")  # they compete, and are drawn beside the searched one
Walk = partial[Iterator[Tensor]]


def searched(
    network: TrainedNetwork,
    guidance: Guidance,
    walk: Walk,
    wrap: Callable[[AnyDenoiser], AnyDenoiser],
    changes: Mapping[str, Any],
    steps: int,
) -> list[float]:
    """The falling times of the best grid of so many steps, without 0, from the run's file or found now.

    The file is named by the checkpoint's hash, by which of its weights the network has, by the sampler, by a hash of
    its options, the labels and the guidance, and by the steps. A sampler that adds noise has the grid of `ddim`.

    wrap     what is done to predictions before the sampler sees them; changes: the same in words
    """
    walk = walk if order_of(walk) else partial(ddim)
    options = {"_target_": walk.func.__name__, **walk.keywords, **changes}
    protocol = {"trajectories": IMAGES, "fine_steps": FINE, "steps": steps, "sampler": options}
    protocol |= {key: value for key, value in network.provenance.items() if key != "checkpoint"}
    of_images = {**guidance.condition.record, "guidance": guidance.record}
    protocol |= of_images
    key = hashlib.sha256(json.dumps({**options, **of_images}, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{network.sha256[:16]}_{network.weights}_{walk.func.__name__}-{key}_{steps}-steps.json"
    path = network.home / "searched" / name
    times = _read(path, protocol)
    if times is None:
        log.info(f"searching a grid of {steps} steps, by {IMAGES} trajectories of {FINE}, into {short_path(path)}")
        times = _search(network, guidance.condition, walk, lambda denoiser: wrap(guidance.around(denoiser)), steps)
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
def _search(
    network: TrainedNetwork,
    condition: Condition,
    walk: Walk,
    wrap: Callable[[AnyDenoiser], AnyDenoiser],
    steps: int,
) -> list[float]:
    schedule, images = network.schedule, range(IMAGES)
    fine = time_grid(schedule, min(FINE, schedule.T), SPACINGS["karras"])
    if steps > len(fine) - 1:
        raise Refused("steps", f"must be at most {len(fine) - 1} for spacing=searched, not {steps}")
    empty = torch.empty(IMAGES, *network.kind.shape, device=network.device.torch)
    x = ImageNoise(0, "searched", images)(empty) * schedule.prior_std
    y = condition.of_samples(images, network.device.torch)
    at_once = images_at_once(x)
    denoiser = wrap(network.formulas.denoiser(network.net, network.device, min(at_once, network.rows), float32=True))
    batches = torch.arange(IMAGES).split(at_once)
    costs, ends = torch.zeros((), dtype=torch.float64), list[Tensor]()
    with Progress("trajectories", (len(fine) - 1) * len(batches), "step") as progress:
        for batch in batches:
            found = Trajectories(
                Observed(denoiser, each_call(progress)), x[batch], fine, None if y is None else y[batch]
            )
            costs = costs + len(batch) / IMAGES * found.costs()
            ends.append(found.y[-1])
    before = [] if len(found.times) == len(fine) - 1 else [float(schedule.T)]  # where rho is infinite
    inner = steps - len(before)
    grids = [[*before, *times] for times in (candidates(found.times, costs, inner) if inner else [[]])]
    grids += [times_of(schedule, steps, name) for name in SPACED]
    grids = [[*grid, 0.0] for grid in grids if grid]
    with Progress("grids", len(grids), "grid") as progress:

        def ends_from(grid: Sequence[float]) -> float:
            """How far from the trajectories' ends the sampler ends on a grid."""
            observed = Observed(denoiser, lambda guess: raise_pending())
            found = distance(walk, observed, x, torch.tensor(grid, dtype=torch.float64), y, torch.cat(ends))
            progress.advance()
            return found

        return min(grids, key=ends_from)[:-1]


def images_at_once(x: Tensor) -> int:
    """How many of the images have trajectories that memory holds: a power of two, so that no batch is filled up."""
    bytes_each = 4 * FINE * x[0].numel() * x.element_size()  # x_t, x0, y and eps of each step
    return 1 << max(0, min(IMAGES, HELD // bytes_each).bit_length() - 1)


def each_call(progress: Progress) -> Seen:
    """What is done after each call of the network: a signal is obeyed, and the progress shown."""

    def seen(guess: object) -> None:
        raise_pending()
        progress.advance()

    return seen


def times_of(schedule: Schedule, steps: int, spacing: str) -> list[float]:
    """The times of a spacing, without 0; none where it has no grid of so many steps."""
    try:
        times: list[float] = time_grid(schedule, steps, SPACINGS[spacing])[:-1].tolist()
    except Refused:
        return []
    return times


def _draw(path: Path, network: TrainedNetwork, times: Sequence[float]) -> None:
    """The grid beside the spacings of as many steps, each a row of points over log-SNR."""
    from matplotlib.figure import Figure  # a second to import

    schedule, spaced = network.schedule, {name: times_of(network.schedule, len(times), name) for name in SPACED}
    rows = {"searched": list(times), **{name: grid for name, grid in spaced.items() if grid}}
    figure = Figure(figsize=(8, 0.6 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, grid in enumerate(rows.values()):
        log_snr = schedule.log_snr(torch.tensor(grid, dtype=torch.float64)).clamp(min=-20)
        axes.plot(log_snr.tolist(), [place] * len(grid), "o-", ms=4, lw=0.8)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set(xlabel="log-SNR", title=f"{len(times)} steps")
    axes.grid(alpha=0.3, axis="x")
    with atomic_path(path) as beside:
        figure.savefig(beside, format="png", dpi=110)
