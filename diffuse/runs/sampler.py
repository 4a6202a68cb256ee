"""A sampler as the config group `sampler` describes it: a function with its options, a grid of times, and wrappers."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffuse.data.images import ImageKind
from diffuse.mathematics.denoiser import AnyDenoiser, Prediction
from diffuse.mathematics.editing import KnownPixels
from diffuse.mathematics.samplers.langevin import REVERSE_DIFFUSION
from diffuse.mathematics.samplers.repaint import repaint
from diffuse.mathematics.samplers.sampler import order_of
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.spacings import SPACINGS, own_grid, time_grid
from diffuse.mathematics.variances import Variance
from diffuse.mathematics.wrappers import PERCENTILE, Clipped, DynamicallyClipped, EpsScaled, Observed
from diffuse.options.build import about, bind, checked_options
from diffuse.options.formulas import Formulas
from diffuse.options.keys import Node
from diffuse.options.reference import option_with
from diffuse.options.shared_keys import SamplerKeys
from diffuse.system.errors import Refused, UsageError, check, pick

Estimate = Callable[[list[float]], Variance]  # makes the analytic variance for a time grid
# (sampler, wrapper of its denoiser, the same as a record, number of steps) -> the times of the best grid, without 0.
Search = Callable[[partial[Iterator[Tensor]], Callable[[AnyDenoiser], AnyDenoiser], dict[str, Any], int], list[float]]
Calls = Callable[[Prediction], int]
SEARCHED = "searched"
DYNAMIC = "dynamic"


class Sampler:
    """A sampler with its options, its time grid, and what is done to the predictions before it sees them.

    name         that of its option, or of a function of the user's
    walk         the function of (denoiser, x, times, y)
    times        the time grid, from T to 0
    start        the time from which it is walked: the first one, unless only a part of the steps is
    wrap         puts eps_scale and clipping around a denoiser
    evaluations  calls of the outermost denoiser that an image takes; None where it depends on the image
    calls        the network calls for them
    order        of convergence; None if it adds noise
    record       the options, for the files beside the samples

    Without the arguments `analytic` and `search`, which need a trained network, the analytic variance and the searched
    grid are refused. calls says how many network calls a prediction takes, which guidance decides. part is the share of
    the steps that is walked, the last ones (SDEdit); masked says that some pixels are known.
    """

    def __init__(
        self,
        node: Node,
        formulas: Formulas,
        kind: ImageKind,
        trust: Sequence[str],
        analytic: Estimate | None = None,
        search: Search | None = None,
        calls: Calls = lambda guess: 1,
        part: float = 1.0,
        masked: bool = False,
    ):
        common = {key: node.get(key) for key in SamplerKeys.__dataclass_fields__}
        own = {key: value for key, value in node.items() if key not in common and key != "variance"}
        keys = SamplerKeys(**checked_options(SamplerKeys, common, "sampler"))
        self.walk: partial[Iterator[Tensor]] = bind(own, "sampler", trust)
        self.name = option_with("sampler", node["_target_"])
        self.adaptive = evaluations_of(self.walk) is None
        if self.walk.func is repaint and not masked:
            raise UsageError("sampler=repaint paints what a mask leaves open: `diffuse sample` with edit.mask=FILE")
        with about("sampler"):
            self.clip = checked_clip(kind.bounded if keys.clip is None else keys.clip)
            self.eps_scale = checked_scale(keys.eps_scale)
            self.percentile = checked_percentile(keys.percentile, self.clip)
            changes = {
                "clip": self.clip,
                **({"percentile": self.percentile} if self.clip == DYNAMIC else {}),
                **({"eps_scale": self.eps_scale} if self.eps_scale else {}),
            }
            found = search and partial(search, self.walk, self.wrap, changes)
            chosen = ends_alone if self.adaptive else chosen_times
            self.times, grid = chosen(keys, formulas.schedule, formulas.spacing, found)
        self.start = start_of(self.times, part, self.adaptive)
        self.record = {
            **{key: value for key, value in node.items() if key not in common},
            **grid,
            **changes,
        }
        if node.get("predictor") == REVERSE_DIFFUSION:
            if node.get("variance") is not None:
                raise UsageError(
                    f"sampler.variance is of sampler.predictor=ancestral; {REVERSE_DIFFUSION} has the forward process's"
                )
        elif "variance" in node:
            estimated = analytic and partial(analytic, self.times.tolist())
            variance = formulas.reverse_variance(node["variance"], "sampler.variance", estimated)
            self.walk = partial(self.walk, variance=variance)
            self.record["variance"] = formulas.variance if node["variance"] is None else node["variance"]
        with about("sampler"):
            self.evaluations, self.calls = self.count(formulas, calls, masked)

    def wrap(self, denoiser: AnyDenoiser) -> AnyDenoiser:
        """The denoiser with scaled eps and clipped x0: clipping is the last that happens to a prediction."""
        if self.eps_scale:
            denoiser = EpsScaled(denoiser, *self.eps_scale)
        if self.clip == DYNAMIC:
            return DynamicallyClipped(denoiser, self.percentile)
        return Clipped(denoiser) if self.clip else denoiser

    def count(self, formulas: Formulas, calls: Calls, masked: bool) -> tuple[int | None, int | None]:
        """Evaluations and network calls for an image, counted on a network that returns its input."""
        if self.adaptive:
            return None, None
        counted: Counter[str] = Counter()

        def network(x: Tensor, time: Tensor, y: Tensor | None) -> Tensor:
            return torch.cat([x] * formulas.outputs, dim=1)

        def seen(guess: object) -> None:
            counted["evaluations"] += 1

        def seen_inside(guess: Prediction) -> None:
            counted["calls"] += calls(guess)

        x = torch.ones(1, 1, 1, 1)
        denoiser = self.wrap(Observed(formulas.denoiser_of(network), seen_inside))
        denoiser = KnownPixels(denoiser, x, x > 0) if masked else denoiser
        list(self.walk(Observed(denoiser, seen), x, self.times_from(self.start)))
        return counted["evaluations"], counted["calls"]

    @property
    def summary(self) -> str:
        """The steps and the option's name, for a log line."""
        every, steps = len(self.times) - 1, len(self.times_from(self.start)) - 1
        if self.adaptive:
            return f"adaptive steps of {self.name}"
        share = f"{steps:,} of {every:,} steps" if steps < every else f"{steps:,} steps" if steps > 1 else "1 step"
        return f"{share} of {self.name}"

    @property
    def order(self) -> int | None:
        """Of a sampler that declares none, None."""
        return order_of(self.walk)

    def refuse_noise(self, what: str) -> None:
        """Raise UsageError, with what needs a deterministic sampler, where this one adds noise."""
        if self.order is None:
            raise UsageError(
                f"{what} needs a sampler that adds no noise, and sampler={self.name} with these options does: choose "
                "sampler=auto, heun, ddim with eta=0, ..."
            )

    @property
    def cost(self) -> int:
        """Evaluations for an image, about: those of an adaptive method at its default tolerance are a guess."""
        return self.evaluations or 60

    def times_from(self, start: float) -> Tensor:
        """The time grid from `start` on: `start` itself, then the times below it."""
        return torch.cat([torch.tensor([start], dtype=torch.float64), self.times[self.times < start]])


