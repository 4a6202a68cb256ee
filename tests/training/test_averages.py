"""Power averages of a run: each is the mean of its weights by the profile, survives a stop, and gives any length."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuse.commands import export, sample, train
from diffuse.mathematics.power_average import gamma_of
from diffuse.runs.averages import AVERAGES, is_due
from diffuse.runs.trained import load
from diffuse.system.device import Device
from diffuse.system.errors import UserError
from tests.support.commands import TINY, config, output
from tests.support.comparing import assert_same, newest
from tests.support.running import trainer_of

LENGTHS = "ema.lengths=[0.05,0.1]"
STEPS = 200


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained(name: str, *overrides: str, steps: int = 24) -> Path:
    words = [LENGTHS, "ema.snapshots=8", "images.every=1000", f"name={name}", *overrides, f"steps={steps}"]
    train.run(config("train", *TINY, *words), output())
    return Path("outputs", name)


def flat(state) -> np.ndarray:
    return torch.cat([value.detach().double().flatten() for value in state.values()]).numpy()


def profile_mean(weights: np.ndarray, length: float) -> np.ndarray:
    """The mean of the weights [steps, D] by the integral of the profile over each step."""
    ends = (np.arange(len(weights) + 1) / len(weights)) ** (gamma_of(length) + 1)
    return np.diff(ends) @ weights


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_averages_are_the_means_of_all_weights_by_their_profiles():
    """Those that are stored to the rounding of float32, those put together to a thousandth."""
    words = ["optim.lr=1e-2", "optim.decay=none"]
    run = trained("run", "ema.snapshots=20", *words, steps=STEPS)
    trainer = trainer_of(config("train", *TINY, LENGTHS, f"steps={STEPS}", *words))
    weights = []
    for _ in range(STEPS):
        trainer.advance()
        weights.append(flat(dict(trainer.net.named_parameters())))
    together = np.stack(weights)
    stored = newest(run)["averages"]
    assert list(stored) == ["0.05", "0.1"]
    for length in (0.05, 0.1):
        assert relative(flat(stored[str(length)]), profile_mean(together, length)) < 1e-6
    for length in (0.05, 0.06, 0.08, 0.1, 0.13, 0.15):
        found = load(str(run), Device("cpu", "float32"), weights=f"ema-{length}")
        expected = profile_mean(together, length)
        assert relative(flat(found.net.state_dict()), expected) < 1e-3
        assert relative(flat(dict(trainer.net.named_parameters())), expected) > 5e-3


def test_snapshots_are_evenly_spaced_and_end_with_the_training():
    assert [step for step in range(1, 11) if is_due(step, 10, 5)] == [2, 4, 6, 8, 10]
    assert [step for step in range(1, 11) if is_due(step, 10, 3)] == [4, 7, 10]
    assert sum(is_due(step, 997, 20) for step in range(1, 998)) == 20
    run = trained("run")
    assert [int(path.stem[5:]) for path in sorted((run / AVERAGES).iterdir())] == [3, 6, 9, 12, 15, 18, 21, 24]


def test_a_continued_run_has_the_averages_of_one_that_was_never_stopped():
    """What was kept after the checkpoint is dropped, and kept again."""
    whole, stopped = trained("whole", "checkpoint.every=8"), trained("stopped", "checkpoint.every=8")
    (stopped / "checkpoints/step_00000024.pt").unlink()
    (stopped / "checkpoints/last.pt").unlink()
    wrong = stopped / AVERAGES / "step_00000021.safetensors"
    wrong.write_bytes(b"damaged")
    trained("stopped", "checkpoint.every=8")
    assert_same(newest(stopped)["averages"], newest(whole)["averages"])
    for path in sorted((whole / AVERAGES).iterdir()):
        assert path.read_bytes() == (stopped / AVERAGES / path.name).read_bytes()
    assert torch.equal(*(load(str(run), weights="ema-0.07").net.head.weight for run in (whole, stopped)))


def test_a_run_is_sampled_and_exported_with_any_length():
    run = trained("run")
    for name, length in (("short", 0.05), ("between", 0.08)):
        words = [f"ckpt={run}", f"name={name}", f"ema.length={length}", "n=2", "sampler.steps=2", "device=cpu"]
        sample.run(config("sample", *words), output())
        assert f'"weights": "ema-{length}"' in (run / "samples" / name / "samples.json").read_text()
    drawn = [np.load(run / "samples" / name / "samples.npz")["arr_0"] for name in ("short", "between")]
    assert (drawn[0] != drawn[1]).any()
    export.run(config("export", f"ckpt={run}", "to=safetensors", "ema.length=0.08"), output())
    there = load(str(run / "export/safetensors/model.safetensors"))
    assert torch.equal(there.net.head.weight, load(str(run), weights="ema-0.08").net.head.weight)
    assert "a power average of length 0.08" in (run / "export/safetensors/README.md").read_text()


def test_a_checkpoint_alone_has_the_lengths_that_it_stores():
    run = trained("run")
    shutil.copy(run / "checkpoints/last.pt", "alone.pt")
    assert torch.equal(
        load("alone.pt", weights="ema-0.1").net.head.weight, load(str(run), weights="ema-0.1").net.head.weight
    )
    with pytest.raises(
        UserError, match=r"ema.length=0.08 needs the averages of the run.* has those of 0.05 and 0.1 alone"
    ):
        load("alone.pt", weights="ema-0.08")


@pytest.mark.parametrize("length", [0.04, 0.16, 0.5, -0.1])
def test_other_lengths_are_refused(length):
    with pytest.raises(UserError, match=rf"ema.length must be between 0.05 and 0.15 .*, not {length}"):
        load(str(trained("run")), weights=f"ema-{length}")


def test_a_run_without_averages_has_no_lengths():
    train.run(config("train", *TINY, "name=plain"), output())
    assert not Path("outputs/plain", AVERAGES).exists()
    with pytest.raises(UserError, match=r"has none: a training keeps them with ema.lengths=\[0.05,0.1\]"):
        sample.run(config("sample", "ckpt=outputs/plain", "ema.length=0.1", "n=1", "device=cpu"), output())


def test_averages_of_another_run_are_refused():
    one, other = trained("one"), trained("other", "unet.channels=16")
    for path in (other / AVERAGES).iterdir():
        shutil.copy(path, one / AVERAGES / path.name)
    with pytest.raises(UserError, match="the files in .*one/averages are not of this run"):
        load(str(one), weights="ema-0.07")
    (one / AVERAGES / "step_00000012.safetensors").write_bytes(b"{}")
    with pytest.raises(UserError, match="step_00000012.safetensors is damaged|not of this run"):
        load(str(one), weights="ema-0.07")
