"""Every YAML option composes and builds, and what help and README say of keys is true."""

import re

import pytest
import torch
from omegaconf.errors import MissingMandatoryValue

from diffuse.cli.help import GROUPS, KEYS
from diffuse.data.images import ImageKind
from diffuse.mathematics.schedules import linear
from diffuse.mathematics.variances import Analytic
from diffuse.options.build import build, build_dataset, build_network
from diffuse.options.formulas import Formulas
from diffuse.runs.drawing import Sampler
from diffuse.runs.folder import flat
from diffuse.system.device import Device
from diffuse.system.errors import UsageError
from diffuse.system.files import CONFIGS
from tests.support.commands import config
from tests.support.places import README


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize("dataset", sorted({*options("dataset")} - {"folder", "npz"}))
def test_every_data_set_has_a_recipe_whose_network_fits(dataset):
    """Nothing is downloaded: what a network must know of a data set is known before its images are there."""
    assert dataset in options("recipe")
    typed = config("train", f"dataset={dataset}")
    data = build_dataset(typed, [])
    assert data.kind.name == dataset
    with torch.device("meta"):
        assert build_network(typed, data.kind, []).stem.in_channels == data.kind.channels


@pytest.mark.parametrize("dataset", ["folder", "npz"])
def test_data_of_ones_own_need_a_path(dataset):
    assert dataset in options("recipe")
    with pytest.raises(MissingMandatoryValue, match=r"dataset\.path"):
        config("train", f"dataset={dataset}")


def test_cifar10_alone_is_the_papers_run():
    """Ho et al. 2020, section 4 and appendix B."""
    typed = config("train", "dataset=cifar10")
    assert (typed["steps"], typed["batch_size"], typed["ema"]["decay"]) == (800_000, 128, 0.9999)
    optim = {"lr": 2e-4, "warmup": 5000, "decay": "none", "clip": 1.0, "weight_decay": 0.0}
    assert typed["optim"] == optim
    assert (typed["unet"]["dropout"], typed["dataset"]["flip"], typed["schedule"]["levels"]) == (0.1, True, 1000)
    assert typed["unet"] == config("train", "unet=base")["unet"]


BYTES = ImageKind("any", 1, 8, [], bounded=True)
# What an option needs beside it: a choice that goes with it.
COMPANY = {
    ("schedule", "betas"): ["schedule.values=[0.1,0.2]"],
    ("schedule", "flow"): ["prediction=flow"],
    ("times", "log_normal"): ["schedule=ve"],
}


@pytest.mark.parametrize("group", ["schedule", "prediction", "loss", "weight", "times", "method"])
def test_every_option_of_the_mathematics_builds(group):
    for option in options(group):
        typed = config("train", f"{group}={option}", *COMPANY.get((group, option), []))
        levels = 2 if option == "betas" else 1000
        assert levels == Formulas.of(typed, BYTES, []).schedule.T


def test_methods_are_what_their_papers_chose():
    """And anything typed wins."""

    def chosen(*words: str) -> list[str]:
        typed = config("train", *words)
        names = [typed[group]["_target_"].rpartition(".")[2] for group in ("schedule", "prediction", "loss", "times")]
        return [*names, typed["variance"]]

    assert chosen() == chosen("method=ddpm") == ["linear", "eps", "simple", "Uniform", "fixed_large"]
    assert chosen("method=improved_ddpm") == ["cosine", "eps", "hybrid", "Uniform", "learned"]
    assert chosen("method=score_sde") == ["VP", "eps", "simple", "Uniform", "fixed_large"]
    assert chosen("method=ncsn") == ["VE", "eps", "simple", "Uniform", "fixed_large"]
    assert chosen("method=edm") == ["VE", "edm", "simple", "LogNormal", "fixed_large"]
    assert chosen("method=flow") == ["Flow", "flow", "simple", "Uniform", "fixed_large"]
    assert chosen("method=edm", "schedule=vp")[0] == "VP"
    assert config("train", "method=edm")["schedule"]["sigma_max"] == 80.0
    assert config("train", "loss=hybrid")["variance"] == "learned"
    assert config("train", "loss=vlb", "variance=fixed_small")["variance"] == "fixed_small"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["variance=learned"], "loss=simple does not train a variance"),
        (["loss=hybrid", "variance=fixed_small"], "loss=hybrid trains the variance"),
        (["loss=vlb", "variance=analytic"], "analytic is estimated afterwards"),
        (["loss=vlb", "weight=p2"], "weight has no part in loss=vlb"),
        (["schedule=vp", "loss=hybrid"], "about steps between levels, and this schedule has none"),
        (["schedule=ve", "loss=vlb", "variance=fixed_large"], "about steps between levels"),
        (["schedule.zero_terminal_snr=true"], "prediction=eps is not defined at the last level"),
        (["schedule=flow"], "prediction=eps is not defined at the last level"),
        (["schedule=flow", "prediction=edm"], "prediction=edm is not defined at the last level"),
        (["schedule=vp", "prediction=mean"], "this schedule has no levels"),
        (["method=flow", "variance=analytic"], "variance=analytic follows from E"),
        (["schedule=vp", "times=importance"], "times=importance remembers the losses of levels"),
        (["times=log_normal"], "times=log_normal draws real times"),
        (["variance=fixed"], "variance must be one of fixed_small, fixed_large, learned, analytic, not 'fixed'"),
        (["loss=hybrid", "loss.vlb_weight=0"], "loss.vlb_weight must be positive"),
        (["weight=min_snr", "weight.gamma=-1"], "weight.gamma must be positive"),
        (["prediction=edm", "prediction.sigma_data=0"], "prediction.sigma_data must be positive"),
        (["schedule=betas"], "schedule.path must be a file"),
        (["schedule=betas", "schedule.path=nowhere.txt"], "schedule.path is nowhere.txt"),
    ],
)
def test_impossible_combinations_are_refused_in_words(words, message):
    with pytest.raises(UsageError, match=message):
        Formulas.of(config("train", *words), BYTES, [])


