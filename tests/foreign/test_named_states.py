"""Weights in the namings of OpenAI's programs, of DDIM and of pytorch-ddpm: read here, they compute what theirs do."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffuse.foreign import ddim, openai, pytorch_ddpm
from diffuse.foreign.naming import table, to_theirs
from diffuse.foreign.weights import no_options
from diffuse.runs.trained import TrainedNetwork, load
from diffuse.system.device import Device
from diffuse.system.errors import UsageError, UserError
from tests.support.commands import FAST, diffuse
from tests.support.diffusers_nets import ours_in_float64
from tests.support.foreign_lines import (
    CLASSIFIER,
    DDIM,
    OPENAI_HALF,
    OPENAI_RESIDUAL,
    OPENAI_STRIDED,
    OPENAI_WIDE,
    PYTORCH_DDPM,
)
from tests.support.foreign_states import Reader, State, openai_forward, papers_forward, random_state

ADM = {"format": "guided_diffusion", "schedule": "linear", "levels": 1000, "image_size": 8}
IMPROVED = {"format": "improved_diffusion", "schedule": "cosine", "levels": 4000, "image_size": 8}


def loaded(path, **options: Any) -> TrainedNetwork:
    return load(str(path), Device("cpu", "float32"), foreign=replace(no_options(), **options))


def inputs(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=made), torch.tensor([3.0, 912.0]).double()


def timetable(levels: int = 1000, channels: int = 64) -> torch.Tensor:
    """The table that pytorch-ddpm saves: sine and cosine in turn."""
    angles = torch.arange(levels)[:, None] * torch.exp(
        -torch.arange(0, channels, 2) / channels * torch.log(torch.tensor(1e4))
    )
    return torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(levels, channels)


OPENAI = {
    "improved, 4 heads": (OPENAI_STRIDED, True, 1, {**IMPROVED}, lambda width: 4, True, 0.25),
    "improved, 2 heads, time added": (
        *(OPENAI_WIDE, False, 1, {**IMPROVED, "heads": 2, "levels": 1000}),
        *(lambda width: 2, True, 1),
    ),
    "guided, new order": (
        *(OPENAI_RESIDUAL, True, 1, {**ADM, "head_channels": 16, "attention_order": "new"}),
        *(lambda width: width // 16, False, 1),
    ),
    "guided, legacy order": (
        *(OPENAI_RESIDUAL, True, 1, {**ADM, "head_channels": 16, "attention_order": "legacy"}),
        *(lambda width: width // 16, True, 1),
    ),
    "guided, a stem of half the channels": (
        *(OPENAI_HALF, True, 1, {**ADM, "heads": 4, "attention_order": "legacy"}),
        *(lambda width: 4, True, 1),
    ),
    "consistency_models": (
        *(OPENAI_RESIDUAL, True, 2, {"format": "consistency_models", "image_size": 8}),
        *(lambda width: 1, False, 1000),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPENAI)
def test_openais_networks_compute_here_what_they_do_there(tmp_path, name):
    lines, scale_shift, dims, options, heads, legacy, time_scale = OPENAI[name]
    if name == "consistency_models":  # whose variance is not learned
        lines = [(each, kind, (3, *sizes[1:]) if each == "out.2" else sizes) for each, kind, sizes in lines]
    embedded = next(sizes[0] for each, _, sizes in lines if each == "time_embed.0")
    state = random_state(lines, "openai", embedded, scale_shift, dims)
    torch.save(state, tmp_path / "model.pt")
    network = loaded(tmp_path / "model.pt", **options)
    x, t = inputs()
    y = torch.tensor([1, 9]) if "label_emb.weight" in state else None
    read = Reader(state, eps=1e-5)
    expected = openai_forward(read, x, t * time_scale, y, heads, legacy, scale_shift)
    assert read.used == state.keys()
    with torch.no_grad():
        found = ours_in_float64(network.net)(x, t, y)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert float(expected.std()) > 0.1
    assert_round_trip(network, state, options["format"], legacy, dims)


def classifier_state() -> State:
    made = torch.Generator().manual_seed(3)
    state = random_state(CLASSIFIER, "openai", 256, scale_shift=True)
    return {**state, "out.2.positional_embedding": torch.randn(128, 17, generator=made)}


def test_adms_classifier_computes_here_what_it_does_there(tmp_path):
    """Its encoder has the legacy order of q, k and v, and its pooling the new one."""
    state = classifier_state()
    torch.save(state, tmp_path / "classifier.pt")
    network = loaded(
        tmp_path / "classifier.pt", format="guided_diffusion", schedule="linear", levels=1000, image_size=8
    )
    x, t = inputs()
    read = Reader(state, eps=1e-5)
    expected = openai_forward(read, x, t, None, lambda width: width // 64, True, True)
    assert read.used == state.keys()
    with torch.no_grad():
        found = ours_in_float64(network.net)(x, t)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert found.shape == (2, 10)
    assert_round_trip(network, state, "guided_diffusion", legacy=True, dims=1)


def test_adms_classifier_guides_adms_network(tmp_path):
    """From the command line, with what is said of the one network holding for the other."""
    torch.save(random_state(OPENAI_RESIDUAL, "openai", 128, scale_shift=True), tmp_path / "model.pt")
    torch.save(classifier_state(), tmp_path / "classifier.pt")
    words = [f"foreign.{key}={value}" for key, value in {**ADM, "head_channels": 16, "attention_order": "new"}.items()]
    guided = ["guidance=classifier", "guidance.ckpt=classifier.pt", "guidance.scale=3", "label=7"]
    steps = ["n=2", "sampler=ddim", "sampler.steps=3", "name=a", *FAST]
    done = diffuse("sample", "ckpt=model.pt", *words, *guided, *steps, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "outputs/model/samples/a/samples.json").read_text())
    assert facts["foreign"] == {**ADM, "head_channels": 16, "attention_order": "new"}
    assert {Path(name).name for name in facts["made_from"]} == {"model.pt", "classifier.pt"}


def assert_round_trip(network: TrainedNetwork, state: State, name: str, legacy: bool, dims: int) -> None:
    naming = replace(openai.ORDERS["legacy" if legacy else "new"], ndim=2 + dims)
    assert_same_bits(to_theirs(table(network.net.float(), naming), network.net.state_dict()), state)


def assert_same_bits(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("style", ["ddim", "pytorch_ddpm"])
def test_the_papers_networks_compute_here_what_they_do_there(tmp_path, style):
    state = random_state(DDIM if style == "ddim" else PYTORCH_DDPM, style, 256)
    content: Any = dict(state)
    if style == "pytorch_ddpm":
        table_of = {"time_embedding.timembedding.0.weight": timetable()}
        content = {"ema_model": {**state, **table_of}, "net_model": {**state, **table_of}, "step": 7}
    torch.save(content, tmp_path / "weights.ckpt")
    network = loaded(tmp_path / "weights.ckpt", image_size=8)
    x, t = inputs()
    read = Reader(state, eps=1e-6 if style == "ddim" else 1e-5)
    expected = papers_forward(read, x, t, style)
    assert read.used == state.keys()
    with torch.no_grad():
        found = ours_in_float64(network.net)(x, t)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    naming = ddim.NAMING if style == "ddim" else pytorch_ddpm.NAMING
    assert_same_bits(to_theirs(table(network.net.float(), naming), network.net.state_dict()), state)
    assert (network.config.schedule["_target_"], network.schedule.T) == ("linear", 1000)
    assert network.config.sampler["clip"] is (None if style == "ddim" else False)
    assert network.step == (0 if style == "ddim" else 7)


def test_both_networks_of_pytorch_ddpm_are_read(tmp_path):
    averaged, raw = (random_state(PYTORCH_DDPM, "pytorch_ddpm", 256) for _ in range(2))
    raw = {name: value + 1 for name, value in raw.items()}
    extra = {"time_embedding.timembedding.0.weight": timetable()}
    torch.save({"ema_model": averaged | extra, "net_model": raw | extra}, tmp_path / "ckpt.pt")
    weights = [
        load(str(tmp_path / "ckpt.pt"), Device("cpu", "float32"), weights=which).net.head.bias
        for which in ("ema", "model")
    ]
    assert torch.equal(weights[1], weights[0] + 1)


@pytest.mark.parametrize("beside", ["model", "state_dict"])
def test_averaged_weights_beside_trained_ones_are_those_to_draw_with(tmp_path, beside):
    state = random_state(DDIM, "ddim", 256)
    raw = {name: value + 1 for name, value in state.items()}
    torch.save({beside: raw, "ema": state, "optimizer": {}}, tmp_path / "both.pt")
    options = replace(no_options(), image_size=8)
    averaged, trained = (
        load(str(tmp_path / "both.pt"), Device("cpu", "float32"), weights=which, foreign=options).net.state_dict()
        for which in ("ema", "model")
    )
    assert torch.equal(averaged["stem.bias"], state["conv_in.bias"])
    assert torch.equal(trained["stem.bias"], raw["conv_in.bias"])
    torch.save({beside: raw, "ema": {"decay": torch.zeros(1)}}, tmp_path / "one.pt")
    assert torch.equal(loaded(tmp_path / "one.pt", image_size=8).net.state_dict()["stem.bias"], raw["conv_in.bias"])
    with pytest.raises(UsageError, match="one set of weights: leave out ema.length"):
        load(str(tmp_path / "one.pt"), Device("cpu", "float32"), weights="model", foreign=options)


def test_another_format_than_the_names_say_is_refused(tmp_path):
    torch.save(random_state(DDIM, "ddim", 256), tmp_path / "model.ckpt")
    with pytest.raises(UsageError, match="foreign.format=improved_diffusion is not that of model.ckpt.*of ddim"):
        loaded(tmp_path / "model.ckpt", **IMPROVED)


def test_a_table_of_other_features_is_refused(tmp_path):
    state = random_state(PYTORCH_DDPM, "pytorch_ddpm", 256)
    torch.save({**state, "time_embedding.timembedding.0.weight": timetable().flip(1)}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="not the table of features"):
        loaded(tmp_path / "ckpt.pt")


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({}, "foreign.format is needed"),
        ({"format": "guided_diffusion"}, "foreign.image_size is needed"),
        ({**ADM, "attention_order": "new"}, "foreign.head_channels is needed"),
        ({**ADM, "head_channels": 16}, "foreign.attention_order is needed"),
        ({**ADM, "head_channels": 16, "attention_order": "new", "schedule": None}, "foreign.schedule is needed"),
        ({**ADM, "head_channels": 16, "attention_order": "new", "levels": None}, "foreign.levels is needed"),
        ({**ADM, "head_channels": 16, "attention_order": "new", "variance": "fixed_small"}, "foreign.variance is of"),
        ({**ADM, "head_channels": 16, "attention_order": "new", "dataset": "cifar10"}, "3 x 32 x 32"),
        ({**IMPROVED, "attention_order": "new"}, "foreign.attention_order is not asked"),
    ],
)
def test_what_the_tensors_do_not_say_is_asked_for(tmp_path, options, missing):
    torch.save(random_state(OPENAI_RESIDUAL, "openai", 128, scale_shift=True), tmp_path / "model.pt")
    with pytest.raises(UsageError, match=missing):
        loaded(tmp_path / "model.pt", **options)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "integers", "nested"])
def test_tensors_that_do_not_belong_are_refused(tmp_path, change):
    state = random_state(DDIM, "ddim", 256)
    content: Any = state
    if change == "missing":
        del state["up.0.block.1.conv2.bias"]
    elif change == "unknown":
        state["up.0.block.1.conv3.bias"] = torch.zeros(3)
    elif change == "shape":
        state["mid.attn_1.k.weight"] = torch.zeros(128, 64, 1, 1)
    elif change == "integers":
        state["conv_in.bias"] = torch.zeros(64, dtype=torch.int64)
    else:
        content = {"state_dict": {**state, "conv_in.bias": [0.0] * 64}}
    torch.save(content, tmp_path / "model.ckpt")
    named = {"missing": "up.0.block.1.conv2", "unknown": "up.0.block.1.conv3", "shape": "mid.attn_1.k"}
    with pytest.raises(UserError, match=named.get(change, "conv_in.bias")):
        loaded(tmp_path / "model.ckpt", image_size=8)
