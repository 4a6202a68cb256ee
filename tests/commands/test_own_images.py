"""Images of one's own through all three commands: a border that is cut off again, data that moved or changed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffuse.commands import eval as evaluation
from diffuse.commands import sample, train
from diffuse.data.images import to_uint8
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.likelihood import discretised_gaussian, variational_bound
from diffuse.mathematics.samplers.ddim import ddim
from diffuse.mathematics.spacings import time_grid
from diffuse.mathematics.variances import fixed_large
from diffuse.mathematics.wrappers import Clipped
from diffuse.runs.trained import load
from diffuse.system.errors import UserError
from diffuse.system.randomness import ImageNoise, generator
from tests.support.commands import TINY, config, output

FAST = ["device=cpu", "device.precision=float32"]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """60 grey images of 10 x 10, brighter to the left."""
    random = np.random.default_rng(0)
    return np.clip(np.linspace(250, 60, 10) + random.normal(0, 9, (60, 10, 10)), 0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch, images) -> Path:
    """The same images as files, in two classes."""
    monkeypatch.chdir(tmp_path)
    for number, image in enumerate(images):
        path = Path("photos", "ab"[number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return Path("photos")


DATA = ["dataset=folder", "dataset.path=photos", "dataset.size=10", "dataset.channels=1", "data_dir=data"]


def trained(name: str, *overrides: str) -> Path:
    train.run(config("train", *TINY, *DATA, f"name={name}", *overrides), output())
    return Path("outputs", name)


def scored(run: Path, name: str, *overrides: str) -> dict:
    evaluation.run(
        config("eval", f"ckpt={run}", f"name={name}", "n=4", "levels=5", "metrics=[bound]", *FAST, *overrides), output()
    )
    return json.loads((run / "eval" / name / "eval.json").read_text())


def test_a_border_is_seen_by_the_network_and_by_nobody_else(folder, images):
    run = trained("framed", "dataset.pad=3", "steps=30", "optim.lr=5e-3")
    stored = load(str(run))
    sample.run(config("sample", f"ckpt={run}", "n=3", "name=x", "sampler=ddim", "sampler.steps=5", *FAST), output())
    with Image.open(run / "samples" / "x" / "images" / "00002.png") as image:
        assert image.size == (10, 10)
    x_T = ImageNoise(0, "sample", range(3))(torch.empty(3, 1, 16, 16))
    *_, x = ddim(Clipped(Denoiser(stored.net, stored.schedule)), x_T, time_grid(stored.schedule, 5))
    drawn = np.load(run / "samples" / "x" / "samples.npz")["arr_0"]
    assert drawn.shape == (3, 10, 10, 1)
    np.testing.assert_allclose(drawn[..., 0], to_uint8(x)[:, 0, 3:13, 3:13].int(), atol=1)


def test_bits_per_dimension_are_counted_without_the_border(folder, images):
    """Against the core: a border of -1 around the test images, no part of L_0; nats divided by the pixels inside."""
    run = trained("framed", "dataset.pad=3")
    result = scored(run, "x")
    assert (result["protocol"]["pad"], result["protocol"]["dimensions"]) == (3, 100)
    test = np.load(next(Path("data/prepared").glob("photos-*/test_images.npy")))
    rows = generator(0, "test order").permutation(len(test))[:4]
    x0 = torch.full((4, 1, 16, 16), -1.0)
    x0[:, :, 3:13, 3:13] = torch.from_numpy(test[rows]).float() / 127.5 - 1
    stored = load(str(run))
    denoiser = Clipped(Denoiser(stored.net, stored.schedule))
    noise = ImageNoise(0, "eval", rows.tolist())

    def inside(x0, mean, variance):
        return discretised_gaussian(x0[..., 3:13, 3:13], mean[..., 3:13, 3:13], variance)

    times = time_grid(stored.schedule, 5)
    bound = variational_bound(denoiser, x0, times, noise=noise, variance=fixed_large, decoder=inside)
    nats = bound.prior + bound.terms.sum(1) + bound.reconstruction
    assert result["bits_per_dim"]["bound"]["total"] == pytest.approx(float(nats.mean()) / 100 / np.log(2), rel=1e-4)


def test_data_that_moved_are_found_where_one_says(folder):
    run = trained("moved")
    before = scored(run, "before")
    assert Path(load(str(run)).config.dataset["path"]).is_absolute()
    shutil.move("photos", "pictures")
    with pytest.raises(UserError, match="dataset.path=.*photos must be a folder, and there is none"):
        scored(run, "gone")
    after = scored(run, "after", "dataset.path=pictures", "data_dir=elsewhere")
    assert after["bits_per_dim"] == before["bits_per_dim"]
    assert after["protocol"]["data_as_in_training"]
    assert after["protocol"]["data_sha256"] == before["protocol"]["data_sha256"]
    assert Path("elsewhere/prepared").is_dir()


def test_data_of_another_kind_are_refused(folder):
    run = trained("kind", "class_conditional=true")
    shutil.move("photos/b", "photos/c")
    with pytest.raises(UserError, match=r"classes is \['a', 'c'\], and was \['a', 'b'\]; see dataset.path"):
        scored(run, "other")


def test_other_images_than_in_training_are_scored_with_a_warning(folder, caplog):
    run = trained("changed")
    shutil.copy("photos/a/0.png", "photos/a/more.png")
    result = scored(run, "other")
    assert "have changed since the training (their hash differs)" in caplog.text
    assert not result["protocol"]["data_as_in_training"]


def test_a_place_for_data_that_have_none_is_refused(tiny_run):
    with pytest.raises(UserError, match="dataset.path is for runs on your own images"):
        evaluation.run(config("eval", f"ckpt={tiny_run}", "dataset.path=x", *FAST), output())
