"""Drawing images, for samples, scores and grids: a denoiser, a sampler and what the images are conditioned on."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffuse.data.conditions import Condition
from diffuse.data.images import ImageKind
from diffuse.mathematics.denoiser import AnyDenoiser, Prediction
from diffuse.mathematics.editing import encode
from diffuse.mathematics.wrappers import Observed, Seen
from diffuse.options.schema import NetworkConfig
from diffuse.runs.analytic import analytic
from diffuse.runs.editing import PLAIN, Editing, Encoding
from diffuse.runs.guidance import guidance_of
from diffuse.runs.pictures import grid_by_title
from diffuse.runs.recommended import resolved
from diffuse.runs.sampler import Sampler
from diffuse.runs.searched import searched
from diffuse.runs.trained import TrainedNetwork
from diffuse.system.device import Device
from diffuse.system.errors import UserError
from diffuse.system.progress import Progress
from diffuse.system.randomness import ImageNoise
from diffuse.system.signals import raise_pending


@dataclass(frozen=True)
class Drawing:
    """Everything that draws images. Image i depends on the network and (seed, i) only, not on its batch.

    guidance  its record; empty without guidance, which is in the denoiser
    editing   what images begin with, and which of their pixels are known
    """

    denoiser: AnyDenoiser
    sampler: Sampler
    kind: ImageKind
    device: Device
    condition: Condition
    seed: int
    guidance: dict[str, Any] = field(default_factory=dict)
    editing: Editing = PLAIN
    evaluated: Counter[str] = field(default_factory=Counter, compare=False)

    @property
    def record(self) -> dict[str, Any]:
        """What the images depend on beside the network, and what each takes, where that is known before."""
        cost = {"evaluations": self.sampler.evaluations, "network_calls": self.sampler.calls}
        known = {key: value for key, value in cost.items() if value is not None}
        return {
            "sampler": self.sampler.record,
            "order": self.sampler.order,
            **known,
            "seed": self.seed,
            **self.condition.record,
            **({"guidance": self.guidance} if self.guidance else {}),
            **({"edit": {**self.editing.record, "start": self.sampler.start}} if self.editing.record else {}),
        }

    def draw(
        self,
        images: Sequence[int],
        each_evaluation: Seen = lambda guess: None,
        x: Tensor | None = None,
        start: float | None = None,
    ) -> Tensor:
        """The images with these numbers, [n, C, H, W] float on the device.

        each_evaluation  is called with every prediction that the sampler is given
        x                noisy images to start with, as the network sees them; by default what the editing begins with,
                         or else the noise of each image
        start            the time of x; by default that at which the sampler begins
        """
        start = self.sampler.start if start is None else start
        noise = ImageNoise(self.seed, "sample", images)
        if x is None:
            own = noise(torch.empty(len(images), *self.kind.shape, device=self.device.torch))
            x = self.editing.beginning(images, own, self.denoiser.schedule, start)
        y = self.condition.of_samples(images, self.device.torch)
        denoiser = Observed(self.editing.around(self.denoiser, images, self.device.torch), each_evaluation)
        *_, drawn = self.sampler.walk(denoiser, x, self.sampler.times_from(start), y, noise=noise)
        return self.kind.from_network(drawn)

    def picture(self, images: Tensor) -> Tensor:
        """A picture of the first images [n, C, H, W] of a drawing: a row for each class, if they have classes."""
        return grid_by_title(images, self.condition.titles(range(len(images))))

    def batches(
        self, n: int, batch_size: int, first: int = 0, seen: Seen = lambda guess: None
    ) -> Iterator[tuple[range, Tensor]]:
        """The numbers and the images of each batch, from image `first` to n - 1; shows progress.

        seen is called with every prediction.
        """
        cost = self.sampler.evaluations or 1  # 1 where only images can be counted
        unit = "evaluation" if self.sampler.evaluations else "image"

        def after_evaluation(guess: Prediction) -> None:
            raise_pending()
            seen(guess)
            self.evaluated["evaluations"] += len(guess.x0)
            if self.sampler.evaluations:
                progress.advance(len(guess.x0))

        with Progress("draw", n * cost, unit, first * cost) as progress:
            for start in range(first, n, batch_size):
                images = range(n)[start : start + batch_size]
                drawn = self.draw(images, after_evaluation).cpu()
                self.evaluated["images"] += len(images)
                if not self.sampler.evaluations:
                    progress.advance(len(images))
                refuse_not_finite(drawn, images, bool(self.guidance))
                yield images, drawn

    @property
    def evaluations(self) -> float | None:
        """Evaluations an image: known before, or the mean over those drawn by `batches`; None if there are none yet."""
        if self.sampler.evaluations or not self.evaluated["images"]:
            return self.sampler.evaluations
        return round(self.evaluated["evaluations"] / self.evaluated["images"], 1)


def noises(drawing: Drawing, encoding: Encoding, n: int, batch_size: int, first: int) -> Iterator[Tensor]:
    """The noise of each batch of given images, from image `first` to n - 1, [b, C, side, side]; shows progress.

    An image's depends on the image, its label and the sampler only.
    """
    device = drawing.device.torch
    denoiser = Observed(drawing.denoiser, lambda guess: raise_pending())
    with Progress("encode", n, "image", first) as progress:
        for start in range(first, n, batch_size):
            images = range(n)[start : start + batch_size]
            x0, y = encoding.x0(images, device), drawing.condition.of_samples(images, device)
            yield encode(denoiser, drawing.sampler.walk, x0, drawing.sampler.times, y).cpu()
            progress.advance(len(images))


def refuse_not_finite(drawn: Tensor, images: Sequence[int], guided: bool = False) -> None:
    """Raise UserError where an image has pixels that are NaN or infinite: as 8-bit pixels they would be any number."""
    wrong = [str(number) for number, image in zip(images, drawn, strict=True) if not torch.isfinite(image).all()]
    if wrong:
        less = "Try a smaller guidance.scale, " if guided else "Try "
        raise UserError(
            f"{len(wrong)} of {len(images)} images are NaN or infinite (the first is number {wrong[0]}): the sampler "
            f"is not stable with these keys.\n{less}device.precision=float32, more sampler.steps, or another sampler"
        )


def drawing_of(network: TrainedNetwork, config: NetworkConfig, editing: Editing = PLAIN) -> Drawing:
    """The drawing of a command: a trained network with sampler, guidance, label and seed of the command's config."""
    guidance = guidance_of(config.guidance, network, config.label)
    condition = editing.condition(guidance.condition)
    estimate = partial(analytic, network)
    search = partial(searched, network, guidance)
    node = resolved(config.sampler, network.config.prediction, network.config.sampler)
    part, masked = editing.part, editing.known is not None
    sampler = Sampler(
        node, network.formulas, network.kind, config.trust, estimate, search, guidance.calls, part, masked
    )
    editing.refuse(sampler)
    denoiser = sampler.wrap(guidance.around(network.denoiser()))
    return Drawing(denoiser, sampler, network.kind, network.device, condition, config.seed, guidance.record, editing)
