"""Drawing images: a denoiser, a sampler and what the images are conditioned on. Samples, scores and grids share it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffuse.data.conditions import Condition
from diffuse.data.images import ImageKind
from diffuse.mathematics.denoiser import Denoiser
from diffuse.options.schema import NetworkConfig
from diffuse.runs.analytic import analytic
from diffuse.runs.sampler import Sampler
from diffuse.runs.trained import TrainedNetwork
from diffuse.system.device import Device
from diffuse.system.errors import Refused, UsageError
from diffuse.system.progress import Progress
from diffuse.system.randomness import ImageNoise
from diffuse.system.signals import raise_pending


@dataclass(frozen=True)
class Drawing:
    """All that drawing images needs. Image i depends on the network and on (seed, i) alone, whatever its batch is."""

    denoiser: Denoiser
    sampler: Sampler
    kind: ImageKind
    device: Device
    condition: Condition
    seed: int

    @property
    def record(self) -> dict[str, Any]:
        """What the images depend on beside the network, and what each costs."""
        evaluations = {"network_evaluations": self.sampler.evaluations}
        return {"sampler": self.sampler.record, **evaluations, "seed": self.seed, **self.condition.record}

    def draw(
        self,
        images: Sequence[int],
        x: Tensor | None = None,
        start: float | None = None,
        each_step: Callable[[Tensor], object] = lambda x: None,
    ) -> Tensor:
        """The images with these numbers, [n, C, H, W] float on the device.

        x      noisy images to begin with, as the network sees them; without them, noise that each image has for itself
        start  the time that x is noisy up to; by default T
        each_step is called with the x that every step of the sampler gives.
        """
        noise = ImageNoise(self.seed, "sample", images)
        if x is None:
            prior = torch.empty(len(images), *self.kind.shape, device=self.device.torch)
            x = noise(prior) * self.denoiser.schedule.prior_std
        y = self.condition.of_drawn(images, self.device.torch)
        drawn = x
        for drawn in self.sampler.walk(self.denoiser, x, self.sampler.times_from(start), y, noise=noise):
            each_step(drawn)
        return self.kind.from_network(drawn)

    def batches(self, n: int, batch_size: int, first: int = 0) -> Iterator[tuple[range, Tensor, Tensor | None]]:
        """(numbers, images, what they are conditioned on) of one batch after the other, from image `first` to n - 1.

        Shows its progress.
        """
        cost = self.sampler.evaluations
        with Progress("draw", n * cost, "evaluation", first * cost) as progress:
            for start in range(first, n, batch_size):
                images = range(start, min(start + batch_size, n))
                x = self.draw(images, each_step=partial(after_step, progress))
                yield images, x.cpu(), self.condition.of_drawn(images)


def after_step(progress: Progress, x: Tensor) -> None:
    """Obey a signal that got lost, and show how far it is."""
    raise_pending()
    progress.advance(len(x))


def drawing_of(network: TrainedNetwork, config: NetworkConfig) -> Drawing:
    """What a command draws with: the sampler, the label and the seed of its config."""
    try:
        condition = replace(network.condition, label=config.label)
    except Refused as error:
        raise UsageError(str(error)) from error
    estimated = partial(analytic, network)
    sampler = Sampler(config.sampler, network.formulas, network.kind, config.trust, estimated)
    denoiser = network.denoiser(sampler.clip)
    return Drawing(denoiser, sampler, network.kind, network.device, condition, config.seed)
