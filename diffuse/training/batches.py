"""The data of each training step: a function of (seed, step), drawn for the whole batch."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffuse.data.augmentation import Augmentation, augmented
from diffuse.data.conditions import Condition
from diffuse.data.images import Dataset
from diffuse.mathematics.time_sampling import UniformTimes
from diffuse.mathematics.training_noise import TrainingNoise
from diffuse.system.device import Device, send
from diffuse.system.randomness import generator, reseed


class Batch(NamedTuple):
    """The data of a step: images [b, C, H, W], times and importance weights [b], noise, conditions or None, the
    keys of the images' dropout, int32 [b, 2], and what was done to the images, [b, 9] or None."""

    x0: Tensor
    t: Tensor
    importance: Tensor
    noise: Tensor
    y: Tensor | None
    dropout: Tensor
    augmentation: Tensor | None = None

    def first(self, count: int) -> "Batch":
        """The data of the first images."""
        return self._of(slice(count))

    def parts(self, count: int) -> list["Batch"]:
        """The batch in so many parts of one size, in their order."""
        size = len(self.x0) // count
        return [self] if count == 1 else [self._of(slice(at, at + size)) for at in range(0, len(self.x0), size)]

    def _of(self, rows: slice) -> "Batch":
        return Batch(*(None if value is None else value[rows] for value in self))  # type: ignore[arg-type]


class Batches:
    """The data of each step, in two halves: what the CPU decides, and what is computed of it on the device.

    `begin` writes the images of a step, as they are on disk, their labels and the keys of dropout into tensors that
    stay where they are; `drawn` reads those. So a CUDA graph of all that follows has the data of every step.
    """

    def __init__(
        self,
        data: Dataset,
        time_sampling: UniformTimes,
        noise: TrainingNoise,
        condition: Condition,
        batch_size: int,
        seed: int,
        device: Device,
        augment: float = 0.0,
    ):
        self.data, self.time_sampling, self.noise, self.condition = data, time_sampling, noise, condition
        self.batch_size, self.seed, self.device = batch_size, seed, device.torch
        self.augmentation = Augmentation(augment, data.flip)
        self._images = device.hold(torch.from_numpy(data.train.images))
        self._labels = condition.of_split(data.train, device=self._images.device)
        self._pixels = self._images.new_empty(batch_size, *self._images.shape[1:], device=self.device)
        self._y = None if self._labels is None else self._labels.new_empty(batch_size, device=self.device)
        self._dropout = torch.empty(batch_size, 2, dtype=torch.int32, device=self.device)

    def begin(self, step: int) -> None:
        """Put the images of a step where `drawn` finds them, and set torch's generators to the step's numbers."""
        reseed(self.seed, "train", step)
        rows = batch_rows(self.seed, step, self.batch_size, len(self._images))
        index = send(torch.from_numpy(rows), self._images.device)
        self._pixels.copy_(send(self._images[index], self.device))
        if self._y is not None and self._labels is not None:
            self._y.copy_(send(self._labels[index], self.device))
        keys = generator(self.seed, "dropout", step).integers(-(2**31), 2**31, self._dropout.shape, dtype=np.int32)
        self._dropout.copy_(send(torch.from_numpy(keys), self.device))

    def drawn(self) -> Batch:
        """The data of the step that was begun. Its random numbers continue torch's generators."""
        x0 = self.data.kind.to_network(self._pixels)
        labels = None
        if self.augmentation.probability:
            labels = self.augmentation.draw(len(x0), x0.device)
            x0 = augmented(x0, labels)
        elif self.data.flip:
            flipped = torch.rand(len(x0), 1, 1, 1, device=x0.device) < 0.5
            x0 = torch.where(flipped, x0.flip(-1), x0)
        t, importance = self.time_sampling.draw(len(x0), self.device)
        x0, noise = self.noise.draw(x0, t, self.time_sampling.schedule)
        y = self.condition.drop(self._y)  # labels are dropped last
        return Batch(x0, t, importance, noise, y, self._dropout, labels)


def batch_rows(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """The rows of a step's images among `count`: each once an epoch, in a random order for each epoch."""
    begin, end = step * batch_size, (step + 1) * batch_size
    epochs = range(begin // count, -(-end // count))
    parts = [epoch_order(seed, epoch, count)[max(0, begin - epoch * count) : end - epoch * count] for epoch in epochs]
    return np.concatenate(parts)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the images in one epoch. Two are cached, since a batch can lie in two epochs."""
    return generator(seed, "epoch", epoch).permutation(count)
