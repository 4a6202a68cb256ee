"""What `diffuse sample edit.*` cannot do is refused in words, before anything is written."""

from pathlib import Path

import numpy as np
import pytest

from diffuse.commands import eval as eval_command
from diffuse.commands import train
from diffuse.system.errors import UserError
from tests.support.commands import FAST, TINY, config, output
from tests.support.editing import DDIM, make_files, sampled

IMAGE, MASK = "edit.image=IMAGES", "edit.mask=FILES/right.png"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_files(tmp_path_factory.mktemp("given"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([MASK], "edit.mask needs edit.image=IMAGE_OR_FOLDER"),
        (["edit.strength=0.5"], "edit.strength needs edit.image"),
        (["edit.encode=true"], "edit.encode needs edit.image"),
        (["edit.frames=5"], "edit.frames needs edit.interpolate"),
        ([IMAGE, "edit.strength=0"], "edit.strength must be above 0 and at most 1 or null, not 0"),
        ([IMAGE, "edit.strength=1.5"], "edit.strength must be above 0 and at most 1 or null, not 1.5"),
        ([IMAGE, "edit.encode=true", MASK], "edit.encode and edit.mask exclude each other: it goes all the way"),
        ([IMAGE, "edit.encode=true", "edit.strength=1"], "edit.encode and edit.strength exclude each other"),
        ([IMAGE, "edit.interpolate=[1,2]"], "edit.interpolate and edit.image exclude each other: .* noise alone"),
        ([IMAGE, "edit.noise=FILES/n.npz"], "edit.noise and edit.image exclude each other"),
        (["edit.interpolate=[1]"], r"edit.interpolate must be two seeds or more, such as \[0,1,2\], not \[1\]"),
        (["edit.interpolate=[1,2]", "edit.frames=1"], "edit.frames must be at least 2 or null, not 1"),
        (["edit.interpolate=[1,2]", "n=4"], "n follows from edit.interpolate and edit.frames: leave it out"),
        (["edit.interpolate=[1,2]", "sampler=ddpm"], "edit.interpolate needs a sampler that adds no noise, .*ddpm"),
        (["edit.interpolate=[1,2]", "sampler.eta=0.5"], "edit.interpolate needs a sampler that adds no noise"),
        ([IMAGE, "edit.encode=true", "sampler=repaint"], "sampler=repaint paints what a mask leaves open: .*edit.mask"),
        ([IMAGE, "edit.encode=true", "sampler=ddpm"], "edit.encode needs a sampler that adds no noise"),
        ([IMAGE, "edit.encode=true", "n=4"], "n must be at most 3, the number of images to encode, not 4"),
        (["sampler=repaint"], "sampler=repaint paints what a mask leaves open"),
        ([IMAGE, MASK, "sampler=repaint", "sampler.steps=5"], "sampler.jump_length must be at least 1 and below 5"),
        ([IMAGE, MASK, "sampler=repaint", "sampler.resamplings=0"], "sampler.resamplings must be at least 1, not 0"),
        (["edit.image=nowhere.png"], r"edit.image: 1 of 1 files cannot be used: nowhere.png \(does not exist\)"),
        (["edit.image=FILES/text.png"], r"edit.image: 1 of 1 files cannot be used: text.png \(is not an image\)"),
        (["edit.image=FILES/empty"], "edit.image=.* holds no images"),
        ([IMAGE, "edit.mask=FILES/large.png"], r"large.png \(is 16 x 16, and the run's images are 8 x 8: "),
        ([IMAGE, "edit.mask=FILES/text.png"], r"edit.mask: .*text.png \(is not an image\)"),
        ([IMAGE, "edit.mask=FILES/black.png"], "has no white pixel, so there is nothing to paint"),
        (["edit.noise=FILES/text.png"], "must be a noise.npz of .*, and it holds something else"),
        (["edit.noise=FILES/shape.npz"], r"must be finite float32 of shape \[k, 1, 8, 8\], .* not float32 \[2, 3, 8"),
        (["edit.noise=FILES/nan.npz"], "noise must be finite"),
        (["edit.noise=FILES/zero.npz"], "has noise that is 0 everywhere"),
        (["edit.noise=FILES/array.npy"], "must be a noise.npz of"),
        (["edit.noise=FILES/std.npz"], "has standard deviation 80, and noise of this run has 1: it is of another"),
        (["edit.noise=FILES/time.npz"], "edit.noise is of time 981, and this sampler begins at 1000: choose"),
        (["edit.noise=FILES/n.npz", "edit.interpolate=[0,2]"], "must be rows of edit.noise, from 0 to 1, not 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_edited_is_refused_and_leaves_nothing(tiny_run, files, words, message):
    noise = np.ones((2, 1, 8, 8), np.float32)
    np.savez(files / "zero.npz", noise=0 * noise, time=1000.0, prior_std=1.0)
    np.save(files / "array.npy", noise)
    np.savez(files / "n.npz", noise=noise, time=1000.0, prior_std=1.0)
    np.savez(files / "std.npz", noise=noise, time=1000.0, prior_std=80.0)
    np.savez(files / "time.npz", noise=noise, time=981.0, prior_std=1.0)
    np.savez(files / "nan.npz", noise=noise + np.nan, time=1000.0, prior_std=1.0)
    np.savez(files / "shape.npz", noise=np.zeros((2, 3, 8, 8), np.float32), time=1000.0, prior_std=1.0)
    words = [word.replace("FILES", str(files)).replace("IMAGES", str(files / "images")) for word in words]
    first = [] if any(word.startswith("sampler=") for word in words) else DDIM
    before = set(tiny_run.rglob("*"))
    with pytest.raises(UserError, match=message):
        sampled(tiny_run, "refused", *first, *words)
    assert set(tiny_run.rglob("*")) == before


def test_images_without_a_range_are_not_edited(gaussian_run, files):
    with pytest.raises(UserError, match="edit.image is for runs on 8-bit images, .* values that are not 8-bit pixels"):
        sampled(gaussian_run, "refused", f"edit.image={files / 'images'}")


def test_scores_and_trainings_have_no_mask(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="sampler=repaint paints what a mask leaves open"):
        train.run(config("train", *TINY, "name=x", "sampler=repaint"), output())
    words = ["n=4", "metrics=[fid]", "features=classifier", "sampler=repaint", *FAST]
    with pytest.raises(UserError, match="sampler=repaint paints what a mask leaves open"):
        eval_command.run(config("eval", f"ckpt={tiny_run}", "name=x", *words), output())
