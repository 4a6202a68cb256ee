"""The keys of each command, their types and ranges. Values live in configs/, and only there.

The members of a group (dataset, schedule, unet, device, sampler) are mappings with a `_target_`; their keys are the
arguments of that class or function, and `diffuse.options.build` checks them against its signature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffuse.options.score_names import METRICS, SAMPLE_SCORES
from diffuse.system.errors import UsageError, did_you_mean, pick


def _check(holds: bool, key: str, expected: str, given: object) -> None:
    if not holds:
        raise UsageError(f"{key} must be {expected}, not {given}")


@dataclass
class Optim:
    lr: float
    warmup: int
    decay: str
    clip: float
    weight_decay: float

    def __post_init__(self) -> None:
        _check(0 < self.lr < math.inf, "optim.lr", "positive and finite", self.lr)
        _check(self.warmup >= 0, "optim.warmup", "a number of steps, 0 or more", self.warmup)
        _check(self.decay in DECAYS, "optim.decay", f"one of {', '.join(DECAYS)}", repr(self.decay))
        _check(self.clip > 0, "optim.clip", "positive (use a large number for none)", self.clip)
        _check(self.weight_decay >= 0, "optim.weight_decay", "0 or more", self.weight_decay)


DECAYS = ("none", "linear", "cosine")


@dataclass
class Ema:
    decay: float

    def __post_init__(self) -> None:
        _check(0 <= self.decay < 1, "ema.decay", "at least 0 and below 1", self.decay)


@dataclass
class Checkpoint:
    every: int
    keep: int
    milestone_every: int | None

    def __post_init__(self) -> None:
        milestone = self.milestone_every
        _check(self.every >= 1, "checkpoint.every", "at least 1 step", self.every)
        _check(self.keep >= 1, "checkpoint.keep", "at least 1", self.keep)
        _check(milestone is None or milestone >= 1, "checkpoint.milestone_every", "at least 1 step or null", milestone)


@dataclass
class Images:
    every: int
    count: int

    def __post_init__(self) -> None:
        _check(self.every >= 1, "images.every", "at least 1 step", self.every)
        _check(self.count >= 1, "images.count", "at least 1", self.count)


@dataclass
class EvalWhileTraining:
    every: int | None
    n: int
    metrics: list[str]

    def __post_init__(self) -> None:
        _check(self.every is None or self.every >= 1, "eval.every", "at least 1 step or null", self.every)
        _check(self.n >= 2, "eval.n", "at least 2 images", self.n)
        check_metrics(self.metrics, "eval.metrics", [name for name in SAMPLE_SCORES if name != "memorisation"])


@dataclass
class Log:
    every: int

    def __post_init__(self) -> None:
        _check(self.every >= 1, "log.every", "at least 1 step", self.every)


@dataclass
class TrainConfig:
    """`diffuse train`."""

    name: str | None
    seed: int
    data_dir: str
    dataset: Any
    schedule: Any
    prediction: Any
    loss: Any
    weight: Any
    times: Any
    variance: str
    unet: Any
    device: Any
    sampler: Any
    class_conditional: bool
    steps: int
    batch_size: int
    optim: Optim
    ema: Ema
    log: Log
    images: Images
    checkpoint: Checkpoint
    eval: EvalWhileTraining
    features: Any
    max_hours: float | None
    resume: str | None
    trust: list[str]

    def __post_init__(self) -> None:
        _check(self.steps >= 1, "steps", "at least 1", self.steps)
        _check(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        _check(self.resume != "", "resume", "a run folder", "empty")
        _check(self.max_hours is None or self.max_hours > 0, "max_hours", "positive or null", self.max_hours)


@dataclass
class Place:
    path: str | None
    test_path: str | None
    skip_bad: bool | None


@dataclass
class SampleConfig:
    """`diffuse sample`."""

    ckpt: str
    name: str | None
    seed: int
    n: int
    batch_size: int
    label: int | None
    data_dir: str | None
    dataset: Place
    sampler: Any
    device: Any
    trust: list[str]

    def __post_init__(self) -> None:
        _check(self.ckpt != "", "ckpt", "a run folder or a checkpoint file", "empty")
        _check(self.n >= 1, "n", "at least 1", self.n)
        _check(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)


@dataclass
class Ode:
    solver: str
    tolerance: float
    steps: int
    divergence: str
    probes: int
    t_min: float | None

    def __post_init__(self) -> None:
        _check(self.solver in SOLVERS, "ode.solver", f"one of {', '.join(SOLVERS)}", repr(self.solver))
        _check(0 < self.tolerance < 1, "ode.tolerance", "between 0 and 1", self.tolerance)
        _check(self.steps >= 1, "ode.steps", "at least 1", self.steps)
        _check(self.divergence in DIVERGENCES, "ode.divergence", f"one of {', '.join(DIVERGENCES)}", self.divergence)
        _check(self.probes >= 1, "ode.probes", "at least 1", self.probes)


SOLVERS = ("rk45", "rk4", "heun")
DIVERGENCES = ("hutchinson", "exact")


def check_metrics(names: list[str], key: str, known: Sequence[str]) -> None:
    """Raise UsageError where a list of scores is empty or has an unknown one."""
    for name in names:
        pick(dict.fromkeys(known), key, name)
    _check(bool(names), key, f"a list of {', '.join(known)}", "empty")


@dataclass
class EvalConfig:
    """`diffuse eval`."""

    ckpt: str | None
    samples: str | None
    reference: str
    name: str | None
    seed: int
    data_dir: str | None
    dataset: Place
    n: int | None
    batch_size: int
    label: int | None
    metrics: list[str]
    features: Any
    sampler: Any
    levels: int | None
    variance: str | None
    clip: bool | None
    ode: Ode
    device: Any
    trust: list[str]

    def __post_init__(self) -> None:
        _check(self.ckpt != "", "ckpt", "a run folder or a checkpoint file", "empty")
        _check(self.n is None or self.n >= 2, "n", "at least 2 (a standard error needs them)", self.n)
        check_metrics(self.metrics, "metrics", METRICS)
        _check(self.reference != "", "reference", "train, test, a path or DATASET:SPLIT", "empty")
        _check(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)


SCHEMAS: dict[str, type] = {"train": TrainConfig, "sample": SampleConfig, "eval": EvalConfig}


def checked(cfg: DictConfig, schema: type) -> dict[str, Any]:
    """The config as plain values, its types and ranges checked, with no key that the schema lacks."""
    OmegaConf.to_object(cfg)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    _refuse_unknown(config, schema, "")
    return {str(key): value for key, value in config.items()}


def _refuse_unknown(config: dict[Any, Any], schema: type, prefix: str) -> None:
    """`+key=value` gets past Hydra even where there is no such key."""
    known = {field.name: field.type for field in fields(schema)}
    for key, value in config.items():
        if key not in known:
            raise UsageError(f"there is no key {prefix + str(key)!r}.{did_you_mean(str(key), known)}")
        inside = known[key]
        if isinstance(inside, type) and is_dataclass(inside):
            _refuse_unknown(value, inside, f"{prefix}{key}.")
