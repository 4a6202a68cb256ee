"""The sampler where none is named: that of the run's method, that of its training, or the recommended one.

The options `method`, `training` and `auto` of the group `sampler` are choices of another option, which takes their
place before anything is built or recorded.
"""

import math
from collections.abc import Sequence
from dataclasses import fields

from diffuse.options.build import about, bind
from diffuse.options.keys import Node
from diffuse.options.reference import option, option_with
from diffuse.options.shared_keys import SamplerKeys
from diffuse.options.targets import own_name
from diffuse.runs.sampler import Sampler
from diffuse.system.errors import UsageError, check
from diffuse.system.files import CONFIGS

GROUP = "sampler"
DEFAULT_EVALUATIONS = 10
CONSISTENCY = "consistency"
MANY = 250  # network calls for an image

# Up to so many evaluations an image, the option that scores best of those with one evaluation a step: docs/samplers.md.
RECOMMENDED = ((9, "unipc"), (math.inf, "deis"))


def method(prediction: Node, grids: Node) -> Node:
    """The sampler of the run's method: Heun's for prediction=edm, Euler's for flow, ancestral sampling otherwise.

    That of its grids after method=ect. It clips the predicted x0 as the grids of the run do.
    """
    if is_consistent(grids):
        return grids
    name = own_name("prediction", prediction["_target_"]) or ""
    return {**node_of({"edm": "heun", "flow": "ddim"}.get(name, "ddpm")), **clipping(grids)}


def training(prediction: Node, grids: Node) -> Node:
    """The sampler that drew the sample grids of the training."""
    return grids


def auto(prediction: Node, grids: Node, *, evaluations: int = DEFAULT_EVALUATIONS) -> Node:
    """The recommended sampler for a number of evaluations, by the measurements of docs/samplers.md.

    evaluations  calls of the denoiser for an image
    """
    check(evaluations >= 1, "evaluations", "at least 1", evaluations)
    if is_consistent(grids):
        return {**grids, "steps": evaluations, "times": None}
    name = next(name for most, name in RECOMMENDED if evaluations <= most)
    return {**node_of(name), "steps": evaluations, **clipping(grids)}


def is_consistent(grids: Node) -> bool:
    """Whether the network of a run was trained for a sampler that others cannot replace."""
    return own_name(GROUP, grids.get("_target_", "")) == CONSISTENCY


def clipping(grids: Node) -> Node:
    """Whether the predicted x0 is clipped, if a run has that otherwise than images usually have it."""
    return {key: grids[key] for key in ("clip", "percentile") if grids.get(key) is not None}


CHOICES = {choice.__name__: choice for choice in (method, training, auto)}


def resolved(node: Node, prediction: Node, grids: Node) -> Node:
    """The sampler that a choice stands for, with the shared keys beside it that are not null.

    Any other one is as it is, but that with clip=null it clips as the grids of the run do.
    prediction and grids are what the run has in the groups `prediction` and `sampler`. Raises UsageError where
    sampler=auto is given steps or times, or a spacing would move times that the training was given.
    """
    name = node.get("_target_")
    if name not in CHOICES:
        kept = {} if node.get("clip") is not None else clipping(grids)
        return {**node, **{key: value for key, value in kept.items() if node.get(key) is None}}
    shared = {field.name for field in fields(SamplerKeys)}
    typed = {key: value for key, value in node.items() if key in shared and value is not None}
    if name == auto.__name__ and (wrong := sorted(typed.keys() & {"steps", "times"})):
        raise UsageError(f"sampler.{wrong[0]} follows from sampler.evaluations where sampler=auto: set that instead")
    with about(GROUP):
        found = bind({key: value for key, value in node.items() if key not in shared}, GROUP)(prediction, grids)
    if found["_target_"] in CHOICES:
        raise UsageError("sampler=training is for a trained network; the grids of a training need another sampler")
    if found.get("times") is not None and typed.keys() & {"steps", "spacing"}:
        if "steps" not in typed:
            given = f"sampler.times={found['times']}"
            raise UsageError(f"the training had {given}: sampler.spacing needs sampler.steps too")
        found = {**found, "times": None}
    if typed.get("clip") is not None:  # a percentile belongs to clip=dynamic
        found = {**found, "percentile": None}
    return {**found, **typed}


def node_of(name: str) -> Node:
    """An option of the group `sampler` with the values of its file."""
    found = option(GROUP, CONFIGS / GROUP / f"{name}.yaml")
    return {"_target_": found.target, **found.values}


def faster_sampler(sampler: Sampler, typed_keys: Sequence[str], what: str = "") -> str:
    """A message that names a faster sampler, for one that takes many calls, or several and was not typed; or ""."""
    is_typed = any(key.partition(".")[0] == GROUP for key in typed_keys)
    if sampler.calls is None or sampler.calls < (MANY if is_typed else 2 * DEFAULT_EVALUATIONS):
        return ""
    name = option_with(GROUP, auto({}, {})["_target_"])
    image = f"an image {what}".strip()
    taken = f"{image} takes {sampler.calls:,} network calls with sampler={sampler.name}"
    return f"{taken}; sampler=auto takes {DEFAULT_EVALUATIONS}, with {name}"
