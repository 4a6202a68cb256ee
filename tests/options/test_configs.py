"""Every YAML option composes and builds, and has its description and the meaning of each of its keys."""

import inspect
from pathlib import Path

import pytest
import torch
from hydra.errors import ConfigCompositionException
from omegaconf.errors import MissingMandatoryValue

from diffuse.data.images import ImageKind
from diffuse.mathematics.tables import linear
from diffuse.mathematics.variances import Analytic
from diffuse.networks.unet import UNet
from diffuse.options import reference
from diffuse.options.build import build
from diffuse.options.dataset import build_dataset
from diffuse.options.formulas import Formulas
from diffuse.options.network import build_network
from diffuse.options.schema import PRESETS, SCHEMAS, all_keys, flat, groups, plain
from diffuse.runs.recommended import resolved
from diffuse.runs.sampler import Sampler
from diffuse.system.device import Device
from diffuse.system.errors import UsageError
from diffuse.system.files import CONFIGS
from diffuse.training.cautions import refuse_recipe_of_other_data
from tests.support.commands import config


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize("dataset", sorted({*options("dataset")} - {"folder", "npz"}))
def test_every_data_set_has_a_recipe_whose_network_fits(dataset):
    """Nothing is downloaded: what a network must know of a data set is known before its images are there."""
    typed = config("train", f"dataset={dataset}")
    data = build_dataset(typed.dataset, Path(typed.data_dir))
    assert data.kind.name == dataset
    with torch.device("meta"):
        assert build_network(typed, data.kind).stem.in_channels == data.kind.channels


@pytest.mark.parametrize("dataset", ["folder", "npz"])
def test_data_of_ones_own_need_a_path(dataset):
    with pytest.raises(MissingMandatoryValue, match=r"dataset\.path"):
        config("train", f"dataset={dataset}")


def test_cifar10_alone_is_the_papers_run():
    """Ho et al. 2020, section 4 and appendix B."""
    typed = config("train", "dataset=cifar10")
    assert (typed.steps, typed.batch_size, typed.ema.decay) == (800_000, 128, 0.9999)
    optim = {"lr": 2e-4, "warmup": 5000, "decay": "none", "clip": 1.0, "weight_decay": 0.0, "betas": [0.9, 0.999]}
    optim["constant"] = 1000
    assert plain(typed.optim) == optim
    assert (typed.unet["dropout"], typed.dataset["flip"], typed.schedule["levels"]) == (0.1, True, 1000)
    assert typed.unet == config("train", "unet=base").unet


BYTES = ImageKind("any", 1, 8, 8, [])
# What an option needs beside it: a choice that goes with it.
COMPANY = {
    ("schedule", "betas"): ["schedule.values=[0.1,0.2]"],
    ("schedule", "flow"): ["prediction=flow"],
    ("times", "log_normal"): ["schedule=ve"],
    ("loss", "consistency"): ["schedule=edm"],
}


@pytest.mark.parametrize("group", ["schedule", "prediction", "loss", "weight", "times", "method"])
def test_every_option_of_the_mathematics_builds(group):
    for option in options(group):
        typed = config("train", f"{group}={option}", *COMPANY.get((group, option), []))
        levels = 2 if option == "betas" else 1000
        assert levels == Formulas.of(typed, BYTES).schedule.T


