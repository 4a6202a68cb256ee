"""The way from noise to images, as a strip and a GIF: what the frames show, and when they are made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffuse.commands import sample
from diffuse.data.images import to_uint8
from diffuse.runs.pictures import gif_of_pngs, image_grid, save_png
from diffuse.system.randomness import ImageNoise
from tests.support.commands import FAST, config, output
from tests.support.running import trained


def sampled(run: Path, name: str, *words: str) -> Path:
    sample.run(config("sample", f"ckpt={run}", f"name={name}", *FAST, "sampler=ddim", *words), output())
    return run / "samples" / name


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        found = []
        for place in range(gif.n_frames):
            gif.seek(place)
            found.append(np.asarray(gif.convert("RGB")).astype(int))
        return found


def close(picture: np.ndarray, expected: torch.Tensor) -> None:
    """A GIF has 256 colours, which all greys are among."""
    assert np.abs(picture - expected.permute(1, 2, 0).numpy().astype(int)).max() <= 2


def test_the_first_frame_is_noise_and_the_last_the_images(tiny_run):
    folder = sampled(tiny_run, "way", "n=5", "sampler.steps=6", "seed=3")
    found = frames(folder / "trajectory.gif")
    assert len(found) == 6
    noise = ImageNoise(3, "sample", range(5))(torch.empty(5, 1, 8, 8))
    width = found[0].shape[1] // 2
    close(found[0][:, :width], image_grid(to_uint8(noise)))
    close(found[-1][:, width:], torch.from_numpy(np.asarray(Image.open(folder / "grid.png"))).permute(2, 0, 1))
    assert np.abs(found[-1][:, :width] - found[0][:, :width]).max() > 50
    strip = np.asarray(Image.open(folder / "trajectory.png"))
    tile = 50  # pixels: an image of 8, enlarged six times, and the line between two
    assert strip.shape == (2 * 5 * tile + 2, 6 * tile + 2, 3)
    grid = np.asarray(Image.open(folder / "grid.png"))
    np.testing.assert_array_equal(strip[tile + 2 : 2 * tile, -tile:-2], grid[2:tile, 2:tile])  # x0 of the first image


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["n=64"], True),
        (["n=65"], False),
        (["n=65", "trajectory=true"], True),
        (["n=3", "trajectory=false"], False),
        (["n=3", "sampler=ode"], False),
    ],
)
def test_it_is_made_for_few_images_or_as_asked(tiny_run, words, shown):
    if "sampler=ode" in words:
        sample.run(config("sample", f"ckpt={tiny_run}", "name=shown-ode", *FAST, "sampler=ode", "n=3"), output())
        folder = tiny_run / "samples" / "shown-ode"
    else:
        folder = sampled(tiny_run, f"shown-{'-'.join(words).replace('=', '')}", "sampler.steps=2", *words)
    assert [(folder / f"trajectory.{kind}").exists() for kind in ("png", "gif")] == [shown, shown]


def test_of_many_evaluations_forty_are_kept(tiny_run):
    folder = sampled(tiny_run, "many", "n=2", "sampler.steps=150")
    assert len(frames(folder / "trajectory.gif")) == 40


def test_a_training_ends_with_its_grids_in_turn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = trained("exp", "images.every=2")
    grids = sorted((folder / "images").glob("step_*.png"))
    found = frames(folder / "images" / "samples.gif")
    assert len(found) == len(grids) == 3
    for picture, path in zip(found, grids, strict=True):
        close(picture, torch.from_numpy(np.asarray(Image.open(path))).permute(2, 0, 1))


def test_grids_of_different_sizes_make_no_gif(tmp_path):
    paths = [tmp_path / f"{size}.png" for size in (10, 12)]
    for path, size in zip(paths, (10, 12), strict=True):
        save_png(path, torch.zeros(3, size, size, dtype=torch.uint8))
    gif_of_pngs(tmp_path / "x.gif", paths)
    gif_of_pngs(tmp_path / "x.gif", paths[:1])
    assert not (tmp_path / "x.gif").exists()
