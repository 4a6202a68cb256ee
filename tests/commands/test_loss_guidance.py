"""Guidance towards a measurement, from the command line: the measurement is met, and bad files are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffuse.commands import sample
from diffuse.data.datasets import digits
from diffuse.runs.drawing import drawing_of
from diffuse.runs.trained import load_for
from diffuse.system.errors import UserError
from diffuse.system.files import sha256
from tests.support.commands import FAST, TINY, config, diffuse, output
from tests.support.scoring import save_network

LOSS = "guidance=loss"


def sampled(run: Path, name: str, *overrides: str) -> np.ndarray:
    words = [*FAST, "sampler=ddim", "sampler.steps=10", "n=6", "save=[npz]", *overrides]
    sample.run(config("sample", f"ckpt={run}", f"name=loss-{name}", *words), output())
    return np.load(run / "samples" / f"loss-{name}" / "samples.npz")["arr_0"][..., 0].astype(float)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real digit, whole and small, a mask of its right half, and files that do not fit."""
    folder = tmp_path_factory.mktemp("files")
    digit = digits().test.images[3, 0]
    Image.fromarray(digit).save(folder / "digit.png")
    Image.fromarray(digit.reshape(4, 2, 4, 2).mean((1, 3)).round().astype(np.uint8)).save(folder / "small.png")
    right = np.zeros((8, 8), np.uint8)
    right[:, 4:] = 255
    Image.fromarray(right).save(folder / "right.png")
    Image.fromarray(right[:4, :4]).save(folder / "mask4.png")
    (folder / "words.png").write_text("no image")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / "white.png")
    (folder / "damaged.npz").write_bytes(b"PK\x03\x04 and no more")
    save_network(folder / "tiles.pt")
    torch.jit.script(torch.nn.Conv2d(3, 4, 16)).save(str(folder / "large.pt"))
    np.save(folder / "vector48.npy", np.arange(48.0))
    np.save(folder / "vector5.npy", np.arange(5.0))
    return folder


def test_a_measurement_is_met_by_what_is_drawn(tiny_run, files):
    """Even a network that has hardly been trained gives images with the measurement: what is left is its noise."""
    plain = sampled(tiny_run, "plain")
    digit = np.asarray(Image.open(files / "digit.png")).astype(float)
    small = np.asarray(Image.open(files / "small.png")).astype(float)
    exact = [LOSS, "guidance.noise=0.01", f"guidance.target={files}/digit.png"]
    whole = sampled(tiny_run, "whole", *exact)
    assert np.abs(whole - digit).mean() < 6 < np.abs(plain - digit).mean()
    half = sampled(tiny_run, "half", *exact, "guidance.measure=mask", f"guidance.mask={files}/right.png")
    assert np.abs(half - digit)[:, :, :4].mean() < 6
    assert np.abs(half - digit)[:, :, 4:].mean() > 20
    tiles = sampled(
        tiny_run, "tiles", LOSS, "guidance.noise=0.01", f"guidance.target={files}/small.png",
        "guidance.measure=downsample", "guidance.factor=2",
    )  # fmt: skip
    of_whole = sampled(
        tiny_run, "tiles-of-whole", LOSS, "guidance.noise=0.01", f"guidance.target={files}/digit.png",
        "guidance.measure=downsample", "guidance.factor=2",
    )  # fmt: skip
    assert np.abs(of_whole - tiles).max() <= 4  # small.png has the means of digit.png, rounded
    means = tiles.reshape(-1, 4, 2, 4, 2).mean((2, 4))
    assert np.abs(means - small).mean() < 8 < np.abs(plain.reshape(-1, 4, 2, 4, 2).mean((2, 4)) - small).mean()


def test_features_of_an_image_and_a_stored_vector_of_them_guide_alike(tiny_run, files, tmp_path):
    digit = torch.from_numpy(np.asarray(Image.open(files / "digit.png")).astype(np.float32))
    vector = torch.nn.functional.adaptive_avg_pool2d(digit.expand(1, 3, 8, 8), 4).flatten()
    np.savez(tmp_path / "vector.npz", 3 * vector.numpy())  # its length does not matter
    words = [LOSS, "guidance.measure=features", f"guidance.features={files}/tiles.pt"]
    of_image = sampled(tiny_run, "of-image", *words, f"guidance.target={files}/digit.png")
    of_vector = sampled(tiny_run, "of-vector", *words, f"guidance.target={tmp_path}/vector.npz")
    assert np.abs(of_image - of_vector).max() <= 1
    plain = sampled(tiny_run, "unguided")

    def likeness(images: np.ndarray) -> float:
        found = torch.nn.functional.adaptive_avg_pool2d(
            torch.from_numpy(images).float()[:, None].expand(-1, 3, 8, 8), 4
        )
        return float(torch.nn.functional.cosine_similarity(found.flatten(1), vector[None]).mean())

    assert likeness(of_image) > likeness(plain) + 0.05


def test_files_are_recorded_and_an_image_does_not_depend_on_its_batch(tiny_run, files):
    words = [LOSS, f"guidance.target={files}/digit.png"]
    together = sampled(tiny_run, "together", *words)
    assert np.array_equal(together[:2], sampled(tiny_run, "alone", *words, "n=2"))
    facts = json.loads((tiny_run / "samples" / "loss-together" / "samples.json").read_text())
    digest = sha256(files / "digit.png")
    assert facts["guidance"]["target_sha256"] == digest
    assert facts["made_from"][f"{files}/digit.png"] == digest
    assert facts["network_calls"] == 10


