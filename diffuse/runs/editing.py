"""Editing: what images begin with in place of noise of their own, and which of their pixels are known.

The keys `edit.*` become one of the classes here, which `Drawing` asks for the beginning of each image; the samplers
know nothing of it. The formulas are in `mathematics.editing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.data.conditions import Condition
from diffuse.data.images import ImageKind, to_uint8
from diffuse.mathematics.denoiser import AnyDenoiser
from diffuse.mathematics.editing import KnownPixels, slerp
from diffuse.mathematics.schedules import Schedule
from diffuse.options.nested import Edit
from diffuse.runs.given import read_images, read_mask, read_noise
from diffuse.runs.pictures import GREY, image_grid, side_by_side
from diffuse.runs.sampler import Sampler
from diffuse.runs.trained import TrainedNetwork
from diffuse.system.device import send
from diffuse.system.errors import UsageError, UserError
from diffuse.system.randomness import ImageNoise

PLAIN_IMAGES, RESULTS, FRAMES = 64, 8, 9  # images of a sampling, of one that is edited, and from a seed to the next
STRENGTH = 0.6
MOST_ROWS, MOST_COLUMNS = 16, 12  # of a picture
EXCLUDED = {
    "interpolate": ("image", "encode"),
    "noise": ("image", "encode"),
    "encode": ("mask", "strength"),
}
WHY = {
    "interpolate": "images between seeds begin with noise alone",
    "noise": "images of given noise begin with it alone",
    "encode": "it goes all the way to noise and back",
}


@dataclass(frozen=True)
class Editing:
    """No editing: each image begins with its own noise.

    count   the number of images where `n` is null
    record  what the images depend on beside all that plain ones do
    part    the share of the sampler's steps that is walked
    known   which pixels are known, bool [1, 1, H, W]; None for none
    """

    count: int = PLAIN_IMAGES
    record: dict[str, Any] = field(default_factory=dict)
    part: float = 1.0
    known: Tensor | None = None

    def condition(self, condition: Condition) -> Condition:
        """What the images are conditioned on."""
        return condition

    def refuse(self, sampler: Sampler) -> None:
        """Raise UsageError where the sampler cannot do it."""

    def beginning(self, images: Sequence[int], noise: Tensor, schedule: Schedule, start: float) -> Tensor:
        """x at the time `start` of the images with these numbers; noise: standard normal, their own."""
        return noise * schedule.prior_std

    def around(self, denoiser: AnyDenoiser, images: Sequence[int], device: torch.device) -> AnyDenoiser:
        """The denoiser of the images with these numbers."""
        return denoiser

    def picture(self, drawn: Tensor) -> Tensor | None:
        """What is shown of the images [n, C, H, W], if not a grid of them alone."""
        return None

    def film(self, drawn: Tensor) -> list[Tensor]:
        """Pictures that are shown one after the other, of images [n, C, H, W]."""
        return []


PLAIN = Editing()


@dataclass(frozen=True)
class FromImages(Editing):
    """SDEdit, inpainting, or both: image i begins as the given image i mod k with noise, or as pure noise at part 1.

    given  the k images, uint8 [k, C, H, W]
    """

    kind: ImageKind = field(kw_only=True)
    given: Tensor = field(kw_only=True)

    def x0(self, images: Sequence[int], device: torch.device) -> Tensor:
        """The given images that these are made of, [b, C, H, W] in [-1, 1]."""
        return send(self.kind.to_network(self.given[[image % len(self.given) for image in images]]), device)

    def beginning(self, images: Sequence[int], noise: Tensor, schedule: Schedule, start: float) -> Tensor:
        if self.part == 1:
            return super().beginning(images, noise, schedule, start)
        return schedule.diffuse(self.x0(images, noise.device), torch.tensor(start, dtype=torch.float64), noise)

    def around(self, denoiser: AnyDenoiser, images: Sequence[int], device: torch.device) -> AnyDenoiser:
        if self.known is None:
            return denoiser
        return KnownPixels(denoiser, self.x0(images, device), send(self.known, device))

    def picture(self, drawn: Tensor) -> Tensor:
        """A row for each given image: as it is, with grey where it is painted, and what was made of it."""
        shown, k = drawn, len(self.given)
        rows = min(k, MOST_ROWS, len(shown))
        columns = [self.given[:rows]]
        if self.known is not None:
            hidden = ~self.kind.crop(self.known)
            columns.append(torch.where(hidden, torch.full_like(self.given[:rows], GREY), self.given[:rows]))
        results = [shown[at : at + k][:rows] for at in range(0, len(shown), k)][:MOST_COLUMNS]
        return side_by_side(columns, results)


@dataclass(frozen=True)
class Encoding(FromImages):
    """Noise of which the sampler makes the given images, found first; then it is drawn from, as `FromNoise` does."""

    def refuse(self, sampler: Sampler) -> None:
        sampler.refuse_noise("edit.encode")

    def from_noise(self, noise: np.ndarray) -> "Encoded":
        """Drawing of the noise that was found, [n, C, H, W]."""
        values = {name: getattr(self, name) for name in ("count", "record", "kind", "given")}
        return Encoded(**values, noise=torch.from_numpy(noise))


@dataclass(frozen=True)
class FromNoise(Editing):
    """Image i begins with the row i mod k of given noise, [k, C, H, W]; time: that of the noise."""

    noise: Tensor = field(kw_only=True)
    time: float | None = None

    def refuse(self, sampler: Sampler) -> None:
        refuse_other_time(self.time, sampler)

    def beginning(self, images: Sequence[int], noise: Tensor, schedule: Schedule, start: float) -> Tensor:
        return send(self.noise[[image % len(self.noise) for image in images]], noise.device)


@dataclass(frozen=True)
class Encoded(FromNoise):
    """Noise that was found for given images, uint8 [k, C, H, W]."""

    kind: ImageKind = field(kw_only=True)
    given: Tensor = field(kw_only=True)

    def picture(self, drawn: Tensor) -> Tensor:
        """A row for each image: as it was given, its noise, and what is drawn of it."""
        rows = min(len(drawn), MOST_ROWS)
        noise = self.kind.crop(self.noise[:rows])
        scale = noise.flatten(1).std(1).reshape(-1, 1, 1, 1)
        return side_by_side([self.given[:rows], to_uint8(noise / scale)], [drawn[:rows]])

    def error(self, drawn: np.ndarray) -> dict[str, float]:
        """By how many of 255 grey levels the drawn images, uint8 [n, H, W, C], are off: the mean and the largest."""
        given = self.given[: len(drawn)].permute(0, 2, 3, 1).numpy()
        off = np.abs(given.astype(np.int16) - drawn)
        return {"mean": round(float(off.mean()), 4), "largest": int(off.max())}


@dataclass(frozen=True)
class Interpolation(Editing):
    """Images on the way between noises, each the next one of which is reached after frames - 1 steps.

    ends  the noises, [k, C, H, W], as the sampler begins with them
    time  that of noises from a file
    """

    kind: ImageKind = field(kw_only=True)
    frames: int = FRAMES
    ends: Tensor = field(kw_only=True)
    time: float | None = None

    def condition(self, condition: Condition) -> Condition:
        """All images have the class of the first one: it does not change on the way."""
        if condition.drawn and len(condition.drawn) > 1:
            raise UsageError(f"label must be one class for edit.interpolate, not {condition.record['label']}")
        return replace(condition, drawn=[condition.number_of(0)]) if condition.classes else condition

    def refuse(self, sampler: Sampler) -> None:
        sampler.refuse_noise("edit.interpolate")
        refuse_other_time(self.time, sampler)

    def beginning(self, images: Sequence[int], noise: Tensor, schedule: Schedule, start: float) -> Tensor:
        steps = self.frames - 1
        pairs = [min(image // steps, len(self.ends) - 2) for image in images]
        parts = [(image - pair * steps) / steps for image, pair in zip(images, pairs, strict=True)]
        first, second = self.ends[pairs], self.ends[[pair + 1 for pair in pairs]]
        return send(slerp(first, second, torch.tensor(parts, dtype=torch.float64)), noise.device)

    def picture(self, drawn: Tensor) -> Tensor:
        """A strip for each pair of seeds, from one to the next."""
        steps = self.frames - 1
        chosen = torch.linspace(0, steps, min(self.frames, MOST_COLUMNS)).round().long()
        rows = [drawn[pair * steps + chosen] for pair in range(len(self.ends) - 1)]
        return image_grid(self.kind.to_pixels(torch.cat(rows)), columns=len(chosen))

    def film(self, drawn: Tensor) -> list[Tensor]:
        return [image_grid(self.kind.to_pixels(image[None])) for image in drawn]


def editing_of(keys: Edit, n: int | None, network: TrainedNetwork) -> Editing:
    """The editing that the keys ask for, its files read. Raises UsageError where keys exclude each other."""
    refuse_what_excludes_each_other(keys, n)
    if keys.interpolate is not None:
        return interpolation(keys.interpolate, keys.frames or FRAMES, keys.noise, network)
    if keys.noise is not None:
        noise, time = read_noise(keys.noise, network)
        noise.note(network)
        return FromNoise(len(noise.content), {"noise_sha256": noise.sha256}, noise=noise.content, time=time)
    return from_images(keys, n, network) if keys.image is not None else Editing()


def from_images(keys: Edit, n: int | None, network: TrainedNetwork) -> FromImages:
    """What is done to the given images."""
    assert keys.image is not None
    images = read_images(keys.image, network)
    images.note(network)
    k, record = len(images.content), {"images": len(images.content), "images_sha256": images.sha256}
    if keys.encode:
        if n is not None and n > k:
            raise UsageError(f"n must be at most {k}, the number of images to encode, not {n}: each has one noise")
        return Encoding(k, {**record, "encode": True}, kind=network.kind, given=images.content)
    mask = None if keys.mask is None else read_mask(keys.mask, "edit.mask", network.kind)
    part = keys.strength or (STRENGTH if mask is None else 1.0)
    record["strength"] = part
    if mask:
        if bool(mask.content.all()):
            raise UserError(
                f"edit.mask={keys.mask} has no white pixel, so there is nothing to paint: white is painted anew"
            )
        mask.note(network)
        record["mask_sha256"] = mask.sha256
    count = k if images.path.is_dir() else RESULTS
    return FromImages(
        count, record, part, None if mask is None else mask.content, kind=network.kind, given=images.content
    )


def interpolation(seeds: list[int], frames: int, noise_file: str | None, network: TrainedNetwork) -> Interpolation:
    """Images between the first images of these seeds, or between these rows of a file of noise."""
    if len(seeds) < 2:
        raise UsageError(f"edit.interpolate must be two seeds or more, such as [0,1,2], not {seeds}")
    record: dict[str, Any] = {"interpolate": seeds, "frames": frames}
    time = None
    if noise_file is None:
        empty = torch.empty(1, *network.kind.shape)
        ends = torch.cat([ImageNoise(seed, "sample", [0])(empty) for seed in seeds]) * network.schedule.prior_std
    else:
        noise, time = read_noise(noise_file, network)
        if wrong := [row for row in seeds if not 0 <= row < len(noise.content)]:
            last = len(noise.content) - 1
            raise UsageError(f"edit.interpolate must be rows of edit.noise, from 0 to {last}, not {wrong[0]}")
        noise.note(network)
        record["noise_sha256"] = noise.sha256
        ends = noise.content[seeds]
    count = (len(seeds) - 1) * (frames - 1) + 1
    return Interpolation(count, record, kind=network.kind, frames=frames, ends=ends, time=time)


def refuse_what_excludes_each_other(keys: Edit, n: int | None) -> None:
    """Raise UsageError for keys that cannot be set together, or need one that is not there."""
    typed = {name: value for name, value in vars(keys).items() if value is not None and value is not False}
    for name in ("strength", "mask", "encode"):
        if name in typed and "image" not in typed:
            raise UsageError(f"edit.{name} needs edit.image=IMAGE_OR_FOLDER")
    if "frames" in typed and "interpolate" not in typed:
        raise UsageError("edit.frames needs edit.interpolate=[SEED,SEED,...]")
    if "interpolate" in typed and n is not None:
        raise UsageError("n follows from edit.interpolate and edit.frames: leave it out")
    for name, others in EXCLUDED.items():
        if wrong := [other for other in others if name in typed and other in typed]:
            raise UsageError(f"edit.{name} and edit.{wrong[0]} exclude each other: {WHY[name]}")


def refuse_other_time(time: float | None, sampler: Sampler) -> None:
    """Raise UsageError where given noise is of another time than that at which the sampler begins."""
    if time not in (None, sampler.start):
        raise UsageError(
            f"edit.noise is of time {time:g}, and this sampler begins at {sampler.start:g}: choose the "
            "sampler.spacing with which it was made"
        )
