"""Does a network copy its training images? The nearest ones to each sample, and a share that is 0.5 for new images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffuse.data.images import ImageKind
from diffuse.runs.pictures import image_grid
from diffuse.scoring.distances import nearest, share_nearer
from diffuse.scoring.report import Values, write_csv
from diffuse.system.errors import UsageError
from diffuse.system.files import atomic_path

SHOWN, COLUMNS = 64, 8
CHECKED = 1000  # images whose channels are compared
SPACES = ("features", "pixels")
Spaces = Mapping[str, np.ndarray]  # the vectors [n, D] of some images in each space


@dataclass(frozen=True)
class Nearest:
    """The nearest training images in one space.

    distances  of each drawn image to the nearest training image
    places     the row numbers of those training images
    of_test    the distances of the test images, which were not trained on
    """

    distances: np.ndarray
    places: np.ndarray
    of_test: np.ndarray

    @property
    def share(self) -> float:
        """The probability that a drawn image is nearer to the training set than a test image; 0.5 for new images."""
        return share_nearer(self.distances, self.of_test)


def memorisation(drawn: Spaces, train: Spaces, test: Spaces, kind: ImageKind, folder: Path, name: str) -> Values:
    """Search for copies of training images. Writes a page of images and a table; returns the shares in both spaces.

    name: of the share by features. The one by pixels does not depend on the feature network.
    """
    found = {
        space: Nearest(*nearest(drawn[space], train[space]), nearest(test[space], train[space])[0]) for space in SPACES
    }
    columns: dict[str, Any] = {"image": range(len(drawn["pixels"]))}
    for space, near in found.items():
        columns[f"nearest_by_{space}"] = near.places
        columns[f"distance_in_{space}"] = [f"{distance:.6g}" for distance in near.distances]
    write_csv(folder / "memorisation.csv", columns)
    draw_page(folder / "memorisation.png", found, drawn["pixels"], train["pixels"], kind)
    counts = {"n": len(drawn["pixels"]), "n_train": len(train["pixels"]), "n_test": len(test["pixels"])}
    names = {"features": name, "pixels": "memorisation_pixels"}
    return {names[space]: {"value": near.share, **counts, "fresh_images": 0.5} for space, near in found.items()}


def pixels_like(kind: ImageKind, pixels: np.ndarray, name: str) -> np.ndarray:
    """The pixels [n, D] with the channels of the data set: grey images from files have three equal channels.

    Raises UsageError where one of the two has colours and the other has not; name: of the images, for the message.
    """
    width = kind.dimensions
    if kind.channels == 1 and pixels.shape[1] == 3 * width:
        red, green, blue = np.split(pixels[:CHECKED], 3, axis=1)
        if np.array_equal(red, green) and np.array_equal(red, blue):
            return pixels[:, :width]
    if pixels.shape[1] != width:
        raise UsageError(f"metrics=[memorisation] compares pixels: {name} has other channels than {kind.name}")
    return pixels


def nearest_strips(found: Mapping[str, Nearest], drawn: np.ndarray, train: np.ndarray, kind: ImageKind) -> np.ndarray:
    """uint8 [n, C, H, 3 W]: the drawn images nearest by features, each beside its nearest in the two spaces."""
    order = np.argsort(found["features"].distances, kind="stable")[:SHOWN]
    triples = [drawn[order], *(train[found[space].places[order]] for space in SPACES)]
    shape = (len(order), kind.channels, *kind.size)
    return np.concatenate([images.reshape(shape) for images in triples], axis=3).astype(np.uint8)


def draw_page(path: Path, found: Mapping[str, Nearest], drawn: np.ndarray, train: np.ndarray, kind: ImageKind) -> None:
    """The drawn images nearest to the training set, each beside its nearest images by features and by pixels.

    Below them are histograms of the distances of drawn and of test images to the training set.
    """
    from matplotlib.figure import Figure

    strips = nearest_strips(found, drawn, train, kind)
    page = image_grid(torch.from_numpy(strips), min(COLUMNS, len(strips)))
    figure = Figure(figsize=(15, 8.5), layout="constrained")
    top, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.5, 1]).flat
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