@pytest.mark.parametrize("unet", options("unet"))
def test_every_network_builds_at_32_by_32(unet):
    typed = config("train", f"unet={unet}", "class_conditional=true")
    with torch.device("meta"):
        net = build_network(typed, ImageKind("any", 3, 32, ["a", "b"], bounded=True), [])
    millions = sum(weight.numel() for weight in net.parameters()) / 1e6
    smallest, largest = {"tiny": (0.5, 2), "small": (4, 12), "base": (35, 37), "large": (250, 350)}[unet]
    assert smallest < millions < largest


def test_base_is_the_papers_network():
    with torch.device("meta"):
        net = build_network(config("train", "unet=base"), ImageKind("cifar10", 3, 32, [], bounded=True), [])
    assert sum(weight.numel() for weight in net.parameters()) == 35_746_307


@pytest.mark.parametrize("sampler", options("sampler"))
def test_every_sampler_builds(sampler):
    def estimated(times: list[float]) -> Analytic:
        return Analytic(linear(), dict.fromkeys(times, 0.5))

    node = config("sample", "ckpt=x", f"sampler={sampler}")["sampler"]
    assert Sampler(node, Formulas.of(config("train"), BYTES, []), BYTES, [], estimated).clip


@pytest.mark.parametrize("device", options("device"))
def test_every_device_builds_where_it_is_there(device):
    node = config("train", f"device={device}")["device"]
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if available.get(device, True):
        assert isinstance(build(node, "device"), Device)
    else:
        with pytest.raises(UsageError, match=f"device.kind is {device}"):
            build(node, "device")


def test_what_is_typed_wins_over_the_recipe():
    typed = config("train", "dataset=gaussian", "unet=small", "steps=7", "optim.lr=0.5")
    assert (typed["steps"], typed["optim"]["lr"], typed["unet"]["channels"]) == (7, 0.5, 64)
    assert config("train", "recipe=gaussian")["steps"] == config("train", "dataset=gaussian")["steps"]


# Options of train's groups that have keys of their own which help lists.
WITH_KEYS = [("loss", "hybrid"), ("weight", "min_snr")]
FILE_OF_FEATURES = ["features=torchscript", "features.path=x"]


@pytest.mark.parametrize("command", KEYS)
def test_the_keys_that_help_lists_exist(command):
    required = [] if command == "train" else ["ckpt=x"]
    known = set(flat(config(command, *required)))
    for sampler in options("sampler") if command == "sample" else []:
        known |= set(flat(config(command, *required, f"sampler={sampler}")))
    for words in [FILE_OF_FEATURES] if command == "eval" else []:
        known |= set(flat(config(command, *required, *words)))
    for group, option in WITH_KEYS if command == "train" else []:
        known |= set(flat(config(command, f"{group}={option}")))
    assert set(KEYS[command]) <= known
    assert set(GROUPS[command]) <= {path.name for path in CONFIGS.iterdir()}


@pytest.mark.parametrize("command", KEYS)
def test_the_keys_of_the_schema_are_in_help(command):
    """All but groups, whose options have keys of their own."""
    required = [] if command == "train" else ["ckpt=x"]
    plain = {key for key in flat(config(command, *required)) if key.partition(".")[0] not in GROUPS[command]}
    assert plain <= set(KEYS[command])


def column_of(header: str, column: int) -> set[str]:
    """The words in code quotes in one column of the README's table that begins with this header."""
    table = README.partition(header)[2].partition("\n\n")[0]
    lines = [re.split(r"\s*\|\s*", line) for line in table.splitlines()[2:]]
    return {word for line in lines for word in re.findall(r"`([^`]+)`", line[column])}


def test_the_readme_lists_the_same_keys_groups_and_options():
    """No more and no less than help."""
    groups = {group for groups in GROUPS.values() for group in groups}
    assert column_of("| command | key | meaning |", 2) == {key for keys in KEYS.values() for key in keys}
    assert column_of("| group | commands | options |", 1) == groups
    listed = column_of("| group | commands | options |", 3)
    assert {option for group in groups - {"recipe"} for option in options(group)} <= listed


def test_compilation_can_be_typed():
    for typed, expected in (("true", True), ("false", False), ("null", None)):
        assert config("train", f"device.compile={typed}")["device"]["compile"] is expected
        assert build(config("train", "device=cpu", f"device.compile={typed}")["device"], "device").compiles is bool(
            expected
        )


def test_configs_hold_values_for_every_constructor_argument():
    """Each option of a network can be typed: none of them hides in a default of the code."""
    import inspect

    from diffuse.networks.unet import UNet

    given_by_the_program = {"self", "image_size", "image_channels", "num_classes", "learned_variance"}
    arguments = set(inspect.signature(UNet.__init__).parameters) - given_by_the_program
    for unet in options("unet"):
        assert set(config("train", f"unet={unet}")["unet"]) == arguments | {"_target_"}
