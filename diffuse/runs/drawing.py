"""Drawing images, for samples, scores and grids: a denoiser, a sampler and what the images are conditioned on."""

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
from diffuse.system.errors import Refused, UsageError, UserError
from diffuse.system.progress import Progress
from diffuse.system.randomness import ImageNoise
from diffuse.system.signals import raise_pending


@dataclass(frozen=True)
class Drawing:
    """Everything that draws images. Image i depends on the network and (seed, i) only, not on its batch."""

    denoiser: Denoiser
    sampler: Sampler
    kind: ImageKind
    device: Device
    condition: Condition
    seed: int

    @property
    def record(self) -> dict[str, Any]:
        """What the images depend on beside the network, and the network calls that each takes."""
        evaluations = {"network_evaluations": self.sampler.evaluations}
        return {"sampler": self.sampler.record, **evaluations, "seed": self.seed, **self.condition.record}

    def draw(
        self,
        images: Sequence[int],
        each_step: Callable[[Tensor], object] = lambda x: None,
        x: Tensor | None = None,
        start: float | None = None,
    ) -> Tensor:
        """The images with these numbers, [n, C, H, W] float on the device.

        each_step  is called with x after every step of the sampler
        x          noisy images to start with, as the network sees them; by default the noise of each image
        start      the time of x; by default T
        """
        noise = ImageNoise(self.seed, "sample", images)
        if x is None:
            shape = len(images), *self.kind.shape
            x = noise(torch.empty(shape, device=self.device.torch)) * self.denoiser.schedule.prior_std
        y = self.condition.of_samples(images, self.device.torch)
        for drawn in self.sampler.walk(self.denoiser, x, self.sampler.times_from(start), y, noise=noise):
            each_step(drawn)
        return self.kind.from_network(drawn)

    def batches(self, n: int, batch_size: int, first: int = 0) -> Iterator[tuple[range, Tensor]]:
        """The numbers and the images of each batch, from image `first` to n - 1; shows progress."""

        def after_step(x: Tensor) -> None:
            raise_pending()
            progress.advance(len(x))

        cost = self.sampler.evaluations
        with Progress("draw", n * cost, "evaluation", first * cost) as progress:
            for start in range(first, n, batch_size):
                images = range(n)[start : start + batch_size]
                drawn = self.draw(images, after_step).cpu()
                refuse_not_finite(drawn, images)
                yield images, drawn


def refuse_not_finite(drawn: Tensor, images: Sequence[int]) -> None:
    """Raise UserError where an image has pixels that are NaN or infinite: as 8-bit pixels they would be any number."""
    wrong = [str(number) for number, image in zip(images, drawn, strict=True) if not torch.isfinite(image).all()]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(images)} images are NaN or infinite (the first is number {wrong[0]}): the sampler "
            "is not stable with these keys.\nTry device.precision=float32, more sampler.steps, or another sampler"
        )


def drawing_of(network: TrainedNetwork, config: NetworkConfig) -> Drawing:
    """The drawing of a command: a trained network with the sampler, the label and the seed of the command's config."""
    try:
        condition = replace(network.condition, label=config.label)
    except Refused as error:
        raise UsageError(str(error)) from error
    estimate = partial(analytic, network)
    sampler = Sampler(config.sampler, network.formulas, network.kind, config.trust, estimate)
    denoiser = network.denoiser(sampler.clip)
    return Drawing(denoiser, sampler, network.kind, network.device, condition, config.seed)
