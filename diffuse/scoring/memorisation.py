"""Does a network draw its training images again? The nearest ones, and a number that fresh images would have too."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffuse.data.images import ImageKind
from diffuse.runs.pictures import image_grid
from diffuse.scoring.distances import BLOCK, nearest, share_nearer
from diffuse.scoring.sample_scores import Side
from diffuse.system.errors import UsageError
from diffuse.system.files import atomic_path, write_atomic

SHOWN, COLUMNS = 64, 8
FILE, TABLE = "memorisation.png", "memorisation.csv"
SPACES = ("features", "pixels")
PIXELS = "memorisation_pixels"  # whatever the feature network is


@dataclass(frozen=True)
class Nearest:
    """In one space: for each drawn image the distance to the nearest training image and which that is, and the same
    distance for each test image, which nobody has trained on.
    """

    distances: np.ndarray
    places: np.ndarray
    of_test: np.ndarray

    @property
    def share(self) -> float:
        """The probability that a drawn image is nearer to the training set than a test image is; 0.5 for fresh ones."""
        return share_nearer(self.distances, self.of_test)


def memorisation(drawn: Side, train: Side, test: Side, kind: ImageKind, folder: Path, name: str) -> dict[str, Any]:
    """Look for copies of training images; writes the page and a table, gives the shares in both spaces."""
    found, drawn = {}, replace(drawn, pixels=pixels_of(drawn, kind))
    for space in SPACES:
        distances, places = nearest(drawn[space], train[space])
        found[space] = Nearest(distances, places, nearest(test[space], train[space])[0])
    write_table(folder / TABLE, found)
    draw_page(folder / FILE, found, drawn["pixels"], train["pixels"], kind)
    shares = {space: {"value": found[space].share} for space in SPACES}
    shared = {"n": drawn.count, "n_train": train.count, "n_test": test.count, "fresh_images": 0.5}
    return {PIXELS if space == "pixels" else name: {**share, **shared} for space, share in shares.items()}


def pixels_of(drawn: Side, kind: ImageKind) -> np.ndarray:
    """The pixels of drawn images as the data set has them: a grey image from a file has three equal channels.

    Raises UsageError where they are colours and the data set has none, or the other way round.
    """
    pixels, width = drawn["pixels"], kind.channels * kind.size**2
    if kind.channels == 1 and pixels.shape[1] == 3 * width:
        some = pixels[:BLOCK]
        if all(np.array_equal(some[:, :width], some[:, at : at + width]) for at in (width, 2 * width)):
            return pixels[:, :width]
    if pixels.shape[1] != width:
        raise UsageError(f"metrics=[memorisation] compares pixels: {drawn.name} has other channels than {kind.name}")
    return pixels


def write_table(path: Path, found: dict[str, Nearest]) -> None:
    """A line for each drawn image: its nearest training image, and how far that is, in both spaces."""
    columns = [column for space in SPACES for column in (found[space].places, found[space].distances)]
    head = "image," + ",".join(f"nearest_by_{space},distance_in_{space}" for space in SPACES)
    lines = (f"{row},{a},{b:.6g},{c},{d:.6g}" for row, (a, b, c, d) in enumerate(zip(*columns, strict=True)))
    write_atomic(path, lambda file: file.write("\n".join([head, *lines]) + "\n"))


def in_threes(found: dict[str, Nearest], drawn: np.ndarray, train: np.ndarray, kind: ImageKind) -> np.ndarray:
    """uint8 [n, C, size, 3 size]: the drawn images nearest by features, and their nearest in each space beside them."""
    order = np.argsort(found["features"].distances, kind="stable")[:SHOWN]
    triples = [drawn[order], *(train[found[space].places[order]] for space in SPACES)]
    shape = (len(order), kind.channels, kind.size, kind.size)
    return np.concatenate([images.reshape(shape) for images in triples], axis=3).astype(np.uint8)


def draw_page(path: Path, found: dict[str, Nearest], drawn: np.ndarray, train: np.ndarray, kind: ImageKind) -> None:
    """The drawn images that are nearest to training images, each beside its nearest by features and by pixels.

    Below them, how far drawn and test images are from the training set.
    """
    from matplotlib.figure import Figure

    strips = in_threes(found, drawn, train, kind)
    page = image_grid(torch.from_numpy(strips), min(COLUMNS, len(strips)))
    figure = Figure(figsize=(15, 8.5), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[2.5, 1])
    top, below = halves
    axes = top.subplots()
    axes.imshow(page.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_axis_off()
    top.suptitle(
        f"{kind.name}: of {len(drawn):,} drawn images the {len(strips)} nearest to the training set, nearest first.\n"
        "In threes: drawn, the training image nearest by features, the one nearest by pixels"
    )
    for place, (space, near) in enumerate(found.items(), start=1):
        axes = below.add_subplot(1, 2, place)
        bins = np.histogram_bin_edges(np.concatenate([near.distances, near.of_test]), 60).tolist()
        axes.hist(near.of_test, bins, density=True, alpha=0.6, label="test images")
        axes.hist(near.distances, bins, density=True, alpha=0.6, label="drawn images")
        axes.set(xlabel=f"distance to the nearest training image, {space}", yticks=[])
        axes.set_title(f"drawn ones nearer than test images: {near.share:.3f} (0.5 for fresh images)", fontsize=10)
        axes.legend()
    with atomic_path(path) as beside:
        figure.savefig(beside, format="png", dpi=100)
