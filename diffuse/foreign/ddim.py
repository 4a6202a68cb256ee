"""Weights in the naming of Song, Meng and Ermon's DDIM code (2021), which most papers' code loads DDPM's weights in.

The network is our `base`, its q, k and v apart.
"""

from collections.abc import Iterable

from diffuse.foreign.files import Tensors
from diffuse.foreign.found import Found, asked, count, unet_options, width
from diffuse.foreign.naming import Naming, Place
from diffuse.options.defaults import node
from diffuse.options.nested import Foreign

NAME = "ddim"


def prefix(place: Place) -> str:
    """The name of a block: i counts levels from the resolution of the image, on both ways."""
    if place.side == "middle":
        return ("mid.block_1", "mid.attn_1", "mid.block_2")[place.module]
    inside = {"residual": f"block.{place.block}", "attention": f"attn.{place.block}"}
    resampling = {"halve": "downsample", "double": "upsample"}
    return f"{place.side}.{place.level}.{(inside | resampling)[place.role]}"


NAMING = Naming(
    plain={
        "embed_time.0": "temb.dense.0",
        "embed_time.2": "temb.dense.1",
        "stem": "conv_in",
        "norm": "norm_out",
        "head": "conv_out",
    },
    residual={
        "norm1": "norm1",
        "conv1": "conv1",
        "time": "temb_proj",
        "norm2": "norm2",
        "conv2": "conv2",
        "skip": "nin_shortcut",
    },
    attention={"norm": "norm", "qkv": ("q", "k", "v"), "out": "proj_out"},
    prefix=prefix,
    strided={"halve": ".conv", "double": ".conv"},
)


def recognises(tensors: Iterable[str]) -> bool:
    """Whether these are names of this naming."""
    return {"temb.dense.0.weight", "conv_in.weight", "mid.block_1.norm1.weight"} <= set(tensors)


def read(tensors: Tensors, options: Foreign) -> Found:
    """The network of a state dict: Ho et al. 2020, of 1,000 linear levels unless the options say otherwise."""
    size = asked("image_size", options.image_size, "ddim weights do not say it (32 for CIFAR-10, 256)")
    levels = count(tensors, r"down\.(\d+)\.")
    found = unet_options(
        width(tensors, "conv_in.weight"),
        [width(tensors, f"down.{level}.block.0.conv2.weight") for level in range(levels)],
        count(tensors, r"down\.0\.block\.(\d+)\."),
        [size >> level for level in range(levels) if f"down.{level}.attn.0.q.weight" in tensors],
        norm_eps=1e-6,
        embedding="sin_cos",
        padding="asymmetric",
        scale_shift=False,
        resample="strided",
    )
    return Found(
        NAMING,
        tensors,
        found,
        image_channels=width(tensors, "conv_in.weight", 1),
        outputs=width(tensors, "conv_out.weight"),
        image_size=size,
        schedule=node("schedule", "linear"),
        levels=1000,
    )
