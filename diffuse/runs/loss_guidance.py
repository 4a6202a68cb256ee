"""The option `loss` of the group `guidance`: images that would give a measurement, the target, which a file holds."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffuse.data.conditions import Condition
from diffuse.data.decoding import FITS, Shape
from diffuse.data.images import ImageKind, to_float
from diffuse.data.npz import DAMAGED
from diffuse.mathematics import measurements
from diffuse.mathematics.measurements import Measurement, MeasurementGuided
from diffuse.networks.script import check_scaling, load_script, script_features
from diffuse.runs.given import Given, read_image, read_mask
from diffuse.runs.guidance import Guide, pair
from diffuse.runs.trained import TrainedNetwork
from diffuse.system.device import in_chunks
from diffuse.system.errors import UsageError, check, pick
from diffuse.system.files import absolute, sha256
from diffuse.system.sizes import in_words

VECTORS = (".npy", ".npz")


def loss(
    network: TrainedNetwork,
    condition: Condition,
    target: str | None = None,
    measure: str = "pixels",
    noise: float = 0.05,
    covariance: float | None = 0.25,
    mask: str | None = None,
    factor: int = 4,
    blur: float = 1.0,
    features: str | None = None,
    size: int | None = None,
    low: float = 0.0,
    high: float = 255.0,
    scale: float = 1.0,
    interval: list[float] | None = None,
) -> Guide:
    """Diffusion posterior sampling: images whose measurement is that of a given one. Chung et al. 2023.

    target      an image file, decoded and sized like the data, or as small as downsample makes it; for blur the blurred
                image; for features a .npy or .npz vector too
    measure     pixels, mask, downsample, blur, grey or features: what is measured of an image
    noise       the standard deviation of the measurement's noise, where pixels lie in [-1, 1]; features have norm 1
    covariance  the variance of the data's pixels, for how unsure a prediction is (null: sure, as Chung et al.)
    mask        of measure=mask: an image file of the data's size, white where there is nothing to match
    factor      of measure=downsample: how many times smaller the target is
    blur        of measure=blur: the standard deviation of the Gaussian in pixels
    features    of measure=features: a network saved by torch.jit.save, such as a CLIP image encoder
    size        of its input images in pixels (null: as they are)
    low, high   the values of black and white in its input
    scale       1 is the posterior, above 1 closer to the target
    interval    [low, high], the noise levels sigma / alpha with guidance (null: all)
    """
    if target is None:
        raise UsageError("guidance.target is required: the file of an image, or of a vector for measure=features")
    if not network.kind.eight_bit:
        raise UsageError(f"guidance=loss is for 8-bit images, and the data of this run, {network.kind.name}, are none")
    check(covariance is None or covariance > 0, "covariance", "positive or null", covariance)
    refuse_unused({"mask": mask, "features": features, "size": size}, measure)
    asked = Asked(network, target, mask, factor, blur, features, size, low, high)
    measurement, y = pick(MEASURES, "guidance.measure", measure)(asked)
    around = partial(
        MeasurementGuided,
        scale=scale,
        interval=pair(interval),
        measurement=Measurement(in_rows(measurement, network), measurement.gain),
        y=y.to(network.device.torch),
        noise=noise,
        covariance=covariance or 0.0,
    )
    return Guide(around, condition, asked.files)


def refuse_unused(given: dict[str, object], measure: str) -> None:
    """Raise UsageError for a key that belongs to another measure: without a word, its images would be others."""
    for key, value in given.items():
        needed = "mask" if key == "mask" else "features"
        if value is not None and measure != needed:
            raise UsageError(
                f"guidance.{key}={value} is for guidance.measure={needed}, and the measure is {measure}: add "
                f"guidance.measure={needed}, or leave it out"
            )


def size_of(target: str) -> tuple[int, int] | None:
    """The height and width of the image in a file; None where it holds none, which is reported when it is decoded."""
    try:
        with Image.open(absolute(target)) as image:
            return image.height, image.width
    except (OSError, ValueError):
        return None


def in_rows(measurement: Measurement, network: TrainedNetwork) -> Callable[[Tensor], Tensor]:
    """The measurement of images as the network sees them, always of the same number at a time.

    Without their border. Convolutions differ in the last bits between batch sizes, and an image must not depend on its
    batch.
    """
    whole = network.kind.crop

    def measured(x0: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        return measurement(whole(x0))

    fixed = in_chunks(measured, network.rows, network.device.spread)
    return lambda x0: fixed(x0, x0.new_zeros(len(x0)), None)


@dataclass(frozen=True)
class Asked:
    """What was asked for: the target, and the options of all measures.

    files  the SHA-256 of each file that was read, by the key that names it
    """

    network: TrainedNetwork
    target: str
    mask: str | None
    factor: int
    blur: float
    features: str | None
    size: int | None
    low: float
    high: float
    files: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> ImageKind:
        return self.network.kind

    def image(self, channels: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """The target as an image of the data, or of fewer channels or another size, in [-1, 1]."""
        fit = FITS[self.network.config.dataset.get("fit", "crop")]
        shape = Shape(channels or self.kind.channels, size or self.kind.size, fit)
        return to_float(self.noted("target", read_image(self.target, "guidance.target", shape)))

    def noted(self, key: str, given: Given) -> Tensor:
        """What the file of a key holds, which is noted as a source of what is drawn."""
        given.note(self.network)
        self.files[key] = given.sha256
        return given.content


Made = tuple[Measurement, Tensor]  # a measurement, and the one that is wanted


def _pixels(asked: Asked) -> Made:
    return measurements.pixels(), asked.image()


def _mask(asked: Asked) -> Made:
    if asked.mask is None:
        raise UsageError("guidance.mask is required by guidance.measure=mask: an image file, white where to paint")
    known = asked.noted("mask", read_mask(asked.mask, "guidance.mask", asked.kind))
    known = asked.kind.crop(known)[0].float()
    if not known.any():
        raise UsageError(f"guidance.mask={asked.mask} has no dark pixel, so nothing of the target would count")
    return measurements.masked(known.to(asked.network.device.torch)), asked.image() * known


def _downsample(asked: Asked) -> Made:
    height, width = asked.kind.size
    largest = math.gcd(height, width)
    check(asked.factor >= 1 and largest % asked.factor == 0, "factor", f"a divisor of {largest}", asked.factor)
    measurement, smaller = measurements.downsampled(asked.factor), (height // asked.factor, width // asked.factor)
    if size_of(asked.target) == smaller:  # the measurement itself
        return measurement, asked.image(size=smaller)
    return measurement, measurement(asked.image()[None])[0]


def _blur(asked: Asked) -> Made:
    side = min(asked.kind.size)
    check(0 < asked.blur <= side, "blur", f"above 0 and at most {side}", asked.blur)
    return measurements.blurred(asked.blur), asked.image()


def _grey(asked: Asked) -> Made:
    if asked.kind.channels != 3:
        raise UsageError(f"guidance.measure=grey is for colour images, and {asked.kind.name} has none: use pixels")
    return measurements.grey(), asked.image(channels=1)


def _features(asked: Asked) -> Made:
    if asked.features is None:
        raise UsageError("guidance.features is required by guidance.measure=features: a network of torch.jit.save")
    file = absolute(asked.features)
    if not file.is_file():
        raise UsageError(f"guidance.features={asked.features} does not exist")
    check_scaling(asked.size, asked.low, asked.high)
    script = load_script(file, "guidance.features", asked.network.device.torch)
    asked.noted("features", Given(torch.empty(0), file, sha256(file)))
    width = checked_width(script, asked)

    def vectors(x0: Tensor) -> Tensor:
        colour = x0[:, :3] if x0.shape[1] >= 3 else x0[:, :1].expand(-1, 3, -1, -1)
        return script_features(script, (colour.float() + 1) * 127.5, asked.size, asked.low, asked.high)

    measurement = measurements.directions(vectors)
    if Path(asked.target).suffix in VECTORS:
        y = read_vector(asked)
    else:
        with torch.no_grad():
            y = measurement(asked.image()[None].to(asked.network.device.torch))[0]
    if y.shape != (width,):
        raise UsageError(f"guidance.target={asked.target} has {y.numel()} values, and the network's features {width}")
    return measurement, y


MEASURES: dict[str, Callable[[Asked], Made]] = {
    "pixels": _pixels,
    "mask": _mask,
    "downsample": _downsample,
    "blur": _blur,
    "grey": _grey,
    "features": _features,
}


def checked_width(script: torch.jit.ScriptModule, asked: Asked) -> int:
    """The number of features of an image.

    Raises UsageError where a network cannot take the images, or gives no gradient for them.
    """
    size = asked.kind.size
    try:
        with torch.enable_grad():
            x = torch.zeros(1, 3, *size, device=asked.network.device.torch, requires_grad=True)
            found = script_features(script, x, asked.size, asked.low, asked.high)
            torch.autograd.grad(found.float().sum(), x)
        return int(found.shape[1])
    except (RuntimeError, TypeError, AttributeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise UsageError(
            f"guidance.features={asked.features} gives no differentiable vector for {in_words(*size)} pixels: {why}\n"
            "Its input is float32 [n, 3, H, W], its output [n, ...]; guidance.size=N resizes the images"
        ) from error


def read_vector(asked: Asked) -> Tensor:
    """The direction of a stored vector: that of an image or, from CLIP's other side, of a text."""
    path = absolute(asked.target)
    try:
        found = np.load(path, allow_pickle=False)
        values = found if isinstance(found, np.ndarray) else found[found.files[0]]
        vector = torch.from_numpy(np.asarray(values, np.float32).reshape(-1))
    except (*DAMAGED, TypeError) as error:
        raise UsageError(f"guidance.target={asked.target} is not a file with a vector: {error}") from error
    asked.noted("target", Given(vector, path, sha256(path)))
    return torch.nn.functional.normalize(vector, dim=0).to(asked.network.device.torch)