def evaluations_of(walk: partial[Iterator[Tensor]]) -> int | None:
    """What a sampler declares for two steps, None if it is adaptive; 2 for one that declares nothing."""
    declared = getattr(walk.func, "evaluations", None)
    options = {key: value for key, value in walk.keywords.items() if key != "variance"}
    found: int | None = declared(2, **options) if declared else 2
    return found


def start_of(times: Tensor, part: float, adaptive: bool) -> float:
    """The time from which a share of a grid's steps is walked, at least one; an adaptive method has shares of its time.

    A share of the steps, since grids are dense where they matter: half of T is pure noise on one, and data on another.
    """
    if adaptive:
        return max(part * float(times[0]), float(times[-2]))
    steps = len(times) - 1
    return float(times[steps - max(1, round(part * steps))])


def ends_alone(
    keys: SamplerKeys, schedule: Schedule, spacing: str, search: object = None
) -> tuple[Tensor, dict[str, Any]]:
    """The grid of an adaptive method, which chooses its own steps: T, the smallest time of the training, and 0."""
    for name in ("steps", "times"):  # a spacing may be the method's
        if getattr(keys, name) is not None:
            raise Refused(name, "is not for an adaptive sampler, which chooses its steps by tolerance: leave it out")
    return torch.tensor([schedule.T, schedule.t_min, 0], dtype=torch.float64), {}


