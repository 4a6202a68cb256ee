"""Edits together with guidance by gradients: each keeps what it promises, and guidance still changes the rest."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffuse.commands import train
from tests.support.commands import TINY, config, output
from tests.support.editing import DDIM, make_files, sampled

KINDS = ["classifier", "loss"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_files(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def guidances(tmp_path_factory: pytest.TempPathFactory, files: Path) -> dict[str, list[str]]:
    """The words of each kind of guidance."""
    folder = tmp_path_factory.mktemp("classifier")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.run(config("train", *TINY, "method=classifier", "steps=20", "optim.lr=1e-2", "name=clf"), output())
    classifier = ["guidance=classifier", f"guidance.ckpt={folder}/outputs/clf", "guidance.scale=20"]
    return {"classifier": classifier, "loss": ["guidance=loss", f"guidance.target={files}/images/2.png"]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", ["ddim", "unipc", "repaint"])
def test_known_pixels_are_exact_and_the_others_are_guided(tiny_run, files, guidances, kind, sampler):
    image = np.asarray(Image.open(files / "images" / "1.png"))
    words = [f"edit.image={files}/images/1.png", f"edit.mask={files}/right.png", "n=3"]
    words += [
        f"sampler={sampler}",
        "sampler.steps=4",
        *(["sampler.resamplings=2", "sampler.jump_length=2"] if sampler == "repaint" else []),
    ]
    plain, _ = sampled(tiny_run, f"g-{kind}-{sampler}-plain", *words)
    drawn, facts = sampled(tiny_run, f"g-{kind}-{sampler}", *words, *guidances[kind])
    for each in drawn:
        np.testing.assert_array_equal(each[:, :5, 0], image[:, :5])
    assert not np.array_equal(drawn, plain)
    assert facts["guidance"]["_target_"] == kind
    assert facts["edit"]["images"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_an_interpolation_are_the_guided_samples_of_those_seeds(tiny_run, guidances, kind):
    label = ["label=3"] if kind == "classifier" else []
    words = [*DDIM, *guidances[kind], *label]
    drawn, _ = sampled(tiny_run, f"g-{kind}-between", "edit.interpolate=[5,2]", "edit.frames=3", *words)
    for frame, seed in ((0, 5), (-1, 2)):
        plain, _ = sampled(tiny_run, f"g-{kind}-seed-{seed}", f"seed={seed}", "n=1", *words)
        np.testing.assert_array_equal(drawn[frame], plain[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_given_image_is_encoded_and_its_noise_draws_the_same(tiny_run, files, guidances, kind):
    words = [*DDIM, *guidances[kind]]
    drawn, facts = sampled(tiny_run, f"g-{kind}-encode", f"edit.image={files}/images/0.png", "edit.encode=true", *words)
    noise = tiny_run / "samples" / f"g-{kind}-encode" / "noise.npz"
    again, _ = sampled(tiny_run, f"g-{kind}-again", f"edit.noise={noise}", *words)
    np.testing.assert_array_equal(drawn, again)
    assert np.isfinite(facts["off_by_grey_levels"]["largest"])
