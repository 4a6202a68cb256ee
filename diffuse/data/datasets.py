"""Data sets: each split is one array of images [N, C, H, W], and a batch is some of its rows.

Images are uint8 and become floats in [-1, 1] on the device. The exceptions are `gaussian`, whose floats have no range,
and the numbers of an npz file, which come with what the network sees of them.
All data sets of 8-bit images have `pad`, the width of a black border around the images that the network sees (removed
from samples), and `flip`, whether training mirrors half of the images.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffuse.data.arrays import Recipe, Source, Sources, Split, prepare
from diffuse.data.decoding import FITS, Shape, centre_140
from diffuse.data.images import NONE, Dataset, ImageKind
from diffuse.data.npz import LAYOUTS, NpzImages, NpzSplits
from diffuse.data.own_images import FolderImages, fingerprint, held_out
from diffuse.data.sources import TorchvisionSet, from_cifar10_binary, has_cifar10_binary
from diffuse.data.values import Normalisation
from diffuse.system.errors import Refused, UserError, check, check_choice
from diffuse.system.files import absolute, slug
from diffuse.system.randomness import generator
from diffuse.system.sizes import height_width

DATA = Path(__file__).parent
CLASSES = json.loads((DATA / "classes.json").read_text(encoding="utf-8"))  # of well-known sets, by label
DIGITS = [str(digit) for digit in range(10)]


def digits(pad: int = 0, flip: bool = False) -> Dataset:
    """1,797 handwritten digits, 8 x 8, grey, in 10 classes (1,438 to train on, 359 to test on).

    Alpaydin and Kaynak 1998, UCI, CC BY 4.0; ships with the package, made by scripts/prepare_digits.py.
    """

    def load() -> dict[str, Split]:
        with np.load(DATA / "digits.npz") as arrays:
            return {split: Split(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test")}

    return Dataset(_kind("digits", 1, (8, 8), DIGITS, pad), flip, load)


def gaussian(
    mean: list[float], std: list[float], size: int | list[int], train_count: int, test_count: int, flip: bool = False
) -> Dataset:
    """Independent Gaussian pixels, channel c with mean[c] and std[c]: data with exact answers in closed form.

    Floats, not 8-bit: nothing is clipped, and the likelihood is a density.

    mean         of the pixels of each channel
    std          their standard deviation
    size         height and width of the images in pixels, [height,width] or one number for both
    train_count  images to train on
    test_count   images to test on
    """
    if len(mean) != len(std) or not mean:
        raise Refused("mean", f"and std must have one value per channel; they have {len(mean)} and {len(std)}")
    check(min(std) > 0, "std", "positive", min(std))
    for name, value in {"train_count": train_count, "test_count": test_count}.items():
        check(value >= 1, name, "at least 1", value)
    height, width = height_width(size)

    def draw(split: str, count: int) -> Split:
        normal = generator("gaussian", split).standard_normal((count, len(mean), height, width), dtype=np.float32)
        loc, scale = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (mean, std))
        return Split(loc + scale * normal)

    def log_density(images: torch.Tensor) -> torch.Tensor:
        loc, scale = (torch.tensor(values, dtype=images.dtype).reshape(-1, 1, 1) for values in (mean, std))
        return torch.distributions.Normal(loc, scale).log_prob(images).flatten(1).sum(1)

    kind = ImageKind("gaussian", len(mean), height, width, [], NONE)
    counts = {"train": train_count, "test": test_count}
    return Dataset(kind, flip, lambda: {split: draw(split, count) for split, count in counts.items()}, log_density)


def mnist(data_dir: Path, pad: int = 2, flip: bool = False) -> Dataset:
    """70,000 handwritten digits, 28 x 28, grey (60,000 to train on). LeCun, Cortes and Burges 1998."""
    files = TorchvisionSet("MNIST", data_dir, "MNIST/raw/*-ubyte")
    return _dataset(_kind("mnist", 1, (28, 28), DIGITS, pad), flip, data_dir, files.arrays)


def fashion_mnist(data_dir: Path, pad: int = 2, flip: bool = False) -> Dataset:
    """70,000 pieces of clothing, 28 x 28, grey, in 10 classes (60,000 to train on). Xiao, Rasul and Vollgraf 2017."""
    files = TorchvisionSet("FashionMNIST", data_dir, "FashionMNIST/raw/*-ubyte")
    return _dataset(_kind("fashion_mnist", 1, (28, 28), CLASSES["fashion_mnist"], pad), flip, data_dir, files.arrays)


def cifar10(data_dir: Path, pad: int = 0, flip: bool = False) -> Dataset:
    """60,000 photographs, 32 x 32, colour, in 10 classes (50,000 to train on). Krizhevsky 2009.

    From either official distribution, python (torchvision's) or binary, the latter unpacked or not.
    """
    files = TorchvisionSet("CIFAR10", data_dir, "cifar-10-batches-py or cifar-10-batches-bin")
    binary = has_cifar10_binary(data_dir) and not (data_dir / "cifar-10-batches-py").is_dir()
    sources = partial(from_cifar10_binary, data_dir) if binary else files.arrays
    return _dataset(_kind("cifar10", 3, (32, 32), CLASSES["cifar10"], pad), flip, data_dir, sources)


def cifar100(data_dir: Path, pad: int = 0, flip: bool = False) -> Dataset:
    """60,000 photographs, 32 x 32, colour, in 100 classes (50,000 to train on). Krizhevsky 2009."""
    files = TorchvisionSet("CIFAR100", data_dir, "cifar-100-python")
    return _dataset(_kind("cifar100", 3, (32, 32), CLASSES["cifar100"], pad), flip, data_dir, files.arrays)


def svhn(data_dir: Path, pad: int = 0, flip: bool = False) -> Dataset:
    """99,289 house numbers, 32 x 32, colour, by their middle digit (73,257 to train on). Netzer et al. 2011."""
    files = TorchvisionSet("SVHN", data_dir, "train_32x32.mat and test_32x32.mat")
    return _dataset(_kind("svhn", 3, (32, 32), DIGITS, pad), flip, data_dir, files.arrays)


def celeba(data_dir: Path, size: int | list[int] = 64, pad: int = 0, flip: bool = False) -> Dataset:
    """182,732 faces of CelebA (162,770 to train on), colour, their middle 140 x 140 pixels scaled to `size`.

    Liu et al. 2015; the crop is Song and Ermon's (2020). The validation split and the attributes are left out.

    size  height and width in pixels that images are scaled to, [height,width] or one number for both
    """
    height, width = height_width(size, least=4, most=4096)
    files = TorchvisionSet("CelebA", data_dir, "celeba, the folder with img_align_celeba and the lists beside it,")
    sources = partial(files.celeba, Shape(3, (height, width), centre_140))
    return _dataset(_kind("celeba", 3, (height, width), [], pad), flip, data_dir, sources, {"crop": 140})


def flowers102(data_dir: Path, size: int | list[int] = 64, pad: int = 0, flip: bool = False) -> Dataset:
    """8,189 flowers in 102 classes, colour, their middle part scaled to `size`. Nilsback and Zisserman 2008.

    The training split is the official training and validation splits (2,040 images), the test split the official one.

    size  height and width in pixels that images are scaled to, [height,width] or one number for both
    """
    height, width = height_width(size, least=4, most=4096)
    files = TorchvisionSet("Flowers102", data_dir, "flowers-102, the folder with jpg, imagelabels.mat and setid.mat,")
    sources = partial(files.flowers102, Shape(3, (height, width), FITS["crop"]))
    return _dataset(_kind("flowers102", 3, (height, width), CLASSES["flowers102"], pad), flip, data_dir, sources)


def folder(
    data_dir: Path,
    path: str,
    size: int | list[int] = 64,
    channels: int = 3,
    fit: str = "crop",
    holdout: float = 0.1,
    split_seed: int = 0,
    skip_bad: bool = False,
    pad: int = 0,
    flip: bool = False,
) -> Dataset:
    """All images (jpg, png, webp, bmp) in a folder and below. Subfolders are classes if every image lies in one.

    path        the folder
    size        height and width in pixels that images are scaled to, [height,width] or one number for both
    channels    1 for grey, 3 for colour
    fit         crop (to the middle part of that aspect ratio) or resize (without keeping the aspect ratio)
    holdout     the share of images held out for testing, unless there is a test folder beside a train folder
    split_seed  decides which images are held out
    skip_bad    leave out images that cannot be read, instead of naming them in an error
    """
    height, width = height_width(size, least=4, most=4096)
    check_choice("fit", fit, FITS)
    check(channels in (1, 3), "channels", "1 (grey) or 3 (colour)", channels)
    _check_holdout(holdout)
    images, shape = FolderImages(_existing(path, Path.is_dir, "a folder")), Shape(channels, (height, width), FITS[fit])
    tested = held_out(images.names, holdout, split_seed) if images.tested is None else images.tested

    def sources() -> dict[str, Source]:
        return {"train": images.source(~tested, shape), "test": images.source(tested, shape)}

    held = [holdout, split_seed] if images.tested is None else None
    depends_on = {"fit": fit, "holdout": held, "files": fingerprint(images.root, images.names)}
    kind = _kind(slug(images.root.name) or "folder", channels, (height, width), images.classes, pad)
    return _dataset(kind, flip, data_dir, sources, depends_on, skip_bad)


def npz(
    data_dir: Path,
    path: str,
    test_path: str | None = None,
    layout: str | None = None,
    normalise: str | None = None,
    range: list[float] | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    holdout: float = 0.1,
    split_seed: int = 0,
    pad: int = 0,
    flip: bool = False,
) -> Dataset:
    """Images of an npz file: arr_0 or images, [N, H, W, C], any H, W, C and numbers; labels [N], arr_1 or labels.

    path        the file
    test_path   a second file to test on
    layout      NHWC or NCHW: where the channels are (null: last, where the shape leaves no doubt)
    normalise   range (from `range` to [-1, 1]), std (mean 0 and standard deviation 1 in each channel) or none: what the
                network sees of numbers that are no 8-bit pixels; undone in samples
    range       [low, high] of normalise=range, which no value may leave
    mean, std   of normalise=std: lists, a number for each channel or one for all (null: those of the training images)
    holdout     the share of images held out for testing, unless there is a second file
    split_seed  decides which images are held out
    """
    _check_holdout(holdout)
    if layout is not None:
        check_choice("layout", layout, LAYOUTS)
    asked = Normalisation(normalise, range, mean, std)
    test = (
        None if test_path is None else NpzImages(_existing(test_path, Path.is_file, "an npz file", "test_path"), layout)
    )
    splits = NpzSplits(NpzImages(_existing(path, Path.is_file, "an npz file"), layout), test, holdout, split_seed)
    channels, height, width = splits.train.shape
    kind = _kind(slug(splits.train.path.stem) or "npz", channels, (height, width), splits.classes, pad)
    if normalise is None:
        splits.refuse_numbers()
        return _dataset(kind, flip, data_dir, partial(splits.sources, floats=False), splits.depends_on)
    sources = partial(splits.sources, floats=True)
    recipe = Recipe(kind.name, splits.train.shape, splits.depends_on, sources, dtype="float32")
    prepared = prepare(recipe, data_dir)  # at once, since what the network sees of the values may follow from them
    return Dataset(replace(kind, **asked.of(prepared)), flip, lambda: prepared)


def _dataset(
    kind: ImageKind, flip: bool, data_dir: Path, sources: Sources, facts: Mapping[str, Any] = {}, skip_bad: bool = False
) -> Dataset:
    """A data set whose arrays, which depend on these facts, are prepared under data_dir when they are first used."""
    recipe = Recipe(kind.name, (kind.channels, *kind.size), facts, sources, skip_bad)
    return Dataset(kind, flip, lambda: prepare(recipe, data_dir))


def _kind(name: str, channels: int, size: tuple[int, int], classes: list[str], pad: int) -> ImageKind:
    check(0 <= pad <= 1024, "pad", "a number of pixels, 0 or a few", pad)
    return ImageKind(name, channels, *size, classes, pad=pad)


def _existing(path: str, there: Callable[[Path], bool], what: str, key: str = "path") -> Path:
    found = absolute(path)
    if not there(found):
        there_is = "something else is there" if found.exists() else "there is none"
        raise UserError(f"dataset.{key}={path} must be {what}, and {there_is}")
    return found


def _check_holdout(holdout: float) -> None:
    check(0 < holdout < 1, "holdout", "a share between 0 and 1", holdout)
