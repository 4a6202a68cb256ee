"""Weights of improved-diffusion, guided-diffusion (ADM, and its classifiers) and consistency_models (EDM).

One naming for all of them; what the tensors do not decide differs: the order of the rows of q, k and v, the number of
heads, the schedule.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from diffuse.foreign.files import Tensors
from diffuse.foreign.found import Found, asked, count, unet_options, width
from diffuse.foreign.naming import Naming, Place
from diffuse.options.nested import Foreign
from diffuse.system.errors import UserError

EDM_NODE = {"_target_": "edm", "sigma_data": 0.5}
EDM_SCHEDULE = {"_target_": "VE", "sigma_min": 0.002, "sigma_max": 80.0}
IMPROVED, GUIDED, CONSISTENCY = "improved_diffusion", "guided_diffusion", "consistency_models"
IMPROVED_HEADS, WIDE = 4, 64
POOL = "out.2.positional_embedding"


def prefix(place: Place) -> str:
    """The name of a block."""
    if place.side == "middle":
        return f"middle_block.{place.module}"
    if place.side == "down":
        return f"input_blocks.{place.stage + 1}.{place.module}"
    return f"output_blocks.{place.stage}.{place.module}"


def legacy_order(heads: int, rows: int) -> Tensor:
    """Rows that are kept as (head, which of q, k and v, channel), for ours, (which, head, channel)."""
    return torch.arange(rows).reshape(heads, 3, -1).transpose(0, 1).flatten()


NAMING = Naming(
    plain={
        "embed_time.0": "time_embed.0",
        "embed_time.2": "time_embed.2",
        "embed_label": "label_emb",
        "stem": "input_blocks.0.0",
        "norm": "out.0",
        "head": "out.2",
        "pool.qkv": "out.2.qkv_proj",
        "pool.out": "out.2.c_proj",
    },
    residual={
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "skip": "skip_connection",
    },
    attention={"norm": "norm", "qkv": "qkv", "out": "proj_out"},
    transposed={"pool.place": POOL},
    prefix=prefix,
    strided={"halve": ".op", "double": ".conv"},
    ndim=3,
)
ORDERS = {"new": NAMING, "legacy": replace(NAMING, qkv=legacy_order)}


def recognises(tensors: Iterable[str]) -> bool:
    """Whether these are names of this naming."""
    return {"time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight"} <= set(tensors)


def read(tensors: Tensors, options: Foreign, name: str) -> Found:
    """The network of a state dict, of the format of this name."""
    size = asked("image_size", options.image_size, f"{name} weights do not say it (32, 64, 128, ...)")
    period = stages_of_a_level(tensors, size)
    stages = count(tensors, r"input_blocks\.(\d+)\.")
    if stages % period:
        raise UserError(f"the weights have {stages} input_blocks, which are not levels of {period}")
    levels, channels = stages // period, width(tensors, "time_embed.0.weight", 1)
    first = [1 + level * period for level in range(levels)]
    widths = [width(tensors, f"input_blocks.{stage}.0.out_layers.3.weight") for stage in first]
    inside = width(tensors, "input_blocks.1.0.out_layers.0.weight")
    heads = heads_of(name, options, POOL in tensors)
    found = unet_options(
        channels,
        widths,
        period - 1,
        [size >> level for level, stage in enumerate(first) if f"input_blocks.{stage}.1.qkv.weight" in tensors],
        **heads,
        norm_eps=1e-5,
        embedding="cos_sin",
        padding="symmetric",
        scale_shift=width(tensors, "input_blocks.1.0.emb_layers.1.weight") == 2 * inside,
        resample="residual" if f"input_blocks.{period}.0.in_layers.0.weight" in tensors else "strided",
        time_scale=time_scale(name, options),
    )
    if (stem := width(tensors, "input_blocks.0.0.weight")) != channels:
        found["stem_mult"] = stem / channels
    classifies = POOL in tensors
    order = "legacy" if classifies or name == IMPROVED else "new" if name == CONSISTENCY else options.attention_order
    if found["heads"] == 1 and found["head_channels"] is None:
        order = "new"  # with one head both are the same
    order = asked(
        "attention_order", order, "legacy or new: guided-diffusion's 64 x 64 model has new, the others legacy"
    )
    naming = replace(ORDERS[order], ndim=4) if name == CONSISTENCY else ORDERS[order]
    image_channels = width(tensors, "input_blocks.0.0.weight", 1)
    if classifies:
        found["_target_"] = "Classifier"
        return Found(naming, tensors, found, image_channels, 0, width(tensors, "out.2.c_proj.weight"), size)
    return Found(
        naming,
        tensors,
        found,
        image_channels,
        outputs=width(tensors, "out.2.weight"),
        classes=width(tensors, "label_emb.weight") if "label_emb.weight" in tensors else 0,
        image_size=size,
        schedule=EDM_SCHEDULE if name == CONSISTENCY else None,
        prediction=EDM_NODE if name == CONSISTENCY else None,
    )


def stages_of_a_level(tensors: Tensors, image_size: int) -> int:
    """How many stages the way down has for each level: its blocks, and the halving.

    A level of the way up ends with a block more, which doubles the resolution. A classifier has no way up; there the
    number of its tokens, one for each pixel of the lowest level and one more, says how many levels it has.
    """
    stages = count(tensors, r"input_blocks\.(\d+)\.")
    if POOL in tensors:
        lowest = round((width(tensors, POOL, 1) - 1) ** 0.5)
        levels = (image_size // max(1, lowest)).bit_length()
        return stages // levels if levels and stages % levels == 0 else stages
    for stage in range(count(tensors, r"output_blocks\.(\d+)\.")):
        inside = [f"output_blocks.{stage}.{module}" for module in (1, 2)]
        if any(f"{name}.conv.weight" in tensors or f"{name}.in_layers.0.weight" in tensors for name in inside):
            return stage + 1
    return stages


def heads_of(name: str, options: Foreign, classifies: bool) -> dict[str, int | None]:
    """The heads of attention, by number or by width."""
    if classifies or name == CONSISTENCY:
        return {"heads": 1, "head_channels": WIDE}
    if options.heads is not None or options.head_channels is not None:
        return {"heads": options.heads or 1, "head_channels": options.head_channels}
    if name == IMPROVED:
        return {"heads": IMPROVED_HEADS, "head_channels": None}
    why = "the weights do not say it; ADM's are 64 wide, at 128 x 128 there are 4 heads (foreign.heads=4)"
    return {"heads": 1, "head_channels": asked("head_channels", None, why)}


def time_scale(name: str, options: Foreign) -> float:
    """The factor of the level that the network is given: improved-diffusion's were trained as if there were 1,000."""
    if options.time_scale is not None:
        return options.time_scale
    if name == IMPROVED:
        return 1000 / int(asked("levels", options.levels, "4000 for the published weights, 1000 by default there"))
    return 1000.0 if name == CONSISTENCY else 1.0
