"""Data sets from a config, or by their name alone."""

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from diffuse.data.images import Dataset
from diffuse.options.build import build_with
from diffuse.options.keys import Node
from diffuse.system.errors import UsageError, pick
from diffuse.system.files import CONFIGS


def build_dataset(node: Node, data_dir: Path, trust: Sequence[str] = ()) -> Dataset:
    """The data set that the group `dataset` describes; its images are made ready when they are first asked for.

    A data set that keeps files has an argument data_dir, and is given the folder that they are under.
    """
    return typing.cast(Dataset, build_with(node, "dataset", trust, data_dir=data_dir))


def build_named_dataset(name: str, data_dir: Path) -> Dataset:
    """The data set of that name as its YAML file has it."""
    known = {path.stem: path for path in sorted((CONFIGS / "dataset").glob("*.yaml"))}
    content = typing.cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(pick(known, "the data set", name))))
    node = content["dataset"]
    if "???" in node.values():
        raise UsageError(f"{name} stands for images of your own: give their path itself")
    return build_dataset(node, data_dir)


def default_data_dir() -> str:
    """Where training keeps data sets unless told otherwise."""
    return str(OmegaConf.select(OmegaConf.load(CONFIGS / "train.yaml"), "data_dir"))
