"""Every sampler with every guidance on every schedule and prediction: images are drawn, or the choice is refused."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffuse.data.datasets import digits
from diffuse.options.formulas import Formulas
from diffuse.options.network import build_network
from diffuse.options.reference import Option, options
from diffuse.options.schema import SampleConfig, TrainConfig, plain
from diffuse.runs import checkpoint
from diffuse.runs.drawing import drawing_of
from diffuse.runs.trained import load_for
from diffuse.system.errors import UsageError
from tests.support.commands import FAST, TINY, config

IMAGES = 2
METHODS = ("ddpm", "classifier")
PAIRS = list(itertools.product([o.name for o in options("schedule")], [o.name for o in options("prediction")]))
CHOICES = list(itertools.product([o.name for o in options("sampler")], [o.name for o in options("guidance")]))
# With a fifth of these samplers' own steps, an untrained network is drawn from in a blink.
FEW = {"steps": 4, "langevin_steps": 1, "tolerance": 0.5, "evaluations": 4}


def untrained(folder: Path, method: str, typed: TrainConfig, schedule: str, prediction: str) -> Path:
    """A checkpoint of a network with labels that knows nothing. Raises UsageError where a run could not have these."""
    betas, kind = folder / "betas.txt", digits().kind
    betas.write_text(" ".join(map(str, np.linspace(1e-3, 0.2, 50))))
    chosen = node_of("schedule", schedule, path=str(betas)), node_of("prediction", prediction)
    typed = replace(typed, schedule=chosen[0], prediction=chosen[1])
    Formulas.of(typed, kind)
    torch.manual_seed(0)
    net = build_network(typed, kind)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    path = folder / f"{method}-{schedule}-{prediction}.pt"
    weights = {"model": net.state_dict(), "ema": net.state_dict()}
    facts = {"config": plain(typed), "kind": asdict(kind), "data_sha256": digits().sha256}
    checkpoint.write(path, 0, {**facts, **weights})
    return path


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The checkpoints of all pairs that a run can have."""
    folder, found = tmp_path_factory.mktemp("networks"), {}
    typed = {name: config("train", *TINY, f"method={name}", "class_conditional=true") for name in METHODS}
    for pair in PAIRS:
        try:
            found[pair], _ = (untrained(folder, name, typed[name], *pair) for name in METHODS)
        except UsageError as error:
            assert "prediction" in str(error) or "schedule" in str(error)
    assert len(found) > len(PAIRS) // 2
    return found


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("target") / "digit.png"
    Image.fromarray(digits().test.images[0, 0]).save(path)
    return path


@pytest.fixture(scope="module")
def typed() -> SampleConfig:
    return config("sample", *FAST, "seed=1", "ckpt=none")


def node_of(group: str, name: str, **changes: object) -> dict[str, object]:
    option: Option = next(each for each in options(group) if each.name == name)
    values = {key: changes.get(key, value) for key, value in option.values.items()}
    return {"_target_": option.target, **values}


def drawn(typed: SampleConfig, ckpt: Path, sampler: str, guidance: str, target: Path) -> Iterator[str]:
    """What became of the choice: nothing where images were drawn, otherwise why not."""
    few = {key: value for key, value in FEW.items() if key != "steps" or sampler not in ("ode", "auto")}
    other = ckpt.with_name(ckpt.name.replace("ddpm", "classifier")) if guidance == "classifier" else ckpt
    guide = node_of("guidance", guidance, ckpt=str(other), target=str(target))
    chosen = replace(typed, ckpt=str(ckpt), sampler=node_of("sampler", sampler, **few), guidance=guide)
    try:
        drawing = drawing_of(load_for(chosen), chosen)
    except UsageError as error:
        yield str(error)
        return
    images = drawing.draw(range(IMAGES))
    assert images.shape == (IMAGES, 1, 8, 8)
    assert torch.isfinite(images).all(), (ckpt.name, sampler, guidance)


@pytest.mark.parametrize(("sampler", "guidance"), CHOICES)
def test_every_sampler_works_with_every_guidance_or_says_why_not(sampler, guidance, networks, typed, target):
    """Each on another pair: together they meet all pairs."""
    place = CHOICES.index((sampler, guidance)) % len(networks)
    pair, ckpt = list(networks.items())[place]
    for reason in drawn(typed, ckpt, sampler, guidance, target):
        assert any(word in reason for word in ("sampler", "guidance", "variance")), (pair, reason)


@pytest.mark.slow
def test_every_combination_works_or_says_why_not(networks, typed, target):
    refused: dict[str, int] = {}
    for ckpt, (sampler, guidance) in itertools.product(networks.values(), CHOICES):
        for reason in drawn(typed, ckpt, sampler, guidance, target):
            assert any(word in reason for word in ("sampler", "guidance", "variance")), (ckpt.name, reason)
            refused[reason] = refused.get(reason, 0) + 1
    tried = len(networks) * len(CHOICES)
    print(f"{tried:,} combinations, {sum(refused.values()):,} refused:")
    for reason, count in sorted(refused.items(), key=lambda each: -each[1]):
        print(f"{count:>6,}  {reason}")
    assert sum(refused.values()) < tried / 4
