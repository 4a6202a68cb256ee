"""Other programs' weights as a trained network of ours: its config, its kind of images, its tensors by our names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
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
NESTED = ("state_dict", "model", "ema")  # under which other programs put the tensors


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


def read_foreign(path: Path, options: Foreign) -> ForeignWeights | None:
    """The weights in a folder or file; None where no format is recognised. Raises UserError."""
    if path.is_dir():
        if not diffusers_folder.holds_network(path):
            return None
        found, files = diffusers_folder.read(path.resolve(), options)
        return assembled(diffusers_folder.NAME, found, files, options, path.resolve().name)
    path = path.resolve()
    content = read_weights(path)
    name = options.format or recognised(content)
    if name is None:
        return None
    if name == diffusers_folder.NAME:
        raise UserError(f"{path} has the names of diffusers, whose config.json says what they mean: give its folder")
    return assembled(name, reader(name)(content, path, options), [path], options, path.stem)


def recognised(content: Any) -> str | None:
    """The format that the names of tensors are in, if one can be told by them.

    The three formats of OpenAI have the same names: which one it is has to be said.
    """
    if pytorch_ddpm.recognises(content):
        return pytorch_ddpm.NAME
    names = nested(content)
    if not isinstance(names, Mapping):
        return None
    if ddim.recognises(names):
        return ddim.NAME
    if openai.recognises(names):
        raise UsageError(
            "foreign.format is needed: the names of the weights are those of improved_diffusion, guided_diffusion and "
            "consistency_models"
        )
    return diffusers_folder.NAME if diffusers_names.recognises(map(diffusers_names.todays_name, names)) else None


def reader(name: str) -> Callable[[Any, Path, Foreign], Found]:
    """What reads the content of a file in a format."""
    if name == pytorch_ddpm.NAME:
        return pytorch_ddpm.read
    read = ddim.read if name == ddim.NAME else partial(openai.read, name=name)
    return lambda content, path, options: read(tensors_in(nested(content), path), options)


def nested(content: Any) -> Any:
    """The tensors in a file, which may lie under a name that training programs use."""
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return content[key]
    return content


def assembled(name: str, found: Found, files: list[Path], options: Foreign, called: str) -> ForeignWeights:
    """The weights by our names, and the config of their network. Raises UserError where they do not fit together."""
    if unused := [key for key in ANSWERED.get(name, ()) if getattr(options, key) is not None]:
        raise UsageError(
            f"foreign.{unused[0]} is not asked of {name} weights, which are all alike in that: leave it out"
        )
    kind, config = kind_of(found, options, called), config_of(found, options, called)
    with torch.device("meta"):  # which takes no memory: the sizes are a stranger's
        net = build(found.unet, "unet", **network_arguments(found))
    rows = table(net, found.naming)
    ema = to_ours(net, rows, found.tensors)
    raw = to_ours(net, rows, found.raw) if found.raw else ema
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
