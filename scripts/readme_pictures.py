"""Make the pictures of the README from a finished run on the digits.

    diffuse train name=readme
    diffuse sample ckpt=outputs/readme n=64 sampler=training name=readme
    diffuse eval ckpt=outputs/readme name=readme
    python scripts/readme_pictures.py outputs/readme

docs/digits.png has 48 of the samples on the left, unselected, and 48 real test digits on the right.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch

from diffuse.data.datasets import digits
from diffuse.runs.pictures import image_grid, save_png

DOCS = Path(__file__).resolve().parent.parent / "docs"
COUNT, COLUMNS, GAP = 48, 8, 40


def main(run: Path) -> None:
    drawn = torch.from_numpy(np.load(run / "samples/readme/samples.npz")["arr_0"][:COUNT]).permute(0, 3, 1, 2)
    real = torch.from_numpy(digits().test.images[:COUNT])
    left, right = (image_grid(images, COLUMNS) for images in (drawn, real))
    between = torch.full((3, left.shape[1], GAP), 255, dtype=torch.uint8)
    save_png(DOCS / "digits.png", torch.cat([left, between, right], dim=2))
    shutil.copyfile(run / "images/forward_process.png", DOCS / "forward_process.png")
    shutil.copyfile(run / "eval/readme/terms.png", DOCS / "terms.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