def test_methods_are_what_their_papers_chose():
    """And anything typed wins."""

    def resolved(*words: str) -> list[str]:
        typed = config("train", *words)
        nodes = (typed.schedule, typed.prediction, typed.loss, typed.times)
        return [*(node["_target_"] for node in nodes), typed.variance]

    assert resolved() == ["cosine", "v", "simple", "UniformTimes", "fixed_large"]
    assert (
        resolved("dataset=cifar10")
        == resolved("method=ddpm")
        == ["linear", "eps", "simple", "UniformTimes", "fixed_large"]
    )
    assert resolved("method=improved_ddpm") == ["cosine", "eps", "hybrid", "UniformTimes", "learned"]
    assert resolved("method=score_sde") == ["VP", "eps", "simple", "UniformTimes", "fixed_large"]
    assert resolved("method=ncsn") == ["VE", "eps", "simple", "UniformTimes", "fixed_large"]
    assert resolved("method=edm") == ["VE", "edm", "simple", "LogNormalTimes", "fixed_large"]
    assert resolved("method=flow") == ["Flow", "flow", "simple", "UniformTimes", "fixed_large"]
    assert resolved("method=edm", "schedule=vp")[0] == "VP"
    assert config("train", "method=edm").schedule["sigma_max"] == 80.0
    assert config("train", "loss=hybrid").variance == "learned"
    assert config("train", "loss=vlb", "variance=fixed_small").variance == "fixed_small"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["variance=learned"], "loss=simple does not train a variance"),
        (["loss=hybrid", "variance=fixed_small"], "loss=hybrid trains the variance"),
        (["loss=vlb", "variance=analytic"], "analytic is estimated afterwards"),
        (["loss=vlb", "weight=p2"], "weight is not used by loss=vlb"),
        (["schedule=vp", "loss=hybrid"], "needs steps between levels, and this schedule has none"),
        (["schedule=ve", "loss=vlb", "variance=fixed_large"], "needs steps between levels"),
        (["schedule.zero_terminal_snr=true"], "prediction=eps is not defined at the last level"),
        (["schedule=flow"], "prediction=eps is not defined at the last level"),
        (["schedule=flow", "prediction=edm"], "prediction=edm is not defined at the last level"),
        (["schedule=vp", "prediction=mean"], "this schedule has no levels"),
        (["method=flow", "variance=analytic"], "variance=analytic is estimated from E"),
        (["schedule=vp", "times=importance"], "times: schedule must have levels for ImportanceTimes"),
        (["times=log_normal"], "times: schedule must be continuous for LogNormalTimes"),
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
        Formulas.of(config("train", "method=ddpm", *words), BYTES)


def test_the_floor_of_a_pixels_probability_is_for_training_alone():
    """1e-12, 27.6 nats; scores are exact."""
    formulas = Formulas.of(config("train", "loss=hybrid", "variance=learned"), BYTES)
    far = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.9), torch.full((1, 1, 1, 1), 1e-4)
    assert formulas.loss.keywords["decoder"](*far).item() == pytest.approx(27.631, abs=1e-3)
    assert formulas.decoder(*far).item() > 1000


@pytest.mark.parametrize("unet", options("unet"))
def test_every_network_builds_at_32_by_32(unet):
    typed = config("train", f"unet={unet}", "class_conditional=true")
    with torch.device("meta"):
        net = build_network(typed, ImageKind("any", 3, 32, 32, ["a", "b"]))
    millions = sum(weight.numel() for weight in net.parameters()) / 1e6
    smallest, largest = {"tiny": (0.5, 2), "small": (4, 12), "base": (35, 37), "large": (250, 350)}[unet]
    assert smallest < millions < largest


def test_base_is_the_papers_network():
    with torch.device("meta"):
        net = build_network(config("train", "dataset=cifar10"), ImageKind("cifar10", 3, 32, 32, []))
    assert sum(weight.numel() for weight in net.parameters()) == 35_746_307


@pytest.mark.parametrize("sampler", options("sampler"))
def test_every_sampler_builds(sampler):
    def estimated(times: list[float]) -> Analytic:
        return Analytic(linear(), dict.fromkeys(times, 0.5))

    run = config("train")
    node = resolved(config("sample", "ckpt=x", f"sampler={sampler}").sampler, run.prediction, run.sampler)
    masked = sampler == "repaint"  # which is refused without a mask
    assert Sampler(node, Formulas.of(run, BYTES), BYTES, (), estimated, masked=masked).clip


@pytest.mark.parametrize("device", options("device"))
def test_every_device_builds_where_it_is_there(device):
    node = config("train", f"device={device}").device
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if available.get(device, True):
        assert isinstance(build(node, "device"), Device)
    else:
        with pytest.raises(UsageError, match=f"device.kind is {device}"):
            build(node, "device")


