"""From a sampler's config and a network to images: what `diffuse sample` and the grids of `diffuse train` share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffuse.build import build, checked_options, locate
from diffuse.checkpoint import Trained, load_trained
from diffuse.denoiser import Denoiser
from diffuse.device import Device
from diffuse.errors import UsageError, pick
from diffuse.images import ImageKind
from diffuse.randomness import ImageNoise
from diffuse.samplers import SPACINGS, VARIANCES, time_grid
from diffuse.schedules import Schedule


@dataclass(frozen=True)
class GridOptions:
    """The keys that every sampler has. steps: null means every level; clip: null means where pixels have a range."""

    steps: int | None
    spacing: str
    clip: bool | None


class Sampler:
    """A sampler with its time grid and options, as the config group `sampler` describes it."""

    def __init__(self, node: Mapping[str, Any], schedule: Schedule, kind: ImageKind, trust: Sequence[str]):
        function = locate(node, "sampler", trust)
        common = {key: node.get(key) for key in GridOptions.__dataclass_fields__}
        own = {key: value for key, value in node.items() if key not in common and key not in ("_target_", "variance")}
        grid = GridOptions(**checked_options(GridOptions, common, "sampler"))
        own = checked_options(function, own, "sampler")
        if not 0 <= own.get("eta", 0) <= 1:
            raise UsageError(f"sampler.eta must be between 0 and 1, not {own['eta']}")
        if "variance" in node:
            own["variance"] = pick(VARIANCES, "sampler.variance", node["variance"])
        try:
            self.times = time_grid(schedule, grid.steps, pick(SPACINGS, "sampler.spacing", grid.spacing))
        except ValueError as error:
            raise UsageError(f"sampler.{error}") from error
        self.name = function.__name__
        self.clip = kind.bounded if grid.clip is None else grid.clip
        self.walk: Callable[..., Iterator[Tensor]] = partial(function, **own)
        self.record = {**node, "steps": self.evaluations, "clip": self.clip}

    @property
    def evaluations(self) -> int:
        """How often the network is called for each image."""
        return len(self.times) - 1


class Prepared:
    """A trained network on its device, ready to be called: what sampling and scoring begin with.

    chunk is the number of images of one network call; batch_size, the images in flight, is a multiple of it.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.device: Device = build(config["device"], "device", config["trust"])
        self.trained: Trained = load_trained(config["ckpt"], config["trust"])
        self.kind = self.trained.kind
        self.conditional = bool(self.trained.config["class_conditional"])
        self.chunk = self.device.rows(self.kind.side, config["batch_size"])
        self.batch_size = -(-config["batch_size"] // self.chunk) * self.chunk

    def denoiser(self, clip: bool) -> Denoiser:
        """The trained denoiser, its guesses of x0 clipped or not."""
        net = self.device.network(self.device.place(self.trained.net), self.chunk)
        return Denoiser(net, self.trained.schedule, clip=clip)


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
