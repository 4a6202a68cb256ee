"""The names of tensors in a UNet2DModel of diffusers, today's and those that were used before."""

import re
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from diffuse.foreign.files import Tensors
from diffuse.foreign.naming import Naming, Place

# Attention until diffusers 0.15; and modules until 0.1.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_MODULES = {"downsample_blocks": "down_blocks", "upsample_blocks": "up_blocks", "mid": "mid_block"}


def prefix(place: Place) -> str:
    """The name of a block: on the way up levels are counted from the lowest resolution."""
    if place.side == "middle":
        return f"mid_block.{('resnets.0', 'attentions.0', 'resnets.1')[place.module]}"
    level = place.level if place.side == "down" else place.levels - 1 - place.level
    inside = {"residual": f"resnets.{place.block}", "attention": f"attentions.{place.block}"}
    resampling = {"halve": "downsamplers.0", "double": "upsamplers.0"}
    return f"{place.side}_blocks.{level}.{(inside | resampling)[place.role]}"


NAMING = Naming(
    plain={
        "embed_time.0": "time_embedding.linear_1",
        "embed_time.2": "time_embedding.linear_2",
        "embed_label": "class_embedding",
        "stem": "conv_in",
        "norm": "conv_norm_out",
        "head": "conv_out",
    },
    residual={
        "norm1": "norm1",
        "conv1": "conv1",
        "time": "time_emb_proj",
        "norm2": "norm2",
        "conv2": "conv2",
        "skip": "conv_shortcut",
    },
    attention={"norm": "group_norm", "qkv": ("to_q", "to_k", "to_v"), "out": "to_out.0"},
    prefix=prefix,
    strided={"halve": ".conv", "double": ".conv"},
    ndim=2,
)


def swapped_halves(half: int) -> Tensor:
    """For each of our features of the time the number of theirs, where sine and cosine have changed places."""
    return torch.arange(2 * half).roll(half)


SWAPPED = replace(NAMING, features=swapped_halves)


def recognises(tensors: Iterable[str]) -> bool:
    """Whether these are names of a UNet2DModel, today's or old ones."""
    return {"time_embedding.linear_1.weight", "conv_in.weight", "conv_norm_out.weight"} <= set(tensors)


def with_todays_names(tensors: Tensors) -> Tensors:
    """The same tensors by today's names. What has `.op.` in its name was kept twice, and is left out."""
    return {todays_name(name): tensor for name, tensor in tensors.items() if ".op." not in name}


def todays_name(name: str) -> str:
    """Today's name of a tensor."""
    first, _, rest = name.partition(".")
    name = f"{OLD_MODULES.get(first, first)}.{rest}"
    return re.sub(
        r"(attentions\.\d+\.)(query|key|value|proj_attn)\.",
        lambda match: match[1] + OLD_ATTENTION[match[2]] + ".",
        name,
    )
