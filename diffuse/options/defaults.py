"""The config of a training by default, and the nodes of options, from configs/ without Hydra."""

import typing
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from diffuse.options.keys import Node
from diffuse.system.errors import pick
from diffuse.system.files import CONFIGS


def node(group: str, name: str, key: str | None = None) -> Node:
    """An option of a group, with the values of its file. Raises UsageError, with the key, if there is none such."""
    known = {path.stem: path for path in sorted((CONFIGS / group).glob("*.yaml"))}
    content = _values(pick(known, key or group, name))
    shared = [each for each in content.pop("defaults", []) if isinstance(each, str) and each.endswith("@_here_")]
    values = {key: value for each in shared for key, value in _values(CONFIGS / f"{each[1:-7]}.yaml").items()}
    return typing.cast(Node, {**values, **content.get(group, content)})


def default_training() -> dict[str, Any]:
    """The values of configs/train.yaml with its options; without a recipe, a method and a data set."""
    content = _values(CONFIGS / "train.yaml")
    listed = [each for each in content.pop("defaults") if isinstance(each, dict)]
    chosen = {group: name for each in listed for group, name in each.items()}
    nodes = {group: node(group, name) for group, name in chosen.items() if group not in ("recipe", "method", "dataset")}
    return {**nodes, **content}


def _values(path: Path) -> dict[str, Any]:
    return typing.cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(path)))
