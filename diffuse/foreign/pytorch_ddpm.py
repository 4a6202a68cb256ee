"""Weights of w86763777/pytorch-ddpm: ckpt.pt, with the trained and the averaged network of a CIFAR-10 run.

Its features of the time alternate, [sin, cos, sin, cos, ...], and come from a table that is saved with the weights.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffuse.foreign.files import tensors_in
from diffuse.foreign.found import Found, count, unet_options, width
from diffuse.foreign.naming import Naming, Place
from diffuse.options.defaults import node
from diffuse.options.nested import Foreign
from diffuse.system.errors import UserError

NAME = "pytorch_ddpm"
AVERAGED, RAW = "ema_model", "net_model"
FEATURES = "time_embedding.timembedding.0.weight"


def prefix(place: Place) -> str:
    """The name of a block: doublings stand between the blocks of the way up, so they are counted with them."""
    inside = ".attn" if place.role == "attention" else ""
    if place.side == "middle":
        return f"middleblocks.{place.module // 2}{inside}"
    if place.side == "down":
        return f"downblocks.{place.stage}{inside}"
    doublings = place.levels - 1 - place.level
    return f"upblocks.{place.stage + doublings + (place.role == 'double')}{inside}"


def alternating(half: int) -> Tensor:
    """For each of our features, [cos, sin], the number of theirs."""
    return torch.cat([torch.arange(half) * 2 + 1, torch.arange(half) * 2])


NAMING = Naming(
    plain={
        "embed_time.0": "time_embedding.timembedding.1",
        "embed_time.2": "time_embedding.timembedding.3",
        "stem": "head",
        "norm": "tail.0",
        "head": "tail.2",
    },
    residual={
        "norm1": "block1.0",
        "conv1": "block1.2",
        "time": "temb_proj.1",
        "norm2": "block2.0",
        "conv2": "block2.3",
        "skip": "shortcut",
    },
    attention={"norm": "group_norm", "qkv": ("proj_q", "proj_k", "proj_v"), "out": "proj"},
    prefix=prefix,
    strided={"halve": ".main", "double": ".main"},
    features=alternating,
)


def recognises(content: Any) -> bool:
    """Whether this is such a checkpoint, or one of its two networks."""
    found = content.get(AVERAGED, content) if isinstance(content, Mapping) else {}
    return isinstance(found, Mapping) and FEATURES in found


def read(content: Mapping[str, Any], path: Path, options: Foreign) -> Found:
    """Ho et al. 2020 in another naming: linear levels, eps, fixed_large, with x0 not clipped."""
    averaged, raw = (tensors_in(content[key], path) if key in content else None for key in (AVERAGED, RAW))
    tensors = averaged or raw or tensors_in(content, path)
    levels_of_noise = checked_features(tensors.pop(FEATURES))
    if raw is not None and FEATURES in raw:
        checked_features(raw.pop(FEATURES))
    stages = count(tensors, r"downblocks\.(\d+)\.")
    halvings = [stage for stage in range(stages) if f"downblocks.{stage}.main.weight" in tensors]
    period = halvings[0] + 1 if halvings else stages + 1
    first = range(0, stages, period)
    size = options.image_size or 32
    found = unet_options(
        width(tensors, "head.weight"),
        [width(tensors, f"downblocks.{stage}.block2.3.weight") for stage in first],
        period - 1,
        [size >> level for level, stage in enumerate(first) if f"downblocks.{stage}.attn.proj_q.weight" in tensors],
        norm_eps=1e-5,
        embedding="cos_sin",
        padding="symmetric",
        scale_shift=False,
        resample="strided",
    )
    return Found(
        NAMING,
        tensors,
        found,
        image_channels=width(tensors, "head.weight", 1),
        outputs=width(tensors, "tail.2.weight"),
        image_size=size,
        raw=raw,
        schedule={**node("schedule", "linear"), "levels": levels_of_noise},
        levels=levels_of_noise,
        clip=False,
        step=int(step) if isinstance(step := content.get("step"), int) else 0,
    )


def checked_features(table: Tensor) -> int:
    """The number of levels of the table of features. Raises UserError unless it is the one that the paper has."""
    levels, channels = table.shape if table.ndim == 2 else (0, 0)
    half = channels // 2
    angles = torch.arange(levels)[:, None] * torch.exp(torch.arange(half) * (-math.log(10000) / max(1, half)))
    expected = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
    if expected.shape != table.shape or not torch.allclose(expected, table.float(), atol=1e-3):
        raise UserError(f"{FEATURES} is not the table of features of the time that pytorch-ddpm makes")
    return int(levels)
