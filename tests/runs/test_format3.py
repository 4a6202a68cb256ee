"""A run that was begun before modules moved and names changed: it can be sampled from, and it can be continued.

format3.pt is the checkpoint of step 10 of

    diffuse train name=format3 data_dir=/data unet.channels=4 'unet.channel_mult=[1,1]' unet.groups=2 \\
        'unet.attention=[]' steps=10 batch_size=16 log.every=5 images.every=10 images.count=4 checkpoint.every=10 \\
        checkpoint.keep=3 sampler.steps=3 optim.warmup=2 optim.decay=none device=cpu device.precision=float32 \\
        device.compile=false loss=hybrid schedule=cosine schedule.levels=10 times=importance times.history=2 \\
        prediction=v weight=min_snr class_conditional=true

by the last commit with checkpoints of format 3, whose config names targets by modules that are gone.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from diffuse.commands import train
from diffuse.mathematics.time_sampling import ImportanceTimes
from diffuse.runs.record import read_record
from diffuse.runs.trained import load
from tests.support.commands import config, output
from tests.support.comparing import metrics, read
from tests.support.running import sampled

OLD = Path(__file__).parent / "format3.pt"


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """The run folder as it was, as far as a checkpoint knows."""
    monkeypatch.chdir(tmp_path)
    folder = Path("outputs/format3")
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(OLD, folder / "checkpoints" / "step_00000010.pt")
    OmegaConf.save(OmegaConf.create(read(OLD)["config"]), folder / "config.yaml")
    return folder


def test_it_has_what_changed():
    content = read(OLD)
    assert content["format"] == 3
    targets = [content["config"][group]["_target_"] for group in ("schedule", "times", "unet")]
    assert targets == ["diffuse.schedules.cosine", "diffuse.times.Importance", "diffuse.unet.UNet"]
    assert "keep_memory" not in content["config"]["device"]


def test_it_can_be_sampled_from(run):
    network = load(str(run))
    assert isinstance(network.formulas.time_sampling, ImportanceTimes)
    assert network.config.schedule["_target_"] == "cosine"
    drawn = sampled(run, "label=3")
    assert drawn.shape == (3, 8, 8, 1)
    assert drawn.std() > 0


def test_it_continues(run):
    train.run(config("train", "dataset=digits", f"resume={run}", *as_typed(), "steps=14"), output())
    content = read(run / "checkpoints" / "step_00000014.pt")
    assert (content["format"], content["config"]["times"]["_target_"]) == (4, "ImportanceTimes")
    assert (content["times"]["seen"] >= read(OLD)["times"]["seen"]).all()
    assert np.isfinite([line["loss"] for line in metrics(run)]).all()


def as_typed() -> list[str]:
    """The words that this config was typed with."""
    return [
        "sampler=ddim",
        "name=format3", "data_dir=/data", "unet.channels=4", "unet.channel_mult=[1,1]", "unet.groups=2",
        "unet.attention=[]", "steps=10", "batch_size=16", "log.every=2", "images.every=10", "images.count=4",
        "sampler.steps=3", "optim.warmup=2", "optim.decay=none", "device=cpu", "device.precision=float32",
        "loss=hybrid", "schedule=cosine", "schedule.levels=10", "times=importance", "times.history=2", "prediction=v",
        "weight=min_snr", "class_conditional=true", "label_dropout=0.0",
    ]  # fmt: skip


def test_the_record_is_read_with_todays_names(run):
    record = read_record(run)
    assert (record.times["_target_"], record.unet["_target_"]) == ("ImportanceTimes", "UNet")
