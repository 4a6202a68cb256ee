"""Files that a key names: images, a mask, noise of an earlier encoding. All of it is read and checked at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.data.decoding import FITS, Box, Shape, decode, whole
from diffuse.data.images import ImageKind
from diffuse.data.npz import DAMAGED
from diffuse.data.own_images import first_of, image_files
from diffuse.runs.trained import TrainedNetwork
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import absolute, sha256, sha256_of_folder, write_atomic
from diffuse.system.sizes import in_words

WHITE = 128  # from this value on a pixel of a mask is painted


@dataclass(frozen=True)
class Given:
    """What a file or folder holds: images uint8 [k, C, H, W], a mask, or noise float32 of the network's size."""

    content: Tensor
    path: Path
    sha256: str

    def note(self, network: TrainedNetwork) -> None:
        """Put it among the files that something drawn with the network comes from."""
        network.sources[str(self.path)] = self.sha256


def read_images(place: str, network: TrainedNetwork) -> Given:
    """The image in a file, or those in a folder and below it, sorted by name, decoded as those of a data set are.

    In the channels and the size of the run; of an image of another aspect ratio the part that the run's data set takes.
    Raises UserError where one cannot be read.
    """
    kind, path = network.kind, absolute(place)
    if not kind.eight_bit or kind.channels not in (1, 3):
        what = f"{kind.channels} channels" if kind.eight_bit else "values that are not 8-bit pixels"
        raise UsageError(f"edit.image is for runs on 8-bit images, grey or RGB; those of {kind.name} have {what}")
    names = image_files(path) if path.is_dir() else [path.name]
    if not names:
        raise UserError(f"edit.image={place} holds no images (jpg, png, webp, bmp)")
    root = path if path.is_dir() else path.parent
    shape = Shape(kind.channels, kind.size, FITS[network.config.dataset.get("fit", "crop")])
    images = _decoded([f"{root}/{name}" for name in names], names, shape, "edit.image")
    return Given(images, path, sha256_of_folder(path, names) if path.is_dir() else sha256(path))


def read_image(place: str, key: str, shape: Shape) -> Given:
    """The image in the file that a key names, uint8 [C, H, W]. Raises UserError where it cannot be read."""
    path = absolute(place)
    return Given(_decoded([str(path)], [place], shape, key)[0], path, sha256(path))


def read_mask(place: str, key: str, kind: ImageKind) -> Given:
    """Which pixels are known, bool [1, 1, H, W]: those that are dark in the file, and the border of the network.

    Raises UserError where the file has another size than the run's images.
    """

    def fit(width: int, height: int, size: tuple[int, int]) -> Box:
        if (height, width) != size:
            raise ValueError(
                f"is {in_words(height, width)}, and the run's images are {in_words(*size)}: a mask is not resized"
            )
        return whole(width, height)

    path = absolute(place)
    grey = _decoded([str(path)], [path.name], Shape(1, kind.size, fit), key)
    known = torch.ones(1, 1, *kind.padded_size, dtype=torch.bool)
    kind.crop(known)[:] = grey < WHITE
    return Given(known, path, sha256(path))


def _decoded(paths: list[str], names: list[str], shape: Shape, key: str) -> Tensor:
    """The images of these files. Raises UserError, with their names, where some cannot be read."""
    blocks, wrong, first = list[np.ndarray](), list[str](), 0
    for images, reasons in decode(paths, shape):
        wrong += [f"{names[first + number]} ({why})" for number, why in reasons.items()]
        blocks.append(images)
        first += len(images)
    if wrong:
        raise UserError(f"{key}: {len(wrong)} of {len(names)} files cannot be used: {first_of(wrong)}")
    return torch.from_numpy(np.concatenate(blocks))


def read_noise(place: str, network: TrainedNetwork) -> tuple[Given, float]:
    """The noise of an encoding, and its time. Raises UserError where it is not for images of this run."""
    path, shape = absolute(place), network.kind.shape
    try:
        with np.load(path, allow_pickle=False) as arrays:
            noise = np.asarray(arrays["noise"])
            time, prior_std = (float(arrays[name]) for name in ("time", "prior_std"))
    except (*DAMAGED, TypeError, AttributeError) as error:
        why = "there is none" if isinstance(error, FileNotFoundError) else "it holds something else"
        raise UserError(
            f"edit.noise={place} must be a noise.npz of `diffuse sample edit.encode=true`, and {why}"
        ) from error
    if noise.dtype != np.float32 or noise.shape[1:] != shape or not len(noise) or not np.isfinite(noise).all():
        raise UserError(
            f"edit.noise={place}: noise must be finite float32 of shape [k, {', '.join(map(str, shape))}], as the "
            f"network's images are, not {noise.dtype} {list(noise.shape)}"
        )
    if not np.isfinite(time) or not np.abs(noise).reshape(len(noise), -1).max(1).all():
        raise UserError(f"edit.noise={place} has noise that is 0 everywhere, or a time that is not finite")
    if prior_std != network.schedule.prior_std:
        raise UserError(
            f"edit.noise={place} has standard deviation {prior_std:g}, and noise of this run has "
            f"{network.schedule.prior_std:g}: it is of another schedule"
        )
    return Given(torch.from_numpy(noise), path, sha256(path)), time


def write_noise(path: Path, noise: np.ndarray, time: float, prior_std: float, made_with: Mapping[str, Any]) -> None:
    """Write noise.npz: the noise [n, C, H, W] at a time, as the network sees it, and what it was made with."""
    made = np.array([f"{key}: {value}" for key, value in made_with.items()], dtype=str)
    write_atomic(path, lambda f: np.savez(f, noise=noise, time=time, prior_std=prior_std, made_with=made), mode="wb")
