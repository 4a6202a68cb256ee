"""The sampler where none is named: that of the run's method, that of its training, or the recommended one.

The options `method`, `training` and `auto` of the group `sampler` are choices of another option, which takes their
place before anything is built or recorded.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple

from diffuse.options.build import about, bind
from diffuse.options.keys import Node
from diffuse.options.reference import option, option_with
from diffuse.options.schema import SamplerKeys
from diffuse.options.targets import own_name
from diffuse.runs.sampler import Sampler
from diffuse.system.errors import UsageError, check
from diffuse.system.files import CONFIGS

GROUP = "sampler"
DEFAULT_EVALUATIONS = 10
MANY = 250  # network calls for an image


class Row(NamedTuple):
    """Up to `most` evaluations an image, the option `name`, which takes one evaluation a step."""

    most: float
    name: str


# By measurement: docs/samplers.md has the scores.
ANY_METHOD = (Row(float("inf"), "deis"),)
EDM = (Row(float("inf"), "deis"),)


def method(prediction: Node, grids: Node) -> Node:
    """The sampler of the run's method: ancestral sampling, Heun's for prediction=edm, Euler's for prediction=flow."""
    return node_of({"edm": "heun", "flow": "ddim"}.get(name_of(prediction), "ddpm"))


def training(prediction: Node, grids: Node) -> Node:
    """The sampler that drew the sample grids of the training."""
    return grids


def auto(prediction: Node, grids: Node, *, evaluations: int = DEFAULT_EVALUATIONS) -> Node:
    """The recommended sampler for a number of evaluations, by the measurements of docs/samplers.md.

    evaluations  calls of the denoiser for an image
    """
    check(evaluations >= 1, "evaluations", "at least 1", evaluations)
    table = EDM if name_of(prediction) == "edm" else ANY_METHOD
    chosen = next(row for row in table if evaluations <= row.most)
    return {**node_of(chosen.name), "steps": evaluations}


CHOICES = {choice.__name__: choice for choice in (method, training, auto)}


def chosen(node: Node, prediction: Node, grids: Node) -> Node:
    """The sampler that a choice stands for, with the shared keys that were set beside it; other nodes as they are.

    prediction and grids are what the run has in the groups `prediction` and `sampler`. Raises UsageError where
    sampler=auto is given steps or times.
    """
    name = node.get("_target_")
    if name not in CHOICES:
        return node
    shared = {field.name for field in fields(SamplerKeys)}
    typed = {key: value for key, value in node.items() if key in shared and value is not None}
    if name == auto.__name__ and (wrong := sorted(typed.keys() & {"steps", "times"})):
        raise UsageError(f"sampler.{wrong[0]} follows from sampler.evaluations where sampler=auto: leave it out")
    with about(GROUP):
        found = bind({key: value for key, value in node.items() if key not in shared}, GROUP)(prediction, grids)
    if found["_target_"] in CHOICES:
        raise UsageError("sampler=training is for a trained network; the grids of a training need another sampler")
    if "steps" in typed:  # not those of a grid that the training was given
        found = {**found, "times": None}
    return {**found, **typed}


def name_of(prediction: Node) -> str:
    """The name of a prediction, also as older configs have it."""
    return own_name("prediction", prediction["_target_"]) or ""


def node_of(name: str) -> Node:
    """An option of the group `sampler` with the values of its file."""
    found = option(GROUP, CONFIGS / GROUP / f"{name}.yaml")
    return {"_target_": found.target, **found.values}


def faster_sampler(prediction: Node, sampler: Sampler, typed_keys: Sequence[str], what: str = "") -> str:
    """A message that names a faster sampler, for one that takes many calls, or several and was not typed; or ""."""
    is_typed = any(key.partition(".")[0] == GROUP for key in typed_keys)
    if sampler.cost < (MANY if is_typed else 2 * DEFAULT_EVALUATIONS):
        return ""
    name = option_with(GROUP, auto(prediction, {})["_target_"])
    image = f"an image {what}".strip()
    taken = f"{image} takes {sampler.cost:,} network calls with sampler={sampler.name}"
    return f"{taken}; sampler=auto takes {DEFAULT_EVALUATIONS}, with {name}"
