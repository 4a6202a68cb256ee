"""Images and folders of images that the tests of data sets make, each known by its number."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffuse.data.arrays import Split
from diffuse.data.datasets import folder
from diffuse.data.images import Dataset


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def photo(number: int) -> np.ndarray:
    """4 x 4 pixels that no other number has, [H, W, C]."""
    return random(4, 4, 3, seed=number)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_all(root: Path, *names: str) -> None:
    """photo(0), photo(1), ... under these names."""
    for number, name in enumerate(names):
        save(root / name, photo(number))


def opened(root: Path, **options) -> Dataset:
    return folder(root.parent / "data", str(root), **{"size": 4, **options})


def numbers(split: Split) -> list[int]:
    """Which photos a split has, in its order."""
    known = {photo(number).transpose(2, 0, 1).tobytes(): number for number in range(130)}
    return [known[image.tobytes()] for image in split.images]


def everything(data: Dataset) -> list[int]:
    return sorted(numbers(data.train) + numbers(data.test))