@pytest.mark.parametrize(
    ("words", "schedule", "sampler", "steps"),
    [
        ([], "cosine", "deis", 2000),  # the recipe of the digits
        (["recipe=mine"], "cosine", "ancestral", 7),
        (["recipe=heir"], "sigmoid", "ancestral", 7),  # it inherits, and says something else
        (["dataset=my_digits"], "cosine", "ancestral", 7),  # the data set picks its recipe
        (["dataset=my_digits", "recipe=digits", "schedule=linear"], "linear", "deis", 2000),
        (["method=ddpm"], "linear", "deis", 2000),  # a method says nothing of the sampler
        (["recipe=mine", "method=ddpm"], "linear", "ancestral", 7),
        (["method=score_sde", "dataset=my_digits"], "VP", "ancestral", 7),
        (["recipe=mine", "method=ddpm", "schedule=quadratic", "sampler=ddim", "steps=9"], "quad", "ddim", 9),
    ],
)
def test_what_is_typed_wins_over_the_method_that_over_the_recipe_that_over_the_default(
    tmp_path, words, schedule, sampler, steps
):
    files = {
        "recipe/mine": "defaults: [override /schedule: cosine, override /sampler: ddpm]\nsteps: 7",
        "recipe/heir": "defaults: [mine, override /schedule: sigmoid]",
        "dataset/my_digits": "defaults: [override /recipe: mine]\ndataset: {_target_: digits, pad: 0, flip: false}",
    }
    for name, text in files.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# @package _global_\n{text}\n")
    typed = config("train", f"hydra.searchpath=[file://{tmp_path}]", *words)
    assert (typed.schedule["_target_"], typed.sampler["_target_"], typed.steps) == (schedule, sampler, steps)


def test_a_recipe_goes_with_the_data_that_it_was_measured_on():
    """One's own images and data sets go with any."""
    for recipe, of, dataset in (
        ("digits_fast", "digits", "cifar10"),
        ("cifar10", "cifar10", "cifar100"),
        ("mnist", "mnist", "fashion_mnist"),
    ):
        with pytest.raises(UsageError, match=f"dataset={dataset}: diffuse train dataset={of} recipe={recipe}, or"):
            refuse_recipe_of_other_data({"recipe": recipe, "dataset": dataset})
    for recipe in options("recipe"):
        for dataset in ("folder", "npz", "my_own"):
            refuse_recipe_of_other_data({"recipe": recipe, "dataset": dataset})
    for dataset in {*options("dataset")}:
        refuse_recipe_of_other_data({"recipe": dataset, "dataset": dataset})
        refuse_recipe_of_other_data({"recipe": f"{dataset}_long", "dataset": dataset})
        refuse_recipe_of_other_data({"recipe": "my_own", "dataset": dataset})


def test_a_data_set_that_picks_no_recipe_needs_one(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "plain.yaml").write_text("_target_: digits\npad: 0\nflip: false\n")
    words = [f"hydra.searchpath=[file://{tmp_path}]", "dataset=plain"]
    with pytest.raises(ConfigCompositionException, match="must specify 'recipe'"):
        config("train", *words)
    assert config("train", *words, "recipe=folder").steps == 50_000


@pytest.mark.parametrize("group", sorted({group for command in SCHEMAS for group in groups(command)} - {*PRESETS}))
def test_every_option_and_each_of_its_keys_is_described(group):
    for option in reference.options(group):
        assert option.description, option
        assert all(option.meaning(key) for key in option.values), option


@pytest.mark.parametrize("command", SCHEMAS)
def test_the_schema_and_the_yaml_have_the_same_keys(command):
    """Every value stands in the YAML, and nothing stands there that no schema knows."""
    required = [] if command == "train" else ["ckpt=x"]
    content = plain(config(command, *required))
    values = flat({key: value for key, value in content.items() if key not in groups(command)})
    assert set(values) == {name for name, _, about in all_keys(SCHEMAS[command]) if not about.group}
    assert set(groups(command)) <= {path.name for path in CONFIGS.iterdir()}
    assert all(about.help for _, _, about in all_keys(SCHEMAS[command]))


def test_compilation_can_be_typed():
    for typed, expected in (("true", True), ("false", False), ("null", None)):
        assert config("train", f"device.compile={typed}").device["compile"] is expected
        node = config("train", "device=cpu", f"device.compile={typed}").device
        assert build(node, "device").compiles is bool(expected)


def test_configs_hold_values_for_every_constructor_argument():
    """Each option of a network can be typed: none of them hides in a default of the code."""
    given_by_the_program = {
        "self",
        "image_size",
        "image_channels",
        "num_classes",
        "learned_variance",
        "augmentation_labels",
    }
    arguments = set(inspect.signature(UNet.__init__).parameters) - given_by_the_program
    for unet in options("unet"):
        assert set(config("train", f"unet={unet}").unet) == arguments | {"_target_"}
