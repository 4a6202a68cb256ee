"""Sampling from a checkpoint: what is written, and that an image depends on (seed, i) alone."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffuse.commands import sample
from diffuse.data.images import to_uint8
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.samplers.ancestral import ancestral
from diffuse.mathematics.samplers.ddim import ddim
from diffuse.mathematics.spacings import SPACINGS, time_grid
from diffuse.mathematics.variances import fixed_large, fixed_small
from diffuse.mathematics.wrappers import Clipped
from diffuse.runs.checkpoint import find
from diffuse.runs.drawing import drawing_of
from diffuse.runs.trained import load, load_for
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import sha256
from diffuse.system.randomness import ImageNoise
from tests.support.commands import config, output
from tests.support.comparing import read
from tests.support.running import as_it_is

FAST = ["device=cpu", "device.precision=float32", "sampler=ddim", "sampler.steps=3"]


def sampled(run: Path, name: str, *overrides: str) -> Path:
    sample.run(config("sample", f"ckpt={run}", f"name={name}", *FAST, *overrides), output())
    return run / "samples" / name


def images(folder: Path) -> np.ndarray:
    return np.load(folder / "samples.npz")["arr_0"]


def test_a_folder_of_samples_is_complete(tiny_run):
    folder = sampled(tiny_run, "complete", "n=5")
    assert sorted(path.name for path in folder.iterdir()) == [
        ".hydra", ".lock", "grid.png", "images", "sample.log", "samples.json", "samples.npz", "trajectory.gif",
        "trajectory.png",
    ]  # fmt: skip
    array = images(folder)
    assert array.shape == (5, 8, 8, 1)
    assert array.dtype == np.uint8
    assert sorted(path.name for path in (folder / "images").iterdir()) == [f"{i:05d}.png" for i in range(5)]
    for i in range(5):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / "images" / f"{i:05d}.png")), array[i, :, :, 0])
    facts = json.loads((folder / "samples.json").read_text())
    newest = tiny_run / "checkpoints" / "step_00000030.pt"
    assert facts["checkpoint"] == str(newest)
    assert facts["checkpoint_sha256"] == sha256(newest)
    assert (facts["seed"], facts["n"], facts["network_calls"], facts["step"]) == (0, 5, 3, 30)
    assert facts["sampler"]["_target_"] == "ddim"
    assert facts["sampler"]["steps"] == 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_an_image_does_not_depend_on_its_batch(tiny_run, precision, sampler):
    """Bit for bit on the processor, for any batch size and any number of images, with noise in every step."""
    options = [f"device.precision={precision}", f"sampler={sampler}", "sampler.steps=4", "seed=3"]
    options += ["sampler.eta=0.8"] if sampler == "ddim" else []
    tag = f"{precision}-{sampler}"
    all_at_once = images(sampled(tiny_run, f"{tag}-a", "n=70", "batch_size=512", *options))
    one_by_one = images(sampled(tiny_run, f"{tag}-b", "n=70", "batch_size=1", *options))
    fewer = images(sampled(tiny_run, f"{tag}-c", "n=3", "batch_size=33", *options))
    np.testing.assert_array_equal(all_at_once, one_by_one)
    np.testing.assert_array_equal(all_at_once[:3], fewer)


def test_floats_do_not_depend_on_the_batch_either(gaussian_run):
    """Without the rounding to bytes, which could hide a difference in the last bits."""
    options = ["sampler=ddpm", "sampler.steps=5", "device.precision=bfloat16"]
    together = images(sampled(gaussian_run, "a", "n=66", "batch_size=66", *options))
    apart = images(sampled(gaussian_run, "b", "n=66", "batch_size=5", *options))
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together, apart)
    assert not (gaussian_run / "samples" / "a" / "images").exists()


@pytest.mark.parametrize(
    ("options", "walk"),
    [
        (["sampler.spacing=quadratic", "sampler.eta=0.6"], partial(ddim, eta=0.6)),
        (["sampler.spacing=quadratic", "sampler.clip=false"], ddim),
        (
            ["sampler=ddpm", "sampler.spacing=log_snr", "sampler.variance=fixed_small"],
            partial(ancestral, variance=fixed_small),
        ),
        (["sampler=ddpm", "sampler.clip=false"], partial(ancestral, variance=fixed_large)),
    ],
)
def test_the_images_are_those_of_the_core(tiny_run, request, options, walk):
    """The same images in a few lines from the library and the EMA weights: each option reaches its formula."""
    drawn = images(
        sampled(tiny_run, request.node.name.replace("[", "-").rstrip("]"), "n=9", "seed=5", "sampler.steps=6", *options)
    )
    content = read(tiny_run / "checkpoints" / "last.pt")
    assert not torch.equal(content["ema"]["stem.weight"], content["model"]["stem.weight"])
    trained = load(str(tiny_run))
    trained.net.load_state_dict(content["ema"])
    spacing = next((option.partition("=")[2] for option in options if "spacing" in option), "uniform")
    denoiser = Denoiser(trained.net, trained.schedule)
    denoiser = denoiser if "sampler.clip=false" in options else Clipped(denoiser)
    noise = ImageNoise(5, "sample", range(9))
    *_, x = walk(
        denoiser, noise(torch.empty(9, 1, 8, 8)), time_grid(trained.schedule, 6, SPACINGS[spacing]), noise=noise
    )
    difference = np.abs(to_uint8(x).permute(0, 2, 3, 1).numpy().astype(int) - drawn)
    assert difference.max() <= 1  # network calls of another size differ in the last bits, which may move a rounding
    assert (difference > 0).mean() < 0.01


def test_the_label_reaches_the_network(conditional_run):
    threes, sevens = (images(sampled(conditional_run, f"l{label}", "n=3", f"label={label}")) for label in (3, 7))
    assert (threes != sevens).any()


def test_seeds_share_no_image(tiny_run):
    drawn = np.concatenate([images(sampled(tiny_run, f"seed{seed}", "n=40", f"seed={seed}")) for seed in (0, 1)])
    assert len({image.tobytes() for image in drawn}) == 80


def test_labels_are_drawn_in_turn_or_as_asked(conditional_run):
    in_turn = np.load(sampled(conditional_run, "turn", "n=12") / "samples.npz")["arr_1"]
    assert in_turn.tolist() == [*range(10), 0, 1]
    sevens = np.load(sampled(conditional_run, "sevens", "n=3", "label=7") / "samples.npz")["arr_1"]
    assert sevens.tolist() == [7, 7, 7]
    with pytest.raises(UsageError, match="label must be one of the classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, not 10"):
        sampled(conditional_run, "none", "label=10")


def test_a_label_needs_a_conditional_network(tiny_run):
    with pytest.raises(UsageError, match="label needs a run trained on labels"):
        sampled(tiny_run, "none", "label=3")


def test_clipping_is_for_images_and_can_be_turned_off(tiny_run, gaussian_run):
    for run, option, expected in [
        (tiny_run, "null", True),
        (tiny_run, "false", False),
        (gaussian_run, "null", False),
        (gaussian_run, "true", True),
    ]:
        folder = sampled(run, f"clip-{option}", "n=2", f"sampler.clip={option}")
        assert json.loads((folder / "samples.json").read_text())["sampler"]["clip"] is expected


def test_a_checkpoint_is_enough_on_another_machine(tiny_run, tmp_path):
    alone = tmp_path / "sent.pt"
    alone.write_bytes((tiny_run / "checkpoints" / "last.pt").read_bytes())
    sample.run(config("sample", f"ckpt={alone}", "name=x", "n=4", *FAST), output())
    np.testing.assert_array_equal(images(tmp_path / "samples" / "x"), images(sampled(tiny_run, "here", "n=4")))


def test_given_again_it_is_finished(tiny_run, caplog):
    """As a training is; whatever is different is named, and nothing is drawn over it."""
    caplog.set_level("INFO", logger="diffuse")
    folder = sampled(tiny_run, "given-again", "n=2")
    before = as_it_is(folder)
    sampled(tiny_run, "given-again", "n=2", "batch_size=3", "device.threads=1")
    assert "samples/given-again is finished: 2 images are drawn" in caplog.messages[-1]
    for word, changed in (("n=3", r"n \(was 2, now 3\)"), ("seed=5", r"seed \(was 0, now 5\)"),
                          ("sampler.eta=0.5", r"sampler\.eta \(was 0\.0, now 0\.5\)")):  # fmt: skip
        with pytest.raises(
            UserError, match=rf"given-again exists already, and differs in {changed}: choose another name="
        ):
            sampled(tiny_run, "given-again", "n=2", word)
    assert as_it_is(folder) == before


def test_a_run_and_its_best_checkpoint_are_found_by_their_name(tiny_run, monkeypatch):
    """As given, or in outputs/; RUN@best is the checkpoint with the best score."""
    monkeypatch.chdir(tiny_run.parent.parent)
    assert find("tiny").path == find("outputs/tiny").path == find(str(tiny_run)).path
    with pytest.raises(
        UserError, match="ckpt=tiny@best: this run has no best checkpoint, which diffuse train eval.every=N"
    ):
        find("tiny@best")
    best = tiny_run / "checkpoints" / "best.pt"
    best.write_bytes(find("tiny").path.read_bytes())
    assert find("tiny@best").path == find("outputs/tiny@best").path == best
    best.unlink()


def test_the_method_is_called_as_it_is_typed(tiny_run, caplog):
    """`ancestral` is the function of sampler=ddpm."""
    caplog.set_level("INFO", logger="diffuse")
    made = replace(output(), choices={"sampler": "ddpm"})
    words = ["name=ddpm", "n=1", "device=cpu", "sampler=ddpm", "sampler.steps=2"]
    sample.run(config("sample", f"ckpt={tiny_run}", *words), made)
    assert "2 steps of ddpm on cpu" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler.steps=2000", "sampler.steps must be between 1 and the schedule's 1000 levels, not 2000"),
        ("sampler.steps=0", "sampler.steps must be between 1 and"),
        ("sampler.spacing=quadratik", "sampler.spacing must be one of .* Did you mean 'quadratic'"),
        ("sampler.eta=1.5", "sampler.eta must be between 0 and 1, not 1.5"),
        ("n=0", "n must be at least 1"),
        ("batch_size=-3", "batch_size must be at least 1"),
    ],
)
def test_impossible_values_are_named_and_leave_nothing(tiny_run, override, message):
    before = set(tiny_run.rglob("*"))
    with pytest.raises(UsageError, match=message):
        sampled(tiny_run, "bad", override)
    assert set(tiny_run.rglob("*")) == before


def test_the_network_always_sees_the_same_number_of_rows(tiny_run):
    """That is what makes an image independent of its batch: results differ in the last bits between batch sizes."""
    rows = set()
    for options in (["n=70", "batch_size=1"], ["n=3", "batch_size=500"]):
        typed = config("sample", f"ckpt={tiny_run}", *FAST, *options)
        network = load_for(typed)
        network.net.register_forward_pre_hook(lambda _, arguments: rows.add(len(arguments[0])))
        batches = drawing_of(network, typed).batches(typed.n, network.batch_size)
        assert sum(len(drawn) for _, drawn in batches) == typed.n
    assert rows == {64}


def test_sampling_that_was_stopped_begins_again_under_its_name(tiny_run, tmp_path):
    """As a kill leaves it: images and a log, and no record that says it is done."""
    words = ["n=5", "sampler=ddim", "sampler.steps=2"]
    sampled(tiny_run, "whole", *words)
    sampled(tiny_run, "stopped", *words)
    whole, stopped = (tiny_run / "samples" / name for name in ("whole", "stopped"))
    for name in ("samples.json", "samples.npz", "grid.png", "images/00003.png"):
        (stopped / name).unlink()
    (stopped / "images" / "00077.png").write_bytes(b"of more images")
    sampled(tiny_run, "stopped", *words)
    assert sorted(path.name for path in (stopped / "images").iterdir()) == [f"{i:05d}.png" for i in range(5)]
    assert (stopped / "samples.npz").read_bytes() == (whole / "samples.npz").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        sampled(tiny_run, "stopped", *words, "seed=1")
