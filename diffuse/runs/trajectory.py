"""The way from noise to images: a strip of some images and a GIF of all, of x_t and of the predicted x0."""

from pathlib import Path

import torch
from torch import Tensor

from diffuse.data.images import ImageKind
from diffuse.mathematics.denoiser import Prediction
from diffuse.runs.pictures import image_grid, save_gif, save_png

FRAMES = 40  # of a GIF at most
COLUMNS, IMAGES = 10, 8  # of the strip
MOST = 64  # images in a frame
SECONDS, LAST = 0.12, 1.5  # that a frame is shown, and the last one


class Trajectory:
    """Keeps x_t and the predicted x0 of some of the evaluations of a batch: the first, the last, and evenly between.

    evaluations is how many there will be. Of a batch the first 64 images are kept, in 8 bits.
    """

    def __init__(self, kind: ImageKind, evaluations: int, images: int):
        self.kind, self.images, self.count = kind, images, 0
        some = torch.linspace(0, evaluations - 1, min(FRAMES, evaluations))
        self.places = set(some.round().int().tolist())
        self.frames: list[tuple[Tensor, Tensor]] = []

    def __call__(self, guess: Prediction) -> None:
        """Keep a prediction if its turn has come; x_t is divided by sqrt(alpha^2 + sigma^2) to be shown."""
        if self.count in self.places and len(guess.x_t) == self.images:
            shown = guess.x_t / (guess.alpha**2 + guess.sigma**2).sqrt()
            self.frames.append((self._image(shown), self._image(guess.x0)))
        self.count += 1

    def _image(self, x: Tensor) -> Tensor:
        return self.kind.to_pixels(self.kind.to_values(self.kind.crop(x[:MOST]).float().cpu()))

    def save(self, folder: Path) -> None:
        """Write trajectory.png, for each image a row of x_t and one of x0, and trajectory.gif, both side by side."""
        if not self.frames:
            return
        chosen = torch.linspace(0, len(self.frames) - 1, min(COLUMNS, len(self.frames))).round().int().tolist()
        rows = [
            torch.stack([self.frames[place][part][image] for place in chosen])
            for image in range(min(IMAGES, self.images))
            for part in (0, 1)
        ]
        save_png(folder / "trajectory.png", image_grid(torch.cat(rows), columns=len(chosen)))
        pictures = [torch.cat([image_grid(part) for part in frame], dim=2) for frame in self.frames]
        save_gif(folder / "trajectory.gif", pictures, SECONDS, LAST)
