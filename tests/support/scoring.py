"""What the tests of sample scores share: feature networks that cost nothing, and images to look at with them."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.commands import eval as evaluation
from diffuse.options.score_names import EVALUATIONS
from tests.support.commands import FAST, config, output
from tests.support.making import save


class Sixteenths(nn.Module):
    """The means of sixteen tiles of an image, each channel's: 48 features."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 4)


def save_network(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have networks exported in another form
        torch.jit.script(Sixteenths()).save(str(path))


def tiles(folder: Path) -> list[str]:
    """The words that score with a network of one's own, called tiles."""
    save_network(folder / "tiles.pt")
    return ["features=torchscript", f"features.path={folder / 'tiles.pt'}"]


def smooth(count: int, seed: int = 0, size: int = 8) -> np.ndarray:
    """Colour images [n, 3, size, size] that differ in brightness and pattern, as photographs do."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.uniform(0, 255, (count, 3, 3, 3)))
    return F.interpolate(coarse, (size, size), mode="bilinear").round().to(torch.uint8).numpy()


def as_folder(folder: Path, images: np.ndarray) -> Path:
    """The images as PNG files."""
    for number, image in enumerate(images):
        save(folder / f"{number:05d}.png", image.transpose(1, 2, 0))
    return folder


def as_npz(path: Path, images: np.ndarray) -> Path:
    """The images as arr_0 of an npz file."""
    np.savez(path, images.transpose(0, 2, 3, 1))
    return path


def score(*overrides: str) -> dict[str, float]:
    """`diffuse eval` in this process, on the CPU: every score by its name, without what drawing cost."""
    values = evaluation.run(config("eval", *FAST, *overrides), output())
    return {name: value for name, value in values.items() if name != EVALUATIONS}


def report(folder: Path) -> dict:
    return json.loads((folder / "eval.json").read_text())


def normal(*shape: int, seed: int = 0, mean: float = 0.0, spread: float = 1.0) -> np.ndarray:
    return (mean + spread * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)