@pytest.mark.parametrize(
    "measure", [["pixels"], ["blur"], ["downsample", "guidance.factor=2"], ["features", "guidance.features=F/tiles.pt"]]
)
def test_no_image_depends_on_its_batch(tiny_run, files, measure):
    """Convolutions differ in the last bits between batch sizes, and an adaptive sampler shows them."""
    words = [LOSS, f"guidance.target={files}/digit.png", "sampler=ode", "sampler.steps=null", "sampler.tolerance=0.1"]
    words += [f"guidance.measure={measure[0]}", *(word.replace("=F/", f"={files}/") for word in measure[1:])]
    typed = config("sample", f"ckpt={tiny_run}", *FAST, *words)
    drawing = drawing_of(load_for(typed), typed)
    alone, together = (drawing.draw(range(n))[:1] for n in (1, 70))
    assert torch.equal(alone, together)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "guidance.target is required"),
        (
            ["guidance.target=F/nowhere.png"],
            r"guidance.target: 1 of 1 files cannot be used: .*nowhere.png \(does not exist\)",
        ),
        (["guidance.target=F/words.png"], r"guidance.target: .*words.png \(is not an image\)"),
        (
            ["guidance.target=F/digit.png", "guidance.measure=masc"],
            "guidance.measure must be one of .*Did you mean 'mask'",
        ),
        (
            ["guidance.target=F/digit.png", "guidance.measure=mask"],
            "guidance.mask is required by guidance.measure=mask",
        ),
        (
            ["guidance.target=F/digit.png", "guidance.measure=mask", "guidance.mask=F/mask4.png"],
            r"guidance.mask: .*mask4.png \(is 4 x 4, and the run\'s images are 8 x 8: a mask is not resized\)",
        ),
        (
            ["guidance.target=F/digit.png", "guidance.mask=F/right.png"],
            "guidance.mask=.*right.png is for guidance.measure=mask, and the measure is pixels",
        ),
        (
            ["guidance.target=F/digit.png", "guidance.size=32", "guidance.measure=blur"],
            "guidance.size=32 is for guidance.measure=features",
        ),
        (["guidance.target=F/digit.png", "guidance.interval=0.5"], r"guidance.interval is a list: write .*=\[0.5\]"),
        (["guidance.target=F/digit.png", "guidance.measure=grey"], "guidance.measure=grey is for colour images"),
        (
            ["guidance.target=F/digit.png", "guidance.measure=downsample", "guidance.factor=3"],
            "guidance.factor must be a divisor of 8, not 3",
        ),
        (
            ["guidance.target=F/digit.png", "guidance.measure=blur", "guidance.blur=0"],
            "guidance.blur must be above 0 and at most 8, not 0",
        ),
        (["guidance.target=F/digit.png", "guidance.measure=features"], "guidance.features is required"),
        (
            ["guidance.target=F/digit.png", "guidance.measure=features", "guidance.features=F/words.png"],
            "guidance.features=.*words.png is not a network saved by torch.jit.save",
        ),
        (
            ["guidance.target=F/damaged.npz", "guidance.measure=features", "guidance.features=F/tiles.pt"],
            "guidance.target=.*damaged.npz is not a file with a vector",
        ),
        (
            ["guidance.target=F/digit.png", "guidance.measure=features", "guidance.features=F/large.pt"],
            "guidance.features=.*large.pt gives no differentiable vector for 8 x 8 pixels.*\\n.*guidance.size=N",
        ),
        (
            ["guidance.target=F/digit.png", "guidance.measure=mask", "guidance.mask=F/white.png"],
            "guidance.mask=.*white.png has no dark pixel, so nothing of the target would count",
        ),
        (
            ["guidance.target=F/vector5.npy", "guidance.measure=features", "guidance.features=F/tiles.pt"],
            "guidance.target=.*vector5.npy has 5 values, and the network's features 48",
        ),
        (
            ["guidance.target=F/digit.png", "guidance.noise=0", "guidance.covariance=null"],
            "guidance.noise must be positive without a covariance, not 0",
        ),
        (["guidance.target=F/digit.png", "guidance.noise=-1"], "guidance.noise must be at least 0, not -1"),
        (
            ["guidance.target=F/digit.png", "guidance.covariance=0"],
            "covariance must be positive or null, not 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tiny_run, files, words, message):
    with pytest.raises(UserError, match=message):
        sampled(tiny_run, "refused", LOSS, *(word.replace("=F/", f"={files}/") for word in words))
    assert not (tiny_run / "samples" / "loss-refused").exists()


def test_a_mistake_is_a_line_on_the_terminal(tmp_path):
    assert diffuse("train", *TINY, "name=a", cwd=tmp_path).returncode == 0
    done = diffuse("sample", "ckpt=outputs/a", LOSS, "guidance.target=nowhere.png", cwd=tmp_path)
    assert done.returncode == 1
    expected = "error: guidance.target: 1 of 1 files cannot be used: nowhere.png (does not exist)"
    assert done.stderr.strip().splitlines() == [expected]


def test_colouring_starts_from_a_grey_image(tmp_path):
    """A colour run on images of the user's own, guided by a grey one."""
    folder = tmp_path / "colours"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    words = ["dataset=folder", "dataset.path=colours", "dataset.size=8", "data_dir=data"]
    assert diffuse("train", *TINY, *words, "name=a", cwd=tmp_path).returncode == 0
    grey = generator.integers(60, 200, (8, 8), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    typed = ["n=3", "sampler=ddim", "sampler.steps=10", "name=x", "guidance.target=grey.png", "guidance.measure=grey"]
    done = diffuse("sample", "ckpt=outputs/a", *FAST, *typed, LOSS, "guidance.noise=0.01", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    drawn = np.load(tmp_path / "outputs/a/samples/x/samples.npz")["arr_0"].astype(float)
    luma = drawn @ np.array([0.299, 0.587, 0.114])
    assert np.abs(luma - grey).mean() < 8
