"""What it means that two runs are the same: equal keys, lengths, scalars and tensors, to the last bit."""

import json
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffuse.runs.checkpoint import load_checkpoint
from diffuse.runs.checkpoint_files import all_in
from diffuse.runs.hparams import tag


def read(path: Path) -> dict:
    """The content of a checkpoint file."""
    return load_checkpoint(path).content


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_clock(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal keys, lengths, scalars and tensors, to the last bit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}[{number}]")
    else:
        assert one == other, where


def newest(folder: Path) -> dict[str, Any]:
    """The content of a run's newest checkpoint, but for what a run is called and how long it may take."""
    content = read(all_in(folder / "checkpoints")[-1])
    content["config"] = {key: value for key, value in content["config"].items() if key not in ("name", "max_hours")}
    return content


def assert_runs_are_the_same(one: Path, other: Path) -> None:
    """Weights, average, optimizer, sums and step; metrics; TensorBoard; pictures."""
    assert_same(newest(one), newest(other))
    lines = metrics(one)
    assert without_clock(lines) == without_clock(metrics(other))
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    pictures = sorted(path.name for path in (one / "images").iterdir())
    assert pictures == sorted(path.name for path in (other / "images").iterdir())
    for name in pictures:
        assert (one / "images" / name).read_bytes() == (other / "images" / name).read_bytes(), name
    for folder in (one, other):
        assert_tensorboard_has_every_step_once(folder)


def assert_tensorboard_has_every_step_once(folder: Path, shown: str = "samples") -> None:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    lines = metrics(folder)
    for name in {name for line in lines for name in line if name != "step"}:
        expected = {line["step"]: line[name] for line in lines if name in line}
        found = [(event.step, event.value) for event in events.Scalars(tag(name))]
        assert [step for step, _ in found] == sorted(expected), name
        for step, value in found:
            assert abs(value - expected[step]) <= 1e-5 * abs(expected[step]), (name, step)
    drawn = [int(path.stem.removeprefix("step_")) for path in (folder / "images").glob("step_*.png")]
    assert [event.step for event in events.Images(shown)] == sorted(drawn)
    assert [event.step for event in events.Images("schedule/forward_process")] == [0]
    assert [event.step for event in events.Tensors("config/text_summary")] == [0]
