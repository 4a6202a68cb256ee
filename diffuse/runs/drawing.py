"""Drawing images, for samples, scores and grids: a denoiser, a sampler and what the images are conditioned on."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffuse.data.conditions import Condition
from diffuse.data.images import ImageKind
from diffuse.mathematics.denoiser import AnyDenoiser, Prediction
from diffuse.mathematics.editing import STEPS, encode
from diffuse.mathematics.wrappers import Observed, Seen
from diffuse.options.schema import NetworkConfig
from diffuse.runs.analytic import analytic
from diffuse.runs.editing import PLAIN, Editing, Encoded, Encoding
from diffuse.runs.guidance import guidance_of
from diffuse.runs.pictures import grid_by_title
from diffuse.runs.recommended import resolved
from diffuse.runs.sampler import Sampler
from diffuse.runs.searched import searched
from diffuse.runs.trained import TrainedNetwork
from diffuse.system.device import Device
from diffuse.system.distributed import Task
from diffuse.system.errors import UserError
from diffuse.system.progress import Progress
from diffuse.system.randomness import ImageNoise
from diffuse.system.signals import raise_pending

ENCODING_ROUNDS = 3  # to noise and back, about: how often depends on the image


class Share(NamedTuple):
    """What a process has drawn: images [n, C, H, W] on the CPU, and how many evaluations they took."""

    images: Tensor
    evaluations: int


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
    def summary(self) -> str:
        """The sampler, and the guidance if there is one, for a log line."""
        if not self.guidance:
            return self.sampler.summary
        return f"{self.sampler.summary}, guidance={self.guidance['_target_']} at scale {self.guidance['scale']:g},"

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
        return self.kind.crop(drawn)

    @property
    def tasks(self) -> Mapping[str, Task]:
        """What other processes compute of a drawing: by name, functions of one argument."""
        return {"draw": self.share, "encode": self.encode}

    def share(self, item: tuple[Sequence[int], Tensor | None], each_evaluation: Seen | None = None) -> Share:
        """The images with these numbers, from x if that is given, on the CPU; and how many evaluations they took."""
        images, x = item
        evaluations = 0

        def seen(guess: Prediction) -> None:
            nonlocal evaluations
            raise_pending()
            evaluations += len(guess.x0)
            if each_evaluation:
                each_evaluation(guess)

        drawn = self.draw(images, seen, None if x is None else x.to(self.device.torch))
        return Share(drawn.cpu(), evaluations)

    def shared(self, images: Sequence[int], each_evaluation: Seen | None = None) -> Share:
        """The images with these numbers, drawn by all processes: image i of them by process i mod their number."""
        count = self.device.processes.count
        own = partial(self.share, each_evaluation=each_evaluation)
        items = [(images[rank::count], self.given_beginning(images[rank::count])) for rank in range(count)]
        found = [share for _, share in self.device.processes.map("draw", [item for item in items if item[0]], own)]
        together = torch.empty(len(images), *found[0].images.shape[1:])
        for rank, share in enumerate(found):
            together[rank::count] = share.images
        return Share(together, sum(share.evaluations for share in found))

    def encode(self, images: Sequence[int]) -> Tensor:
        """The noise of given images, on the CPU: an image's depends on the image, its label and the sampler only."""
        assert isinstance(self.editing, Encoding)
        x0, y = self.editing.x0(images, self.device.torch), self.condition.of_samples(images, self.device.torch)
        denoiser = Observed(self.denoiser, lambda guess: raise_pending())
        return encode(denoiser, self.sampler.walk, x0, self.sampler.times, y).cpu()

    def given_beginning(self, images: Sequence[int]) -> Tensor | None:
        """What these images begin with where this process alone knows it: noise that was found by encoding."""
        return self.editing.noise[[*images]] if isinstance(self.editing, Encoded) else None

    def draw_by_all(self, images: Sequence[int], each_evaluation: Seen) -> Tensor:
        """`draw`, by all processes; of several, each_evaluation sees the leader's predictions."""
        if self.device.processes.count == 1:
            return self.draw(images, each_evaluation)
        return self.shared(images, each_evaluation).images

    def picture(self, images: Tensor) -> Tensor:
        """A picture of the first images [n, C, H, W] of a drawing, as the data set has them: a row for each class."""
        return grid_by_title(self.kind.to_pixels(images), self.condition.titles(range(len(images))))

    def batches(
        self, n: int, batch_size: int, first: int = 0, seen: Seen | None = None
    ) -> Iterator[tuple[range, Tensor]]:
        """The numbers and the images of each batch, from image `first` to n - 1, on the CPU; shows progress.

        As the data set has them, 8-bit pixels or floats. A device that runs ahead draws the next batch while
        the caller has this one. seen is called with every prediction: several processes do not share such a batch.
        """
        if self.device.processes.count > 1:
            yield from self._batches_of_all(n, batch_size, first, seen)
            return
        ahead = 1 if self.device.asynchronous else 0
        under_way: deque[tuple[range, Callable[[], Tensor]]] = deque()
        cost = self.sampler.evaluations or 1  # 1 where only images can be counted
        unit = "evaluation" if self.sampler.evaluations else "image"

        def after_evaluation(guess: Prediction) -> None:
            raise_pending()
            if seen:
                seen(guess)
            self.evaluated["evaluations"] += len(guess.x0)
            if self.sampler.evaluations:
                progress.advance(len(guess.x0))

        with Progress("draw", n * cost, unit, first * cost) as progress:
            for start in range(first, n, batch_size):
                images = range(n)[start : start + batch_size]
                drawn = self.draw(images, after_evaluation)
                self.evaluated["images"] += len(images)
                if not self.sampler.evaluations:
                    progress.advance(len(images))
                under_way.append((images, self.fetched(drawn, images)))
                while len(under_way) > ahead:
                    images, wait = under_way.popleft()
                    yield images, wait()
            for images, wait in under_way:
                yield images, wait()

    def _batches_of_all(self, n: int, batch_size: int, first: int, seen: Seen | None) -> Iterator[tuple[range, Tensor]]:
        """The batches of `batches`, each with batch_size images for every process."""
        cost = self.sampler.evaluations or 1
        unit = "evaluation" if self.sampler.evaluations else "image"
        with Progress("draw", n * cost, unit, first * cost) as progress:
            while first < n:
                size = batch_size if seen else batch_size * self.device.processes.count
                images = range(n)[first : first + size]
                found = self.share((images, self.given_beginning(images)), seen) if seen else self.shared(images)
                self.evaluated["evaluations"] += found.evaluations
                self.evaluated["images"] += len(images)
                progress.advance(len(images) * cost)
                yield images, self.fetched(found.images, images)()
                first, seen = images.stop, None

    def fetched(self, drawn: Tensor, images: Sequence[int]) -> Callable[[], Tensor]:
        """Begin to fetch drawn images from the device; the function that is returned waits for them.

        It raises UserError for pixels that are NaN or infinite, which as 8-bit pixels would be any number.
        """
        finite = self.device.fetch(torch.isfinite(drawn).flatten(1).all(1))
        pixels = self.device.fetch(self.kind.to_values(drawn))

        def wait() -> Tensor:
            refuse_not_finite(finite(), images, bool(self.guidance))
            return pixels()

        return wait

    def seconds(self, network: TrainedNetwork, n: int) -> float:
        """How long n images will take, about: every evaluation as long as one in the middle of the time grid.

        Measured with guidance, whose second network or gradient costs as much again or more.
        """
        times = self.sampler.times
        speed = network.speed_of(self.denoiser, self.condition, float(times[(len(times) - 1) // 2]))
        cost = self.sampler.cost
        if isinstance(self.editing, Encoding):
            cost += ENCODING_ROUNDS * (4 * STEPS + cost)
        return n * cost / speed

    @property
    def evaluations(self) -> float | None:
        """Evaluations an image: known before, or the mean over those drawn by `batches`; None if there are none yet."""
        if self.sampler.evaluations or not self.evaluated["images"]:
            return self.sampler.evaluations
        return round(self.evaluated["evaluations"] / self.evaluated["images"], 1)


def noises(drawing: Drawing, n: int, batch_size: int, first: int) -> Iterator[Tensor]:
    """The noise of each batch of given images, from image `first` to n - 1, [b, C, H, W]; shows progress."""
    batches = (range(n)[start : start + batch_size] for start in range(first, n, batch_size))
    with Progress("encode", n, "image", first) as progress:
        for images, noise in drawing.device.processes.map("encode", batches, drawing.encode):
            yield noise
            progress.advance(len(images))


def refuse_not_finite(finite: Tensor, images: Sequence[int], guided: bool) -> None:
    """Raise UserError where some images [n] have pixels that are NaN or infinite."""
    wrong = [str(number) for number, good in zip(images, finite.tolist(), strict=True) if not good]
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
