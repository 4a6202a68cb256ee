"""What is shown of a step: a grid of samples, or of a classifier its accuracy at several noise levels."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from diffuse.data.conditions import Condition
from diffuse.data.images import Dataset
from diffuse.mathematics.classifier import NoisyClassifier
from diffuse.runs.drawing import Drawing
from diffuse.runs.pictures import accuracy_curve
from diffuse.runs.recommended import faster_sampler
from diffuse.system.distributed import Task
from diffuse.system.randomness import ImageNoise, generator

NOISE_LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # sigma / alpha
MOST_IMAGES, TOGETHER = 1000, 100  # test images that accuracy is measured on, and how many of them at a time


class Sight(NamedTuple):
    """What is shown of one step: a picture, uint8 [3, H, W], and values by name, if there are any."""

    picture: Tensor
    values: dict[str, float]


class Shown(Protocol):
    """Shows the averaged weights at a step; each_call is called after every call of the network.

    name  of its pictures
    """

    name: ClassVar[str]

    @property
    def tasks(self) -> Mapping[str, Task]:
        """What other processes compute for it."""
        ...

    def show(self, each_call: Callable[[object], object]) -> Sight: ...

    def advice(self, typed_keys: Sequence[str]) -> str:
        """A message about what it costs, given the keys that were typed; or ""."""
        ...


@dataclass(frozen=True)
class SampleGrids:
    """A grid of samples, the same noise each time. count: images in it."""

    name: ClassVar[str] = "samples"
    drawing: Drawing
    count: int

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self.drawing.tasks

    def show(self, each_call: Callable[[object], object]) -> Sight:
        drawn = self.drawing.draw_by_all(range(self.count), each_call)
        return Sight(self.drawing.picture(self.drawing.kind.to_values(drawn)), {})

    def advice(self, typed_keys: Sequence[str]) -> str:
        return faster_sampler(self.drawing.sampler, typed_keys, "of the sample grids")


@dataclass(frozen=True)
class AccuracyCurve:
    """The share of test images whose class is the most probable one, against the noise level sigma / alpha.

    At most 1,000 images of the test split, always the same, each with the same noise at every level and at every step:
    values of one run, and of runs on the same images, differ by the classifier alone.
    """

    name: ClassVar[str] = "accuracy"
    classifier: NoisyClassifier
    data: Dataset
    condition: Condition
    device: torch.device
    tasks: Mapping[str, Task] = field(default_factory=dict)

    @cached_property
    def images(self) -> tuple[Tensor, Tensor, Tensor]:
        """The images, the noise of each, and their classes."""
        split = self.data.test
        rows = generator(0, self.name).permutation(len(split.images))[:MOST_IMAGES]
        x0 = self.data.kind.to_network(torch.from_numpy(split.images[rows])).to(self.device)
        y = self.condition.of_split(split, rows, self.device)
        assert y is not None
        return x0, ImageNoise(0, self.name, rows.tolist())(x0), y

    @cached_property
    def times(self) -> dict[float, Tensor]:
        """The time of each noise level that the schedule has."""
        schedule = self.classifier.schedule
        found = {rho: schedule.time(torch.tensor(-2 * math.log(rho), dtype=torch.float64)) for rho in NOISE_LEVELS}
        return {rho: t for rho, t in found.items() if schedule.t_min <= t < schedule.T}

    def show(self, each_call: Callable[[object], object]) -> Sight:
        found = {level: self.accuracy(t, each_call) for level, t in self.times.items()}
        picture = accuracy_curve(list(found), list(found.values()), 1 / len(self.condition.classes))
        return Sight(picture, {f"{self.name}_{level:g}": value for level, value in found.items()})

    @torch.no_grad()
    def accuracy(self, t: Tensor, each_call: Callable[[object], object]) -> float:
        """The share of the images that are classified rightly at time t."""
        right = 0
        for x0, noise, y in zip(*(part.split(TOGETHER) for part in self.images), strict=True):
            found = self.classifier(self.classifier.schedule.diffuse(x0, t, noise), t).argmax(1)
            right += int((found == y).sum())
            each_call(found)
        return right / len(self.images[0])

    def advice(self, typed_keys: Sequence[str]) -> str:
        return ""
