"""Other programs' weights as a trained network of ours: its config, its kind of images, its tensors by our names."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffuse.data.images import ImageKind
from diffuse.foreign import ddim, diffusers_folder, diffusers_names, openai, pytorch_ddpm
from diffuse.foreign.files import Tensors, read_weights, tensors_in
from diffuse.foreign.found import Found, asked
from diffuse.foreign.naming import table, to_ours
from diffuse.options.build import build
from diffuse.options.dataset import build_named_dataset, default_data_dir
from diffuse.options.defaults import default_training, node
from diffuse.options.keys import Node
from diffuse.options.nested import Foreign
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import data_folder, sha256, slug
from diffuse.system.sizes import height_width, in_words

EPS = {"_target_": "eps"}
LARGEST_SIZE = 8192  # pixels
CLASSIFIER = "Classifier"
UNKNOWN_DATA = "unknown"
# Keys of `foreign` that the files of a format answer themselves.
ANSWERED = {
    diffusers_folder.NAME: ("heads", "head_channels", "attention_order", "time_scale"),
    ddim.NAME: ("heads", "head_channels", "attention_order", "time_scale"),
    pytorch_ddpm.NAME: ("heads", "head_channels", "attention_order", "time_scale"),
    openai.IMPROVED: ("attention_order",),
    openai.CONSISTENCY: ("heads", "head_channels", "attention_order", "schedule", "levels", "prediction", "variance"),
}
NESTED = ("state_dict", "model")  # under which other programs put the tensors
AVERAGED = "ema"  # and under which the averaged ones beside them


@dataclass(frozen=True)
class ForeignWeights:
    """Weights of another program.

    format   the name of their format
    config   the config of a training that such a network would come from; what the weights do not say has its default
    kind     of the images
    ema, raw the weights: those to sample with, and the trained ones where they are others
    files    every file that was read, with its SHA-256, the weights first
    """

    format: str
    config: dict[str, Any]
    kind: ImageKind
    ema: Tensors
    raw: Tensors
    step: int
    files: Mapping[str, str]


def no_options() -> Foreign:
    """The options of `foreign` where none is typed."""
    return Foreign(**dict.fromkeys(field.name for field in fields(Foreign)))


def typed_in(options: Foreign) -> dict[str, Any]:
    """The options that are typed, by name."""
    return {name: value for name, value in asdict(options).items() if value is not None}


def read_foreign(path: Path, options: Foreign) -> ForeignWeights | None:
    """The weights in a folder or file; None where no format is recognised. Raises UserError."""
    if path.is_dir():
        if not diffusers_folder.holds_network(path):
            return None
        if options.format not in (None, diffusers_folder.NAME):
            raise UsageError(f"foreign.format={options.format} is of files, and {path} is a folder of diffusers")
        found, files = diffusers_folder.read(path.resolve(), options)
        return assembled(diffusers_folder.NAME, found, files, options, path.resolve().name)
    # Not what a link to a file leads to, which in a cache of downloads has neither its name nor its ending.
    path = path.parent.resolve() / path.name
    content = read_weights(path)
    possible = formats_of(content)
    if options.format and possible and options.format not in possible:
        raise UsageError(
            f"foreign.format={options.format} is not that of {path.name}, whose names are those of {possible[0]}"
        )
    if len(possible) > 1 and options.format is None:
        raise UsageError(f"foreign.format is needed: the names of the weights are those of {', '.join(possible)}")
    name = options.format or next(iter(possible), None)
    if name is None:
        return None
    if name == diffusers_folder.NAME:
        raise UserError(f"{path} has the names of diffusers, whose config.json says what they mean: give its folder")
    return assembled(name, reader(name)(content, path, options), [path], options, path.stem)


def formats_of(content: Any) -> tuple[str, ...]:
    """The formats that have these names of tensors: none, one, or those of OpenAI, which have the same."""
    if pytorch_ddpm.recognises(content):
        return (pytorch_ddpm.NAME,)
    names, _ = nested(content)
    if not isinstance(names, Mapping):
        return ()
    if ddim.recognises(names):
        return (ddim.NAME,)
    if openai.recognises(names):
        return (openai.IMPROVED, openai.GUIDED, openai.CONSISTENCY)
    todays = (diffusers_names.todays_name(name) for name in names if isinstance(name, str))
    return (diffusers_folder.NAME,) if diffusers_names.recognises(todays) else ()


def reader(name: str) -> Callable[[Any, Path, Foreign], Found]:
    """What reads the content of a file in a format."""
    if name == pytorch_ddpm.NAME:
        return pytorch_ddpm.read
    read = ddim.read if name == ddim.NAME else partial(openai.read, name=name)

    def read_nested(content: Any, path: Path, options: Foreign) -> Found:
        tensors, raw = nested(content)
        found = read(tensors_in(tensors, path), options)
        return found if raw is None else replace(found, raw=tensors_in(raw, path))

    return read_nested


def nested(content: Any) -> tuple[Any, Any]:
    """The tensors in a file, which may lie under a name that training programs use; the trained ones where both are.

    An average counts as one where it has the names of what it averages.
    """
    if not isinstance(content, Mapping):
        return content, None
    raw = next((content[key] for key in NESTED if isinstance(content.get(key), Mapping)), None)
    averaged = content.get(AVERAGED)
    if not isinstance(averaged, Mapping) or (raw is not None and averaged.keys() != raw.keys()):
        return (content if raw is None else raw), None
    return averaged, raw


def assembled(name: str, found: Found, files: list[Path], options: Foreign, called: str) -> ForeignWeights:
    """The weights by our names, and the config of their network. Raises UserError where they do not fit together."""
    if unused := [key for key in ANSWERED.get(name, ()) if getattr(options, key) is not None]:
        raise UsageError(
            f"foreign.{unused[0]} is not asked of {name} weights, which are all alike in that: leave it out"
        )
    with torch.device("meta"):  # which takes no memory: the sizes are a stranger's until the tensors have them
        net = build(found.unet, "unet", **network_arguments(found))
    rows = table(net, found.naming)
    ema = to_ours(net, rows, found.tensors)
    raw = to_ours(net, rows, found.raw) if found.raw else ema
    kind, config = kind_of(found, options, called), config_of(found, options, called)
    return ForeignWeights(name, config, kind, ema, raw, found.step, {str(path): sha256(path) for path in files})


def kind_of(found: Found, options: Foreign, called: str) -> ImageKind:
    """The kind of the images: that of the data set which the user names, or what follows from the weights."""
    assert found.image_size is not None
    rows, size, channels = found.classes, height_width(found.image_size, "image_size"), found.image_channels
    if max(size) > LARGEST_SIZE:
        raise UserError(
            f"the weights are said to be for images of {in_words(*size)} pixels, and {LARGEST_SIZE:,} is the most here"
        )
    classes = rows - 1 if options.null_label else rows
    if options.null_label and rows < 2:
        raise UsageError("foreign.null_label is about the table of labels, and these weights have none")
    if options.dataset is None:
        return ImageKind(called, channels, *size, [str(number) for number in range(classes)])
    kind = build_named_dataset(options.dataset, data_folder(default_data_dir())).kind
    if kind.shape != (channels, *size):
        raise UsageError(
            f"foreign.dataset={options.dataset} has images of {kind.channels} x {in_words(*kind.padded_size)}, and "
            f"these weights are for {channels} x {in_words(*size)}"
        )
    if rows and len(kind.classes) != classes:
        raise UsageError(
            f"foreign.dataset={options.dataset} has {len(kind.classes)} classes, and these weights have {classes}: "
            "look at foreign.null_label"
        )
    return kind


def config_of(found: Found, options: Foreign, called: str) -> dict[str, Any]:
    """The config of a training that such a network would come from."""
    values = default_training()
    values |= {
        **{"name": slug(called) or "weights", "unet": found.unet, "data_dir": default_data_dir()},
        **{
            "steps": max(1, found.step),
            "class_conditional": found.classes > 0,
            "label_dropout": 0.1 if options.null_label else 0.0,
        },
        "dataset": node("dataset", options.dataset) if options.dataset else {"_target_": UNKNOWN_DATA},
        "schedule": schedule_of(found, options),
        "prediction": node("prediction", options.prediction) if options.prediction else found.prediction or EPS,
        "sampler": {**values["sampler"], "clip": found.clip, "percentile": found.percentile},
    }
    if found.unet["_target_"] == CLASSIFIER:
        return {**values, "variance": "fixed_large", "loss": node("loss", "cross_entropy")}
    variance = variance_of(found, options)
    loss = node("loss", "hybrid" if variance == "learned" else "simple")
    return {**values, "variance": variance, "loss": loss}


def network_arguments(found: Found) -> dict[str, Any]:
    """What a network is given beside its options."""
    given = {"image_size": found.image_size, "image_channels": found.image_channels}
    if found.unet["_target_"] == CLASSIFIER:
        return {**given, "num_classes": found.classes}
    return {**given, "num_classes": found.classes or None, "learned_variance": found.learned_variance}


def schedule_of(found: Found, options: Foreign) -> Node:
    """The noise schedule: what the user says, or else the file."""
    given = node("schedule", options.schedule, "foreign.schedule") if options.schedule else found.schedule
    schedule = dict(asked("schedule", given, "the weights do not say it (linear, cosine, ...)"))
    if "levels" in schedule and (options.schedule or options.levels):
        schedule["levels"] = asked("levels", options.levels or found.levels, "the weights do not say it (1000, 4000)")
    elif options.levels and "levels" not in schedule:
        raise UsageError(
            f"foreign.levels is of a schedule of levels, and {schedule['_target_']} has none: leave it out"
        )
    return schedule


def variance_of(found: Found, options: Foreign) -> str:
    """The variance of the reverse steps. Raises UserError where the output of the network is no prediction."""
    if found.learned_variance:
        if options.variance:
            raise UsageError("foreign.variance is of a network without a learned variance, and this one has one")
        return "learned"
    if found.outputs != found.image_channels:
        raise UserError(
            f"the network returns {found.outputs} channels for images of {found.image_channels}: neither a prediction "
            "nor one with a learned variance"
        )
    if found.variance == "learned":
        raise UserError("the scheduler says that the variance is learned, and the network has no output for it")
    return options.variance or found.variance or "fixed_large"
