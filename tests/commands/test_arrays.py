"""Images that are no photographs, and no squares: rectangles, many channels, numbers in units of their own."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffuse.commands import eval as evaluation
from diffuse.commands import export, sample, train
from diffuse.runs.trained import load, load_for
from diffuse.scoring.likelihood_part import LikelihoodPart
from diffuse.scoring.likelihoods import ScoredImages
from diffuse.system.device import Device
from diffuse.system.errors import UserError
from tests.support.commands import TINY, config, output

FAST = ["device=cpu", "device.precision=float32"]
SHIFT, SCALE = np.array([280.0, 0.5, -3e4, 0.0]), np.array([8.0, 0.01, 500.0, 1.0])
ROUGH = ["sampler=ddim", "sampler.steps=4"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Fields of 6 x 10 pixels and 4 channels: standard normal ones, and the same in units."""
    folder = tmp_path_factory.mktemp("arrays")
    plain = np.random.default_rng(0).standard_normal((80, 6, 10, 4)).cumsum(2)
    plain = ((plain - plain[:40].mean((0, 1, 2))) / plain[:40].std((0, 1, 2))).astype(np.float32)
    np.savez(folder / "plain.npz", plain[:40])
    np.savez(folder / "plain_test.npz", plain[40:])
    np.savez(folder / "units.npz", SHIFT + SCALE * plain[:40].astype(np.float64))
    np.savez(folder / "units_test.npz", SHIFT + SCALE * plain[40:].astype(np.float64))
    return folder


@pytest.fixture(autouse=True)
def here(home, monkeypatch) -> None:
    monkeypatch.chdir(home)


def trained(name: str, file: str, *overrides: str) -> Path:
    run = Path("outputs", name)
    if not run.exists():
        words = ["dataset=npz", f"dataset.path={file}.npz", "data_dir=data", f"name={name}", *overrides]
        train.run(config("train", *TINY, *words), output())
    return run


def in_units() -> Path:
    return trained("units", "units", "dataset.test_path=units_test.npz", "dataset.normalise=std")


def drawn(run: Path, name: str, *overrides: str) -> np.ndarray:
    folder = run / "samples" / name
    if not folder.exists():
        sample.run(config("sample", f"ckpt={run}", f"name={name}", "n=5", *ROUGH, *FAST, *overrides), output())
    return np.load(folder / "samples.npz")["arr_0"]


def test_samples_are_in_the_units_of_the_data_and_so_are_likelihoods():
    """A run on the same fields without units is the same run: samples times the scale, the density divided by it."""
    units = in_units()
    plain = trained("plain", "plain", "dataset.test_path=plain_test.npz", "dataset.normalise=none")
    given = np.load("units.npz")["arr_0"]
    mean, std = given.mean((0, 1, 2)), given.std((0, 1, 2))
    found, expected = drawn(units, "one"), drawn(plain, "one")
    assert found.dtype == np.float32 and found.shape == (5, 6, 10, 4)
    np.testing.assert_allclose((found - mean) / std, expected, atol=2e-3 * np.abs(expected).max())
    scores = {}
    for run in (units, plain):
        words = ["metrics=[bound,ode]", "n=6", "levels=5", "ode.solver=heun", "ode.steps=4", "name=one", *FAST]
        evaluation.run(config("eval", f"ckpt={run}", *words), output())
        scores[run.name] = json.loads((run / "eval/one/eval.json").read_text())["values"]
    for name in ("bound", "ode"):
        difference = scores["units"][name][name] - scores["plain"][name][name]
        assert difference == pytest.approx(np.log2(std).mean(), abs=2e-3)