def chosen_times(
    keys: SamplerKeys, schedule: Schedule, spacing: str, search: Callable[[int], list[float]] | None
) -> tuple[Tensor, dict[str, Any]]:
    """The time grid, and what is recorded of it; spacing is the run's own."""
    if keys.times is not None:
        try:
            times = own_grid(schedule, numbers_of(keys.times))
        except Refused as error:  # not of the group `times`
            raise UsageError(f"sampler.{error}") from error
        return times, {"times": times.tolist(), "steps": len(times) - 1}
    name = keys.spacing or spacing
    if name == SEARCHED:
        if search is None:
            raise Refused("spacing", "must not be searched for the grids of a training: it is of a trained network")
        if keys.steps is None:
            raise Refused("steps", "must be a number for spacing=searched, not null")
        times = own_grid(schedule, search(keys.steps))
        return times, {"times": times.tolist(), "steps": len(times) - 1, "spacing": name}
    times = time_grid(schedule, keys.steps, pick({**SPACINGS, SEARCHED: time_grid}, "sampler.spacing", name))
    return times, {"steps": len(times) - 1, "spacing": name}


def numbers_of(times: Any) -> list[float]:
    """The times of a list, or of a file: numbers with blanks, commas or lines between them, or a JSON list."""
    found = times
    if isinstance(times, str):
        try:
            text = Path(times).expanduser().read_text(encoding="utf-8")
            found = json.loads(text) if text.lstrip().startswith("[") else text.replace(",", " ").split()
        except (OSError, ValueError) as error:
            raise Refused("times", f"must be a list or a file with one, and {times} cannot be read: {error}") from error
    try:
        return [float(time) for time in found]
    except (TypeError, ValueError) as error:
        raise Refused("times", f"must be a list of numbers or a file with one, not {str(times)[:60]}") from error


def checked_clip(clip: bool | str) -> bool | str:
    """true, false or dynamic."""
    check(isinstance(clip, bool) or clip == DYNAMIC, "clip", "true, false or dynamic", clip)
    return clip


def checked_percentile(percentile: float | None, clip: bool | str) -> float:
    """The percentile of dynamic clipping; refused where it would do nothing."""
    if percentile is not None and clip != DYNAMIC:
        raise Refused("percentile", f"is of sampler.clip=dynamic, and clip is {clip}")
    return PERCENTILE if percentile is None else percentile


def checked_scale(scale: Any) -> tuple[float, float] | None:
    """b at data and at noise; None for no scaling. Raises Refused for anything but a number or two."""
    pair = scale if isinstance(scale, list) else [scale, scale]
    if pair == [None, None]:
        return None
    numbers = [each for each in pair if isinstance(each, int | float) and not isinstance(each, bool)]
    check(len(pair) == 2 == len(numbers), "eps_scale", "a number or [a, b]", scale)
    for b in numbers:
        check(0.5 <= b <= 2, "eps_scale", "between 0.5 and 2, usually just above 1", b)
    return float(numbers[0]), float(numbers[1])
