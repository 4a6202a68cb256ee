"""From a sampler's config and a network to images: what `diffuse sample` and the grids of `diffuse train` share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffuse.data.images import ImageKind
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.spacings import SPACINGS, time_grid
from diffuse.mathematics.variances import Variance
from diffuse.options.build import about, bind, checked_options
from diffuse.options.formulas import Formulas
from diffuse.runs.analytic import analytic
from diffuse.runs.trained import Prepared
from diffuse.system.device import Device
from diffuse.system.errors import UsageError, pick
from diffuse.system.progress import Progress
from diffuse.system.randomness import ImageNoise


@dataclass(frozen=True)
class GridOptions:
    """The keys that every sampler has. steps: null means every level; clip: null means where pixels have a range."""

    steps: int | None
    spacing: str
    clip: bool | None


class Sampler:
    """A sampler with its time grid and options, as the config group `sampler` describes it.

    analytic makes the analytic variance for a grid; without it, that variance is refused.
    """

    def __init__(
        self,
        node: Mapping[str, Any],
        formulas: Formulas,
        kind: ImageKind,
        trust: Sequence[str],
        analytic: Callable[[list[float]], Variance] | None = None,
    ):
        common = {key: node.get(key) for key in GridOptions.__dataclass_fields__}
        own = {key: value for key, value in node.items() if key not in common and key != "variance"}
        grid = GridOptions(**checked_options(GridOptions, common, "sampler"))
        self.walk: partial[Iterator[Tensor]] = bind(own, "sampler", trust)
        if not 0 <= own.get("eta", 0) <= 1:
            raise UsageError(f"sampler.eta must be between 0 and 1, not {own['eta']}")
        with about("sampler"):
            self.times = time_grid(formulas.schedule, grid.steps, pick(SPACINGS, "sampler.spacing", grid.spacing))
        self.name = self.walk.func.__name__
        self.clip = kind.bounded if grid.clip is None else grid.clip
        self.record = {**node, "steps": len(self.times) - 1, "clip": self.clip}
        if "variance" in node:
            estimated = analytic and partial(analytic, self.times.tolist())
            variance = formulas.reverse_variance(node["variance"], "sampler.variance", estimated)
            self.walk = partial(self.walk, variance=variance)
            self.record["variance"] = formulas.variance if node["variance"] is None else node["variance"]
        with about("sampler"):
            self.evaluations = evaluations(self.walk, formulas, self.times)


def evaluations(walk: Callable[..., Iterator[Tensor]], formulas: Formulas, times: Tensor) -> int:
    """How often a sampler calls the network for each image: counted on one that answers at once."""
    calls = 0

    def count(x: Tensor, time: Tensor, y: Tensor | None) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.cat([x, x], dim=1) if formulas.variance == "learned" else x

    for _ in walk(formulas.denoiser_of(count), torch.ones(1, 1, 1, 1), times):
        pass
    return calls


def draw(
    denoiser: Denoiser,
    sampler: Sampler,
    images: Sequence[int],
    seed: int,
    kind: ImageKind,
    device: Device,
    labels: Tensor | None = None,
    each_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """The images with these numbers, [n, C, H, W] float: image i depends on (seed, i) and the network alone."""
    noise = ImageNoise(seed, "sample", images)
    x_T = noise(torch.empty(len(images), *kind.shape, device=device.torch)) * denoiser.schedule.prior_std
    x = x_T
    for x in sampler.walk(denoiser, x_T, sampler.times, labels, noise=noise):  # noqa: B007
        each_step()
    return kind.from_network(x)


def image_labels(images: Sequence[int], kind: ImageKind, label: int | None, device: Device) -> Tensor:
    """The class of each image: `label`, or all classes in turn."""
    return torch.tensor([i % len(kind.classes) if label is None else label for i in images], device=device.torch)


class Drawing(Prepared):
    """A trained network and the sampler of a config, built and checked: all that drawing images from it needs."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        label, formulas = config["label"], self.trained.formulas
        if label is not None and not self.conditional:
            raise UsageError(f"label={label} needs a class-conditional network, and this one is not")
        if label is not None and not 0 <= label < len(self.kind.classes):
            raise UsageError(f"label must be between 0 and {len(self.kind.classes) - 1}, not {label}")
        self.sampler = Sampler(config["sampler"], formulas, self.kind, config["trust"], partial(analytic, self))

    def batches(self, n: int, first: int = 0) -> Iterator[tuple[range, Tensor, Tensor | None]]:
        """(numbers, images, labels) of one batch after the other, from image `first` to n - 1, with progress."""
        seed, label, cost = self.config["seed"], self.config["label"], self.sampler.evaluations
        denoiser = self.denoiser(self.sampler.clip)
        with Progress("draw", n * cost, "evaluation", first * cost) as progress:
            for start in range(first, n, self.batch_size):
                images = range(start, min(start + self.batch_size, n))
                labels = image_labels(images, self.kind, label, self.device) if self.conditional else None
                one_step = partial(progress.advance, len(images))
                x = draw(denoiser, self.sampler, images, seed, self.kind, self.device, labels, one_step)
                yield images, x.cpu(), None if labels is None else labels.cpu()