def test_what_the_network_sees_travels_with_the_run(home):
    """The scale is that of the training, wherever the run's checkpoint is and whatever became of the data."""
    run = in_units()
    network = load(str(run), Device("cpu", "float32"))
    given = np.load("units.npz")["arr_0"]
    np.testing.assert_allclose(network.kind.shift, given.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(network.kind.scale, given.std((0, 1, 2)), rtol=1e-4)
    expected = drawn(run, "one")
    export.run(config("export", f"ckpt={run}", "to=safetensors"), output())
    weights = run / "export/safetensors/model.safetensors"
    sample.run(config("sample", f"ckpt={weights}", "name=two", "n=5", *ROUGH, *FAST), output())
    np.testing.assert_array_equal(np.load(weights.parent / "samples/two/samples.npz")["arr_0"], expected)
    assert f"channel by channel, for {network.kind.shift[0]:.9g} + " in (weights.parent / "README.md").read_text()


def test_pictures_of_a_run_show_each_channel():
    run = in_units()
    drawn(run, "one")
    grid = Image.open(run / "samples/one/grid.png")
    # two columns of four channels, each 6 x 10 pixels eight times as large
    assert grid.size == (1 * (4 * 81 - 1 + 2) + 2, 5 * 50 + 2)
    values = np.asarray(grid)
    assert values.std() > 20 and (run / "samples/one/trajectory.png").exists()
    assert (run / "images/step_00000006.png").exists()


def test_a_stated_range_is_kept_by_samples():
    run = trained("range", "units", "dataset.normalise=range", "dataset.range=[-50000,2000]")
    found = drawn(run, "one", "sampler=ddpm", "sampler.steps=3")
    assert found.min() >= -50000 and found.max() <= 2000
    evaluation.run(config("eval", f"ckpt={run}", "metrics=[bound]", "n=4", "levels=3", *FAST), output())


def test_the_border_of_numbers_is_noise_and_they_themselves_are_left_alone():
    """What has a density needs no dequantisation; the border has the width of the flow at its smallest time."""
    run = trained("framed", "units", "dataset.normalise=std", "dataset.pad=1", "unet.channel_mult=[1,1]")
    typed = config("eval", f"ckpt={run}", "metrics=[ode]", "n=2", "ode.solver=heun", "ode.steps=2", *FAST)
    scoring = LikelihoodPart(typed, load_for(typed))
    images = ScoredImages(scoring.network, 2, 0)
    x0, _ = images.batch(images.order)
    assert (x0[..., 0, :] == 0).all()
    spread, log_q = scoring.scores["ode"].dequantise(x0, images.noise("dequantise", images.order))
    assert torch.equal(scoring.network.kind.crop(spread), scoring.network.kind.crop(x0))
    border = torch.ones(8, 12, dtype=torch.bool)
    border[1:7, 1:11] = False
    normal = torch.distributions.Normal(0.0, math.sqrt(1e-4 / (1 - 1e-4)))
    expected = normal.log_prob(spread[..., border].double()).sum((1, 2))
    torch.testing.assert_close(log_q, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(scoring.scores["ode"].nats(images, images.order)[0].isfinite().all(), torch.tensor(True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset.normalise=none"], "dataset.normalise"),
        (["dataset.mean=[0]", "dataset.std=[1]"], "dataset.mean"),
    ],
)
def test_a_run_is_not_continued_with_other_values(words, message):
    run = in_units()
    again = ["dataset=npz", "dataset.path=units.npz", "dataset.test_path=units_test.npz", "dataset.normalise=std"]
    with pytest.raises(UserError, match=message):
        train.run(config("train", *TINY, *again, "data_dir=data", f"name={run.name}", "steps=9", *words), output())


@pytest.mark.parametrize("metrics", ["fid", "memorisation"])
def test_scores_of_pictures_refuse_other_numbers(metrics):
    with pytest.raises(UserError, match="have values that are not 8-bit pixels"):
        evaluation.run(config("eval", f"ckpt={in_units()}", f"metrics=[{metrics}]", "n=4", *FAST), output())


def test_files_of_numbers_are_no_pictures_to_edit():
    Image.new("RGB", (10, 6)).save("one.png")
    with pytest.raises(UserError, match="edit.image is for runs on 8-bit images, .* have 4|values that are not 8-bit"):
        sample.run(config("sample", f"ckpt={in_units()}", "edit.image=one.png", *FAST), output())


@pytest.fixture
def photographs() -> Path:
    """A run on files of 13 x 20 pixels in two classes, brighter to the left or to the top, cropped to 8 x 12."""
    places = [Path("photos", "ab"[number % 2], f"{number}.png") for number in range(40)]
    random = np.random.default_rng(1)
    for number, place in enumerate(places):
        place.parent.mkdir(parents=True, exist_ok=True)
        ramp = np.linspace(200, 60, 20)[None] if number % 2 else np.linspace(200, 60, 13)[:, None]
        Image.fromarray((ramp + random.normal(0, 20, (13, 20))).clip(0, 255).astype(np.uint8)).convert("RGB").save(
            place
        )
    run = Path("outputs/photographs")
    if not run.exists():
        words = ["dataset=folder", "dataset.path=photos", "dataset.size=[8,12]", "dataset.flip=true", "data_dir=data"]
        train.run(config("train", *TINY, *words, "class_conditional=true", f"name={run.name}"), output())
    return run


def test_rectangles_are_drawn_edited_and_scored(photographs):
    assert drawn(photographs, "one").shape == (5, 8, 12, 3)
    assert Image.open(photographs / "samples/one/images/00000.png").size == (12, 8)
    mask = np.zeros((8, 12), np.uint8)
    mask[:, 9:] = 255
    Image.fromarray(mask).save("mask.png")
    Image.open("photos/a/0.png").crop((0, 0, 12, 8)).save("given.png")
    found = drawn(photographs, "painted", "edit.image=given.png", "edit.mask=mask.png")
    given = np.asarray(Image.open("given.png"))
    assert (found[:, :, :9] == given[None, :, :9]).all() and (found[:, :, 9:] != given[None, :, 9:]).any()
    words = ["metrics=[fid,memorisation]", "features=classifier", "n=20", "name=one", *ROUGH, *FAST]
    evaluation.run(config("eval", f"ckpt={photographs}", *words), output())
    assert (photographs / "eval/one/memorisation.png").exists()


def test_masks_and_targets_have_the_form_of_the_images(photographs):
    Image.new("L", (8, 12), 255).save("standing.png")
    with pytest.raises(UserError, match="is 12 x 8, and the run's images are 8 x 12: a mask is not resized"):
        drawn(photographs, "no", "edit.image=photos/a/0.png", "edit.mask=standing.png")


def test_a_target_may_be_the_measurement_itself(photographs):
    """An image of 2 x 3 pixels is what a factor of 4 leaves of one of 8 x 12 in such blocks."""
    blocks = np.random.default_rng(2).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    Image.fromarray(blocks).save("blocks.png")
    Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).save("large.png")
    guided = ["guidance=loss", "guidance.measure=downsample", "guidance.factor=4"]
    found, expected = (drawn(photographs, name, *guided, f"guidance.target={name}.png") for name in ("blocks", "large"))
    assert found.shape == (5, 8, 12, 3)
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_rectangles_go_to_diffusers_and_come_back(photographs):
    export.run(config("export", f"ckpt={photographs}", "to=diffusers"), output())
    folder = photographs / "export/diffusers"
    assert json.loads((folder / "unet/config.json").read_text())["sample_size"] == [8, 12]
    there, here = (load(str(path), Device("cpu", "float32")) for path in (folder, photographs))
    assert there.kind.size == (8, 12)
    x, t, y = torch.randn(2, 3, 8, 12), torch.tensor([3.0, 700.0]), torch.tensor([0, 1])
    torch.testing.assert_close(there.net(x, t, y), here.net(x, t, y), rtol=0, atol=0)
    with pytest.raises(UserError, match=r"images of 8 x 12 \(there squares\)"):
        export.run(config("export", f"ckpt={photographs}", "to=improved_diffusion"), output())
