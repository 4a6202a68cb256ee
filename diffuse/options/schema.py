"""The keys of each command: types, ranges and meanings. Values live in configs/, and only there.

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
from diffuse.options.score_names import METRICS, SAMPLE_SCORES
from diffuse.options.targets import own_name
from diffuse.system.errors import Refused, UsageError, did_you_mean

AT_LEAST_1 = "[1, inf)"
VARIANCES = ("fixed_small", "fixed_large", "learned", "analytic")
SCORED_WHILE_TRAINING = tuple(name for name in SAMPLE_SCORES if name != "memorisation")


@dataclass
class Optim:
    lr: Annotated[float, key("peak learning rate of AdamW", "(0, inf)")]
    warmup: Annotated[int, key("steps of linear warm-up", "[0, inf)")]
    decay: Annotated[str, key("of the learning rate, over the whole run", choices=("none", "linear", "cosine"))]
    clip: Annotated[float, key("largest gradient norm; a large number for none", "(0, inf]")]
    weight_decay: Annotated[float, key("AdamW's", "[0, inf)")]


@dataclass
class Ema:
    decay: Annotated[float, key("of the averaged weights, which are the ones that are sampled from", "[0, 1)")]


@dataclass
class Log:
    every: Annotated[int, key("steps between lines of metrics", AT_LEAST_1, may_change=True)]


@dataclass
class Images:
    every: Annotated[int, key("steps between sample grids", AT_LEAST_1, may_change=True)]
    count: Annotated[int, key("images in a grid", AT_LEAST_1, may_change=True)]


@dataclass
class Checkpoint:
    every: Annotated[int, key("steps between checkpoints", AT_LEAST_1, may_change=True)]
    keep: Annotated[int, key("how many of the newest checkpoints are kept", AT_LEAST_1, may_change=True)]
    milestone_every: Annotated[
        int | None, key("steps between checkpoints that are kept for good (null: none)", AT_LEAST_1, may_change=True)
    ]


@dataclass
class EvalWhileTraining:
    every: Annotated[int | None, key("steps between scores of samples (null: none)", AT_LEAST_1, may_change=True)]
    n: Annotated[int, key("images drawn for them", "[2, inf)")]
    metrics: Annotated[
        list[str], key("which scores; by the first, the best checkpoint is kept", choices=SCORED_WHILE_TRAINING)
    ]


@dataclass
class TrainConfig:
    """`diffuse train`."""

    name: Annotated[str | None, key("the run's folder under outputs/ (null: <dataset>-<schedule>-<unet>/<time>)")]
    seed: Annotated[int, key("decides every random number")]
    data_dir: Annotated[str, key("where data sets lie, or are downloaded to and prepared", may_change=True)]
    dataset: Annotated[Node, group("what is learned", may_change=("path", "test_path", "skip_bad"))]
    schedule: Annotated[Node, group("how much noise there is at each time")]
    prediction: Annotated[Node, group("what the network predicts")]
    loss: Annotated[Node, group("what is minimised")]
    weight: Annotated[Node, group("of the squared error of x0 at each noise level")]
    times: Annotated[Node, group("how the times of a batch are drawn")]
    variance: Annotated[str, key("of the reverse steps; learned comes with loss=hybrid and vlb", choices=VARIANCES)]
    unet: Annotated[Node, group("the network")]
    device: Annotated[Node, group("where the network runs, and in which precision", may_change=True)]
    sampler: Annotated[Node, group("what draws the sample grids")]
    class_conditional: Annotated[bool, key("train on class labels too")]
    steps: Annotated[int, key("of training; may grow where optim.decay=none", AT_LEAST_1, may_change=True)]
    batch_size: Annotated[int, key("images in a step", AT_LEAST_1)]
    optim: Optim
    ema: Ema
    log: Log
    images: Images
    checkpoint: Checkpoint
    eval: EvalWhileTraining
    features: Annotated[Node, group("the network by whose features samples are scored")]
    max_hours: Annotated[
        float | None, key("stop after so long, with a checkpoint (null: never)", "(0, inf]", may_change=True)
    ]
    resume: Annotated[str | None, key("a run folder to continue")]
    trust: Annotated[list[str], key("packages of your own whose code a config may name", may_change=True)]

    @property
    def first_score(self) -> str | None:
        """The score of samples that comes first in what is reported, if there is one."""
        return self.eval.metrics[0] if self.eval.every else None


@dataclass
class DataPlace:
    path: Annotated[str | None, key("where the images of dataset=folder or npz are now (null: as in training)")]
    test_path: Annotated[str | None, key("the same for the file that dataset=npz tests on")]
    skip_bad: Annotated[bool | None, key("leave out images of a folder that cannot be read")]


@dataclass
class NetworkConfig:
    """What `diffuse sample` and `diffuse eval` share: a trained network, how it draws, where its data are now."""

    ckpt: Annotated[str | None, key("a run folder or a checkpoint file", may_change=True)]
    name: Annotated[str | None, key("the folder in the run's samples/ or eval/ (null: the time)", may_change=True)]
    seed: Annotated[int, key("decides every random number; image i depends on (seed, i) alone")]
    batch_size: Annotated[int, key("images at once; changes no image on a CPU", AT_LEAST_1, may_change=True)]
    label: Annotated[int | None, key("the class to draw, for a class-conditional run (null: all in turn)")]
    sampler: Annotated[Node, group("how images are drawn")]
    data_dir: Annotated[str | None, key("where data sets are now (null: as in training)", may_change=True)]
    dataset: DataPlace
    device: Annotated[Node, group("where the network runs, and in which precision")]
    trust: Annotated[list[str], key("packages of your own whose code the config may name", may_change=True)]

    @property
    def first_score(self) -> str | None:
        """The score that comes first in what is reported, if there is one."""
        return None


@dataclass
class SampleConfig(NetworkConfig):
    """`diffuse sample`."""

    n: Annotated[int, key("how many images", AT_LEAST_1)]


@dataclass
class Ode:
    solver: Annotated[str, key("rk45 chooses its steps", choices=("rk45", "rk4", "heun"))]
    tolerance: Annotated[float, key("rk45: relative and absolute error", "(0, 1)")]
    steps: Annotated[int, key("rk4, heun: how many, evenly spaced in log-SNR", AT_LEAST_1)]
    divergence: Annotated[str, key("estimated, or exact by a derivative a dimension", choices=("hutchinson", "exact"))]
    probes: Annotated[int, key("hutchinson: random probes for each image", AT_LEAST_1)]
    t_min: Annotated[float | None, key("where the flow begins (null: the smallest time that was trained at)")]


@dataclass
class EvalConfig(NetworkConfig):
    """`diffuse eval`."""

    metrics: Annotated[list[str], key("which scores; bpd stands for bound and ode", choices=METRICS)]
    n: Annotated[
        int | None, key("images drawn (null: 10,000), test images of bound and ode (null: 3 minutes)", "[2, inf)")
    ]
    samples: Annotated[str | None, key("images to score in place of drawn ones: a folder, an npz file, DATASET:SPLIT")]
    reference: Annotated[str, key("what they are compared with: train, test, a path, DATASET:SPLIT or statistics")]
    features: Annotated[Node, group("the network by whose features samples are scored")]
    levels: Annotated[int | None, key("noise levels of the bound (null: every one)")]
    variance: Annotated[str | None, key("of the bound's steps (null: the run's)", choices=VARIANCES)]
    clip: Annotated[bool | None, key("in the bound, keep the predicted x0 in [-1, 1] (null: yes for images)")]
    ode: Ode

    @property
    def first_score(self) -> str | None:
        return self.metrics[0]


@dataclass
class SamplerKeys:
    """The keys that every option of the group `sampler` has; the others are arguments of its function."""

    steps: Annotated[int | None, key("times that are walked through (null: every level)")]
    spacing: Annotated[str, key("of the times: uniform, to_zero, quadratic, log_snr or karras")]
    clip: Annotated[bool | None, key("keep the predicted x0 in [-1, 1] (null: yes for images)")]


@dataclass
class DatasetKeys:
    """The keys that the data sets of images have; the others are arguments of their functions."""

    pad: Annotated[int, key("width of a black border around each image, as the network sees it")]
    flip: Annotated[bool, key("whether a mirrored image is as good as the image")]


SCHEMAS: dict[str, type] = {"train": TrainConfig, "sample": SampleConfig, "eval": EvalConfig}
PRESETS = {"method": "a whole paper in a word", "recipe": "steps, batch, rate and network for a data set"}
Config = TypeVar("Config")


def groups(command: str) -> dict[str, str]:
    """The groups of a command, with what each is about. The presets of `train` set keys and options of other groups."""
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
    """The config that a run folder or a checkpoint holds, perhaps from a time when keys and names were others.

    Keys that did not exist then have the values that they stand for, and options have their names of today.
    """
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
    """A typed config as plain dicts, lists and values, in the order of its keys."""
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
