"""`diffuse sample edit.*`: what is exact, what is recorded, what is refused, and that a kill changes nothing."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffuse.commands import sample, train
from diffuse.data.images import to_uint8
from diffuse.runs.recommended import CHOICES
from diffuse.runs.trained import load
from diffuse.scoring.feature_rows import Rows
from diffuse.system.errors import UserError
from diffuse.system.files import CONFIGS, sha256
from diffuse.system.randomness import ImageNoise
from tests.support.commands import FAST, TINY, config, diffuse, output
from tests.support.editing import DDIM, make_files, sampled
from tests.support.making import random, save
from tests.support.processes import until

SAMPLERS = sorted({path.stem for path in (CONFIGS / "sampler").glob("*.yaml")} - CHOICES.keys())
# Few steps for each; methods whose step sizes or pieces are not `steps` have keys of their own.
FEW = {
    "ode": ["sampler.tolerance=0.1"],
    "repaint": ["sampler.steps=4", "sampler.resamplings=2", "sampler.jump_length=2"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_files(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on other paths from data to noise, with other predictions, and with a border around images."""
    folder, found = tmp_path_factory.mktemp("others"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, words in {
            "flow": ["method=flow"],
            "edm": ["method=edm"],
            "v": ["schedule=linear", "schedule.zero_terminal_snr=true", "prediction=v"],
            "learned": ["method=improved_ddpm"],
            "padded": ["schedule=vp", "dataset.pad=2", "prediction=x0"],
        }.items():
            train.run(config("train", *TINY, "steps=2", f"name={name}", *words), output())
            found[name] = folder / "outputs" / name
    return found


def given(files: Path, *numbers: int) -> np.ndarray:
    return np.stack([np.asarray(Image.open(files / "images" / f"{number}.png")) for number in numbers])[..., None]


# ------------------------------------------------------------------------------------------------------- inpainting


@pytest.mark.parametrize("guidance", ["none", "classifier_free"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_known_pixels_are_exact_for_every_sampler(conditional_run, files, sampler, guidance):
    words = [f"sampler={sampler}", *FEW.get(sampler, ["sampler.steps=4"]), f"guidance={guidance}"]
    mask, name = files / "right.png", f"mask-{sampler}-{guidance}"
    drawn, facts = sampled(conditional_run, name, f"edit.image={files / 'images'}", f"edit.mask={mask}", "n=7", *words)
    np.testing.assert_array_equal(drawn[:, :, :5], given(files, 0, 1, 2, 0, 1, 2, 0)[:, :, :5])
    assert (drawn[:, :, 5:] != given(files, 0, 1, 2, 0, 1, 2, 0)[:, :, 5:]).mean() > 0.5
    assert facts["edit"]["mask_sha256"] == facts["made_from"][str(mask)] == sha256(mask)
    assert facts["edit"]["strength"] == 1


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("run", ["flow", "edm", "v", "learned", "padded"])
def test_every_sampler_on_every_path_keeps_them_or_is_refused_in_words(others, files, run, sampler):
    """With a part of the steps alone, too."""
    words = [f"sampler={sampler}", *FEW.get(sampler, ["sampler.steps=4"]), f"edit.image={files / 'images'}", "n=3"]
    words += [f"edit.mask={files / 'right.png'}", "trajectory=false"]
    for strength in (1, 0.8):
        try:
            drawn, _ = sampled(others[run], f"{sampler}-{strength}", *words, f"edit.strength={strength}")
        except UserError as error:
            assert run in ("flow", "v"), error
            assert sampler in ("analytic_ddim", "annealed_langevin"), error
            assert "where alpha is 0" in str(error) or "must have alpha > 0" in str(error)
            continue
        np.testing.assert_array_equal(drawn[:, :, :5], given(files, 0, 1, 2)[:, :, :5])


# ----------------------------------------------------------------------------------------------------------- SDEdit


def test_an_image_is_walked_from_its_own_noise_on(tiny_run, files):
    """The same from the library: three of five steps, from x_t of the image with the noise that the sample has."""
    image = files / "images" / "1.png"
    drawn, facts = sampled(tiny_run, "sdedit", f"edit.image={image}", "edit.strength=0.6", "seed=4", *DDIM)
    assert len(drawn) == 8
    assert facts["edit"] == {"images": 1, "images_sha256": sha256(image), "strength": 0.6, "start": 501.0}
    assert facts["made_from"][str(image)] == sha256(image)
    assert (facts["evaluations"], facts["network_calls"], facts["sampler"]["steps"]) == (3, 3, 5)
    network = load(str(tiny_run))
    x0 = torch.from_numpy(given(files, 1)).permute(0, 3, 1, 2) / 127.5 - 1
    noise = ImageNoise(4, "sample", range(8))(torch.empty(8, 1, 8, 8))
    alpha, sigma = network.schedule.alpha_sigma(torch.tensor(501.0))
    from diffuse import Clipped, Denoiser, ddim

    grid = torch.tensor([501.0, 251.0, 1.0, 0.0], dtype=torch.float64)
    *_, expected = ddim(Clipped(Denoiser(network.net, network.schedule)), alpha * x0 + sigma * noise, grid)
    off = np.abs(to_uint8(expected).permute(0, 2, 3, 1).numpy().astype(int) - drawn)
    assert off.max() <= 1


def test_strength_1_is_a_plain_sample_and_a_little_is_nearly_the_image(tiny_run, files):
    image = f"edit.image={files / 'images' / '0.png'}"
    plain, _ = sampled(tiny_run, "from-plain-noise", "n=4", "sampler=ddpm", "sampler.steps=6")
    whole, _ = sampled(tiny_run, "whole", "n=4", "sampler=ddpm", "sampler.steps=6", image, "edit.strength=1")
    np.testing.assert_array_equal(plain, whole)
    nearly, facts = sampled(tiny_run, "nearly", image, "edit.strength=0.01", *DDIM)
    assert facts["edit"]["start"] == 1  # the last time before 0, of which at least one step is taken
    assert np.abs(nearly.astype(int) - given(files, 0)).mean() < 10


def test_an_adaptive_sampler_walks_a_share_of_its_time(tiny_run, files):
    words = ["sampler=ode", "sampler.tolerance=0.1", f"edit.image={files / 'images'}", "edit.strength=0.3"]
    drawn, facts = sampled(tiny_run, "ode-part", *words)
    assert facts["edit"]["start"] == 300
    assert len(drawn) == 3  # one of each in the folder
    alone, _ = sampled(tiny_run, "ode-alone", *words, "n=1")
    np.testing.assert_array_equal(drawn[:1], alone)


def test_images_are_decoded_as_those_of_data_sets(tiny_run, files):
    """The middle square, scaled by Pillow's bicubic filter, in grey."""
    drawn, _ = sampled(
        tiny_run, "photo", f"edit.image={files / 'photo.png'}", f"edit.mask={files / 'right.png'}", *DDIM
    )
    grey = Image.open(files / "photo.png").convert("L").crop((0, 5, 20, 25)).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(drawn[0, :, :5, 0], np.asarray(grey)[:, :5])


def test_an_edited_image_depends_on_its_seed_number_and_source_alone(tiny_run, files):
    words = [f"edit.image={files / 'images'}", "sampler=ddpm", "sampler.steps=4", "edit.strength=0.7"]
    many, _ = sampled(tiny_run, "many", *words, "n=70", "batch_size=64")
    few, _ = sampled(tiny_run, "few", *words, "n=5", "batch_size=1")
    np.testing.assert_array_equal(many[:5], few)


def test_the_grid_shows_what_was_given_beside_what_was_made(tiny_run, files):
    words = [f"edit.image={files / 'images'}", f"edit.mask={files / 'right.png'}", "n=8"]
    drawn, _ = sampled(tiny_run, "shown", *words, *DDIM)
    tile = 50
    picture = np.asarray(Image.open(tiny_run / "samples" / "shown" / "grid.png"))
    assert picture.shape == (3 * tile + 2, 6 * tile + 2, 3)

    def shown(row: int, column: int) -> np.ndarray:
        return picture[row * tile + 2 : (row + 1) * tile : 6, column * tile + 2 : (column + 1) * tile : 6, 0]

    masked = given(files, 1)[0, :, :, 0].copy()
    masked[:, 5:] = 128
    np.testing.assert_array_equal(shown(1, 0), given(files, 1)[0, :, :, 0])
    np.testing.assert_array_equal(shown(1, 1), masked)
    assert (shown(1, 2) == 128).all()
    np.testing.assert_array_equal(shown(1, 3), drawn[1, :, :, 0])
    np.testing.assert_array_equal(shown(2, 4), drawn[5, :, :, 0])
    assert (shown(2, 5) == 128).all()


# ---------------------------------------------------------------------------------------------------- interpolation


def test_the_ends_of_an_interpolation_are_the_samples_of_those_seeds(tiny_run, conditional_run, gaussian_run):
    for run in (tiny_run, conditional_run, gaussian_run):
        drawn, facts = sampled(run, "between", "edit.interpolate=[5,2,9]", "edit.frames=4", *DDIM)
        assert (len(drawn), facts["edit"]["interpolate"]) == (7, [5, 2, 9])
        for frame, seed in ((0, 5), (3, 2), (6, 9)):
            plain, _ = sampled(run, f"seed-{seed}", f"seed={seed}", "n=1", *DDIM)
            np.testing.assert_array_equal(drawn[frame], plain[0])
        assert len({image.tobytes() for image in drawn}) == 7
    assert facts["label"] is None
    folder = tiny_run / "samples" / "between"
    assert Image.open(folder / "grid.png").size == (4 * 50 + 2, 2 * 50 + 2)
    assert Image.open(folder / "interpolation.gif").n_frames == 7


def test_an_interpolation_has_the_class_of_its_first_image(conditional_run):
    _, facts = sampled(conditional_run, "class", "edit.interpolate=[1,2]", *DDIM)
    assert facts["label"] == ["0"]
    drawn, facts = sampled(conditional_run, "class-7", "edit.interpolate=[1,2]", "label=7", *DDIM)
    assert (facts["label"], facts["n"]) == (["7"], 9)
    plain, _ = sampled(conditional_run, "class-7-plain", "seed=2", "n=1", "label=7", *DDIM)
    np.testing.assert_array_equal(drawn[-1], plain[0])


# --------------------------------------------------------------------------------------------------------- encoding


def test_encoding_reports_its_error_and_saves_noise_that_draws_the_same(tiny_run, files, caplog):
    caplog.set_level("INFO", logger="diffuse")
    words = ["sampler=ddim", "sampler.steps=20"]
    drawn, facts = sampled(tiny_run, "encode", f"edit.image={files / 'images'}", "edit.encode=true", *words)
    off = np.abs(drawn.astype(int) - given(files, 0, 1, 2))
    assert facts["off_by_grey_levels"] == {"mean": pytest.approx(off.mean(), abs=1e-4), "largest": off.max()}
    assert f"{off.max()} at the most" in caplog.text
    noise = tiny_run / "samples" / "encode" / "noise.npz"
    with np.load(noise) as arrays:
        assert arrays["noise"].shape == (3, 1, 8, 8)
        assert (float(arrays["time"]), float(arrays["prior_std"])) == (1000, 1)
        assert facts["checkpoint_sha256"] in str(arrays["made_with"])
    again, facts = sampled(tiny_run, "again", f"edit.noise={noise}", *words)
    np.testing.assert_array_equal(again, drawn)
    assert facts["edit"]["noise_sha256"] == facts["made_from"][str(noise)] == sha256(noise)
    between, _ = sampled(tiny_run, "rows", f"edit.noise={noise}", "edit.interpolate=[2,0]", "edit.frames=3", *words)
    np.testing.assert_array_equal(between[[0, 2]], drawn[[2, 0]])
    alone, _ = sampled(
        tiny_run, "encode-one", f"edit.image={files / 'images'}", "edit.encode=true", "n=1", "batch_size=1", *words
    )
    np.testing.assert_array_equal(alone, drawn[:1])


def test_encoding_begins_where_the_sampler_does_and_with_a_border(others, files):
    words = [f"edit.image={files / 'images'}", "edit.encode=true", "sampler=ddim", "sampler.steps=10"]
    for run in ("flow", "edm", "padded"):
        sampled(others[run], "encode", *words)
        with np.load(others[run] / "samples" / "encode" / "noise.npz") as arrays:
            assert arrays["noise"].shape[2:] == ((12, 12) if run == "padded" else (8, 8))
            assert np.isfinite(arrays["noise"]).all()


# ---------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("words", [["edit.strength=0.6"], ["edit.encode=true"]])
def test_an_edit_that_is_killed_goes_on_to_the_same_bytes(tiny_run, files, tmp_path, words):
    many = tmp_path / "many"
    for number in range(40):
        save(many / f"{number:02d}.png", random(8, 8, seed=number))
    words = [f"edit.image={many}", *words, "sampler=ddim", "sampler.steps=30", "batch_size=1", "trajectory=false"]
    name = words[1].replace("=", "-")
    line = [sys.executable, "-m", "diffuse", "sample", f"ckpt={tiny_run}", f"name=killed-{name}", *FAST, *words]
    drawn = tiny_run / "samples" / f"killed-{name}" / "unfinished" / ("noise.npy" if "encode" in name else "images.npy")
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        while not (drawn.exists() and drawn.stat().st_size > 600) and process.poll() is None:
            until(process, 0.002)
        process.send_signal(signal.SIGKILL)
    found, facts = sampled(tiny_run, f"killed-{name}", *words)
    expected, whole = sampled(tiny_run, f"whole-{name}", *words, "batch_size=64")
    np.testing.assert_array_equal(found, expected)
    assert facts.get("off_by_grey_levels") == whole.get("off_by_grey_levels")


def test_another_image_under_the_same_name_is_refused(tiny_run, files, tmp_path):
    image = tmp_path / "image.png"
    shutil.copy(files / "images" / "0.png", image)
    words = [f"edit.image={image}", *DDIM]
    sampled(tiny_run, "twice", *words)
    sampled(tiny_run, "twice", *words)
    moved = shutil.copy(image, tmp_path / "moved.png")
    sampled(tiny_run, "twice", f"edit.image={moved}", *DDIM)
    shutil.copy(files / "images" / "1.png", image)
    with pytest.raises(UserError, match=r"differs in edit\.images_sha256"):
        sampled(tiny_run, "twice", *words)
    with pytest.raises(UserError, match=r"differs in edit\.start \(was 501\.0, now 750\.0\), edit\.strength"):
        sampled(tiny_run, "twice", f"edit.image={moved}", "edit.strength=0.8", *DDIM)


def test_other_edits_under_an_unfinished_name_begin_again(tiny_run, files):
    words = [f"edit.image={files / 'images'}", *DDIM]
    expected, facts = sampled(tiny_run, "begun", *words)
    folder = tiny_run / "samples" / "begun"
    made_from = {key: value for key, value in facts.items() if key not in sample.MAY_DIFFER}
    black = np.zeros((2, 8, 8, 1), np.uint8)
    for edit, first in ((made_from["edit"], 0), ({**made_from["edit"], "strength": 0.1}, expected[0].max())):
        (folder / "samples.json").unlink()
        Rows(folder / "unfinished", {**made_from, "edit": edit}).extend(
            2, ["images"], lambda k: iter([{"images": black}])
        )
        assert sampled(tiny_run, "begun", *words)[0][0].max() == first


def test_from_the_command_line(tiny_run, files, tmp_path):
    words = [f"edit.image={files / 'images'}", f"edit.mask={files / 'right.png'}", "name=typed", *FAST, *DDIM]
    done = diffuse("sample", f"ckpt={tiny_run}", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 images of digits (step 30): 5 steps of ddim" in done.stdout
    done = diffuse("sample", f"ckpt={tiny_run}", *words, cwd=tmp_path)
    assert "samples/typed is finished: 3 images are drawn" in done.stdout
    wrong = diffuse("sample", f"ckpt={tiny_run}", "edit.mask=x.png", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.strip()) == (2, "error: edit.mask needs edit.image=IMAGE_OR_FOLDER")
