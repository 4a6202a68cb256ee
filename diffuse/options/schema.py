"""The keys of each command: types, ranges and meanings. Their values stand in configs/ and nowhere else.

The chosen option of a group (dataset, schedule, unet, ...) is a mapping with a `_target_`; its other keys are the
arguments of that class or function, checked by `build` against its signature.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from diffuse.options.keys import Node, all_keys, check_values, group, key
from diffuse.options.nested import (
    AT_LEAST_1,
    EXPORTS,
    Augment,
    Checkpoint,
    Edit,
    Ema,
    EmaLength,
    EvalWhileTraining,
    Foreign,
    Images,
    Init,
    Log,
    Noise,
    Ode,
    Optim,
)
from diffuse.options.score_names import METRICS
from diffuse.options.targets import own_name
from diffuse.system.errors import Refused, UsageError, did_you_mean

VARIANCES = ("fixed_small", "fixed_large", "learned", "analytic")
CLASSIFIER_LOSS = "cross_entropy"
SAVED = ("png", "npz")
NUMBER_OF_PROCESSES = ("processes", "restarts", "wait")


@dataclass
class TrainConfig:
    """fit a diffusion model to a data set, into outputs/<name>"""

    name: Annotated[str | None, key("the run's folder under outputs/ (null: <dataset>-<schedule>-<unet>/<time>)")]
    seed: Annotated[int, key("seed of every random number")]
    data_dir: Annotated[str, key("folder of the data sets, downloaded and prepared there if missing", may_change=True)]
    dataset: Annotated[Node, group("images to learn", may_change=("path", "test_path", "skip_bad"))]
    schedule: Annotated[Node, group("amount of noise at each time")]
    prediction: Annotated[Node, group("what the network predicts")]
    loss: Annotated[Node, group("loss that is minimised")]
    weight: Annotated[Node, group("weight of the squared error of x0 at each noise level")]
    times: Annotated[Node, group("how the times of a batch are drawn")]
    variance: Annotated[str, key("variance of the reverse steps; loss=hybrid and loss=vlb learn it", choices=VARIANCES)]
    unet: Annotated[Node, group("network")]
    device: Annotated[Node, group("where the network runs, in which precision", may_change=True)]
    sampler: Annotated[Node, group("method that draws the sample grids")]
    class_conditional: Annotated[bool, key("train on class labels as well")]
    label_dropout: Annotated[
        float, key("share of labels replaced by 'no class' while training on them, for guidance", "[0, 1)", before=0.0)
    ]
    steps: Annotated[
        int,
        key("steps of training; may grow later where optim.decay has no end", AT_LEAST_1, may_change=True),
    ]
    batch_size: Annotated[int, key("images in a step", AT_LEAST_1)]
    grad_accumulation: Annotated[
        int,
        key("parts of a batch, computed one after the other for less memory", AT_LEAST_1, may_change=True, before=1),
    ]
    parts: Annotated[
        int | None,
        key(
            "parts of a batch, divided among the processes (null: processes x grad_accumulation at the start)",
            AT_LEAST_1,
            may_change=True,
            before=None,
        ),
    ]
    optim: Optim
    noise: Noise
    augment: Augment
    ema: Ema
    log: Log
    images: Images
    checkpoint: Checkpoint
    eval: EvalWhileTraining
    features: Annotated[Node, group("network whose features compare samples with real images")]
    init: Init
    foreign: Foreign
    max_hours: Annotated[float | None, key("stop after so many hours, with a checkpoint", "(0, inf]", may_change=True)]
    resume: Annotated[str | None, key("a run folder to continue")]
    trust: Annotated[list[str], key("your own packages whose code a config may name", may_change=True)]

    @property
    def classifies(self) -> bool:
        """Whether a classifier of noisy images is trained, and not a denoiser."""
        return own_name("loss", str(self.loss.get("_target_"))) == CLASSIFIER_LOSS

    @property
    def first_score(self) -> str | None:
        """The score of samples that is reported first, if there is one."""
        return self.eval.metrics[0] if self.eval.every else None


@dataclass
class DataPlace:
    path: Annotated[str | None, key("where the images of dataset=folder or npz are now (null: as in training)")]
    test_path: Annotated[str | None, key("where the test file of dataset=npz is now")]
    skip_bad: Annotated[bool | None, key("leave out images that cannot be read")]


@dataclass
class NetworkConfig:
    """What `diffuse sample` and `diffuse eval` share: a trained network, how it draws, where its data are now."""

    ckpt: Annotated[str | None, key("a run folder, a checkpoint file, or other programs' weights", may_change=True)]
    foreign: Foreign
    ema: EmaLength
    name: Annotated[str | None, key("the folder in the run's samples/ or eval/ (null: the time)", may_change=True)]
    seed: Annotated[int, key("seed of every random number; image i depends on (seed, i) alone")]
    batch_size: Annotated[int, key("images drawn at once; changes no image on a CPU", AT_LEAST_1, may_change=True)]
    label: Annotated[Any, key("class to draw, by name or number, or a list of classes (null: all in turn)")]
    guidance: Annotated[Node, group("what predictions are pushed towards while drawing")]
    sampler: Annotated[Node, group("method that draws images")]
    data_dir: Annotated[str | None, key("folder of the data sets now (null: as in training)", may_change=True)]
    dataset: DataPlace
    device: Annotated[
        Node, group("where the network runs, in which precision", may_change=("processes", "restarts", "wait"))
    ]
    trust: Annotated[list[str], key("your own packages whose code the config may name", may_change=True)]

    @property
    def first_score(self) -> str | None:
        """The score that is reported first, if there is one."""
        return None


@dataclass
class SampleConfig(NetworkConfig):
    """draw images from a trained run, into <run>/samples/<time>"""

    n: Annotated[
        int | None, key("number of images (null: 64; 8 of an edited image, one of each in a folder)", AT_LEAST_1)
    ]
    edit: Edit
    trajectory: Annotated[
        bool | None, key("pictures of the way from noise to images: a strip and a GIF (null: for n up to 64)")
    ]
    save: Annotated[
        list[str] | None,
        key("png, a file for each image, and npz, one for all (null: both up to 1,000)", choices=SAVED),
    ]

    @property
    def count(self) -> int:
        """n, where it is not null."""
        assert self.n is not None
        return self.n


@dataclass
class EvalConfig(NetworkConfig):
    """score a trained run, by likelihood and by its samples, into <run>/eval/<time>"""

    metrics: Annotated[list[str], key("scores to compute; bpd stands for bound and ode", choices=METRICS)]
    n: Annotated[int | None, key("images drawn (null: 10,000), test images of bound, ode (null: 3 min)", "[2, inf)")]
    samples: Annotated[str | None, key("images to score instead of drawing: a folder, an npz file, DATASET:SPLIT")]
    reference: Annotated[str, key("images to compare with: train, test, a path, DATASET:SPLIT, statistics")]
    features: Annotated[Node, group("network whose features compare samples with real images")]
    levels: Annotated[int | None, key("noise levels of the bound (null: all)")]
    variance: Annotated[str | None, key("reverse variance of the bound (null: the run's)", choices=VARIANCES)]
    clip: Annotated[bool | None, key("clip the predicted x0 of the bound to [-1, 1] (null: yes for images)")]
    ode: Ode

    @property
    def first_score(self) -> str | None:
        return self.metrics[0]


@dataclass
class ExportConfig:
    """write the weights of a run for other programs, into <run>/export/<to>"""

    ckpt: Annotated[str, key("a run folder, a checkpoint file, or other programs' weights")]
    foreign: Foreign
    to: Annotated[str, key("format that is written", choices=EXPORTS)]
    out: Annotated[str | None, key("folder that is written (null: export/<to> in the run)")]
    ema: EmaLength
    license: Annotated[str | None, key("licence that the model card states")]
    trust: Annotated[list[str], key("your own packages whose code the config may name")]

    @property
    def first_score(self) -> str | None:
        return None

    @property
    def device(self) -> Node:
        """Where nothing is computed: the CPU."""
        return {"kind": "cpu"}


SCHEMAS: dict[str, type] = {"train": TrainConfig, "sample": SampleConfig, "eval": EvalConfig, "export": ExportConfig}
PRESETS = {"method": "all the choices of a paper", "recipe": "steps, batch size, rate and network for a data set"}
Config = TypeVar("Config")


def groups(command: str) -> dict[str, str]:
    """The groups of a command and their meanings. The presets of `train` set keys and options of other groups."""
    own = {name: about.help for name, _, about in all_keys(SCHEMAS[command]) if about.group}
    return {**PRESETS, **own} if command == "train" else own


def checked(cfg: DictConfig, schema: type[Config]) -> Config:
    """The typed config, its values checked. Raises UsageError where one is out of range or a key is unknown."""
    values = typing.cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True))
    known = {name: about for name, _, about in all_keys(typing.cast(type, schema))}
    for name in flat(values):  # `+key=value` gets past Hydra even where there is no such key
        holder = known.get(name.partition(".")[0])
        if name not in known and not (holder and holder.group):  # options of groups are checked by `build`
            raise UsageError(f"there is no key {name!r}.{did_you_mean(name, known)}")
    config = typing.cast(Config, OmegaConf.to_object(cfg))
    try:
        check_values(config)
    except Refused as error:
        raise UsageError(str(error)) from error
    return config


def stored_config(values: Mapping[str, Any]) -> TrainConfig:
    """The config of a run folder or a checkpoint, which an older version may have written.

    Keys that did not exist then get the value that reproduces what was done without them; options get today's names.
    Raises UsageError where a value is an interpolation.
    """
    for name, value in flat(values).items():
        if "${" in str(value):  # it would be resolved with the environment of the reader
            raise UsageError(f"{name} holds an interpolation, {str(value)[:60]}; a stored config has values only")
    known = list(all_keys(TrainConfig))
    absent = OmegaConf.from_dotlist([])
    for name, _, about in known:
        if about.before is not ...:
            OmegaConf.update(absent, name, about.before)
    config = checked(
        typing.cast(DictConfig, OmegaConf.merge(OmegaConf.structured(TrainConfig), absent, dict(values))), TrainConfig
    )
    for name, _, about in known:
        node = getattr(config, name) if about.group else {}
        if isinstance(target := node.get("_target_"), str):
            node["_target_"] = own_name(name, target) or target
    return config


def plain(config: Any) -> dict[str, Any]:
    """A typed config as dicts, lists and plain values, in the order of its keys."""
    return dataclasses.asdict(config)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones: {"optim": {"lr": 1}} becomes {"optim.lr": 1}."""
    pairs: dict[str, Any] = {}
    for name, value in values.items():
        pairs |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return pairs


def keys_that_may_change() -> list[str]:
    """The keys of `train` that may differ when a run is continued; "device.*" stands for all in a group."""
    listed = []
    for name, _, about in all_keys(TrainConfig):
        if about.may_change is True:
            listed.append(f"{name}.*" if about.group else name)
        elif about.may_change:
            listed += [f"{name}.{option}" for option in about.may_change]
    return listed


def may_change(name: str) -> bool:
    """Whether a dotted key of `train` may differ when a run is continued."""
    return bool({name, f"{name.partition('.')[0]}.*"} & set(keys_that_may_change()))
