"""Data sets from a config, or by their name alone."""

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from diffuse.data.images import EIGHT_BIT, NONE, Dataset, ImageKind
from diffuse.options.build import about, build_with, checked_options
from diffuse.options.keys import Node
from diffuse.system.errors import UsageError, pick
from diffuse.system.files import CONFIGS


def build_dataset(node: Node, data_dir: Path, trust: Sequence[str] = ()) -> Dataset:
    """The data set of the group `dataset`; its images are prepared when they are first used.

    A data set that keeps files has an argument data_dir, the folder that they lie under.
    """
    return typing.cast(Dataset, build_with(node, "dataset", trust, data_dir=data_dir))


def build_named_dataset(name: str, data_dir: Path) -> Dataset:
    """The data set of that name, with the values of its YAML file."""
    known = {path.stem: path for path in sorted((CONFIGS / "dataset").glob("*.yaml"))}
    content = typing.cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(pick(known, "the data set", name))))
    node = content["dataset"]
    if "???" in node.values():
        raise UsageError(f"{name} needs a path: give the path of your images in its place")
    return build_dataset(node, data_dir)


def stored_kind(content: Node) -> ImageKind:
    """The kind of images in a checkpoint, checked. Until 1.11 it had one size, and `bounded` meant 8-bit images."""
    found = dict(content)
    if "size" in found:
        found["height"] = found["width"] = found.pop("size")
    if "bounded" in found:
        found["values"] = EIGHT_BIT if found.pop("bounded") else NONE
    with about("kind"):
        return ImageKind(**checked_options(ImageKind, found, "kind"))


def default_data_dir() -> str:
    """The folder of data sets by default."""
    return str(OmegaConf.select(OmegaConf.load(CONFIGS / "train.yaml"), "data_dir"))
