"""`diffuse sample edit.*` as tests call it, and the files that they edit."""

import json
from pathlib import Path

import numpy as np

from diffuse.commands import sample
from tests.support.commands import FAST, config, output
from tests.support.making import random, save

DDIM = ["sampler=ddim", "sampler.steps=5"]


def sampled(run: Path, name: str, *overrides: str) -> tuple[np.ndarray, dict]:
    sample.run(config("sample", f"ckpt={run}", f"name={name}", *FAST, *overrides), output())
    folder = run / "samples" / name
    return np.load(folder / "samples.npz")["arr_0"], json.loads((folder / "samples.json").read_text())


def make_files(folder: Path) -> Path:
    """Images 0.png, 1.png and 2.png of 8 x 8, a photo of another size and in colour, and masks."""
    for number in range(3):
        save(folder / "images" / f"{number}.png", random(8, 8, seed=number))
    save(folder / "photo.png", random(30, 20, 3, seed=9))
    right = np.zeros((8, 8), np.uint8)
    right[:, 5:] = 255
    save(folder / "right.png", right)
    save(folder / "large.png", np.zeros((16, 16), np.uint8))
    save(folder / "black.png", np.zeros((8, 8), np.uint8))
    (folder / "text.png").write_text("no image")
    (folder / "empty").mkdir()
    return folder
    return folder
