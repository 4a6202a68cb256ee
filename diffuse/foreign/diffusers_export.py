"""A network of ours as a folder that diffusers loads: a DDPMPipeline of a UNet2DModel and a DDPMScheduler."""

from collections.abc import Mapping
from typing import Any

from diffuse.data.images import ImageKind
from diffuse.foreign.diffusers_config import ATTENTION, NO_LIMIT, PLAIN, PREDICTIONS, RESAMPLINGS, RESIDUAL, VARIANCES
from diffuse.foreign.export import Exported
from diffuse.networks.unet import UNet
from diffuse.options.keys import Node
from diffuse.system.errors import UserError

# With fewer steps than levels: the same times there, but that theirs are counted from 0.
SPACINGS = {"uniform": "linspace", "to_zero": "trailing", "leading": "leading"}
VERSION = "0.35.0"  # the oldest diffusers for which this is tried
INDEX = {
    "_class_name": "DDPMPipeline",
    "_diffusers_version": VERSION,
    "unet": ["diffusers", "UNet2DModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}


def unet_config(net: UNet, unet: Node, kind: ImageKind) -> dict[str, Any]:
    """The fields of UNet2DModel for a network with these options. Raises UserError where it has none such."""
    sizes = [net.resolution(level) for level in range(len(net.widths))]
    embedding = refuse_what_diffusers_has_not(unet)
    width = head_width(
        net, unet, [width for width, size in zip(net.widths, sizes, strict=True) if size in unet["attention"]]
    )
    residual = unet["resample"] == "residual"
    resampling = next(theirs for theirs, ours in RESAMPLINGS.items() if ours == unet["resample"])

    def types(side: str) -> list[str]:
        without = (RESIDUAL if residual else PLAIN)[side]
        return [ATTENTION[side] if size in unet["attention"] else without for size in sizes]

    return {
        **{
            "_class_name": "UNet2DModel",
            "_diffusers_version": VERSION,
            "sample_size": size_field(kind),
        },
        **{"in_channels": kind.channels, "out_channels": net.head.out_channels, "center_input_sample": False},
        **{"time_embedding_type": "positional", **embedding},
        **{"down_block_types": types("down"), "up_block_types": types("up")[::-1]},
        **{"block_out_channels": list(net.widths), "layers_per_block": unet["blocks"], "mid_block_scale_factor": 1},
        **{"downsample_padding": 1 if unet["padding"] == "symmetric" else 0, "act_fn": "silu"},
        **{"downsample_type": resampling, "upsample_type": resampling, "dropout": unet["dropout"]},
        **{"attention_head_dim": width, "norm_num_groups": unet["groups"], "norm_eps": unet["norm_eps"]},
        # Without this field the attention in the middle has no norm where the time scales and shifts.
        "attn_norm_num_groups": unet["groups"] if unet["scale_shift"] else None,
        "resnet_time_scale_shift": "scale_shift" if unet["scale_shift"] else "default",
        **{"class_embed_type": None, "num_class_embeds": net.embed_label and net.embed_label.num_embeddings},
        **{"add_attention": True},
    }


def size_field(kind: ImageKind) -> int | list[int]:
    """sample_size: one number for squares."""
    height, width = kind.padded_size
    return height if height == width else [height, width]


def refuse_what_diffusers_has_not(unet: Node) -> dict[str, Any]:
    """Raise UserError where a UNet2DModel cannot be this network; the fields of its features of the time otherwise."""
    embeddings = {
        "sin_cos": {"flip_sin_to_cos": False, "freq_shift": 1},
        "cos_sin": {"flip_sin_to_cos": True, "freq_shift": 0},
    }
    if unet["embedding"] not in embeddings:
        raise UserError(
            f"unet.embedding={unet['embedding']} cannot be exported to diffusers, whose Fourier features also "
            "divide the output by the time"
        )
    if unet["time_scale"] != 1:
        raise UserError(
            f"unet.time_scale={unet['time_scale']:g} cannot be exported to diffusers, which has no such factor"
        )
    if unet["stem_mult"] != 1 or unet["channel_mult"][0] != 1:
        raise UserError(
            f"unet.channel_mult={unet['channel_mult']} with unet.stem_mult={unet['stem_mult']:g} cannot be exported to "
            "diffusers, where the first convolution and the first level have one width"
        )
    return embeddings[unet["embedding"]]


def head_width(net: UNet, unet: Node, widths: list[int]) -> int | None:
    """attention_head_dim: the width of a head, null for one head of any width. Raises UserError where they differ."""
    if unet["head_channels"] is not None:
        return int(unet["head_channels"])
    if unet["heads"] == 1:
        return None
    if len({*widths, net.widths[-1]}) > 1:
        raise UserError(
            f"unet.heads={unet['heads']} cannot be exported to diffusers, which knows the width of a head alone: here "
            f"heads differ in width, {sorted({*widths, net.widths[-1]})} / {unet['heads']}"
        )
    return net.widths[-1] // int(unet["heads"])


def scheduler_config(exported: Exported) -> dict[str, Any]:
    """The fields of DDPMScheduler. Raises UserError where it cannot have this schedule, prediction or variance."""
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if exported.prediction not in predictions:
        raise UserError(
            f"prediction={exported.prediction} cannot be exported to diffusers, which has {', '.join(predictions)}"
        )
    if exported.betas is None:
        raise UserError(
            f"schedule={exported.schedule['_target_']} cannot be exported to diffusers: its scheduler for DDPM "
            "has a table of betas, and this schedule has no levels"
        )
    dynamic = exported.clip == "dynamic"
    variances = {ours: theirs for theirs, ours in reversed(VARIANCES.items())} | {"analytic": "fixed_small"}
    return {
        **{"_class_name": "DDPMScheduler", "_diffusers_version": VERSION},
        **table_of(exported),
        **{"prediction_type": predictions[exported.prediction], "variance_type": variances[exported.variance]},
        **{"clip_sample": exported.clip is not False, "clip_sample_range": 1.0},
        **{"thresholding": dynamic, "sample_max_value": NO_LIMIT if dynamic else 1.0},
        "dynamic_thresholding_ratio": exported.percentile,
        "timestep_spacing": SPACINGS.get(exported.spacing, SPACINGS["uniform"]),
        **{"steps_offset": 0, "rescale_betas_zero_snr": False},
    }


def table_of(exported: Exported) -> dict[str, Any]:
    """The fields of the table of betas: its formula where diffusers has it, the numbers otherwise."""
    betas, schedule = exported.betas, exported.schedule
    assert betas is not None
    ends = {"num_train_timesteps": len(betas), "beta_start": betas[0], "beta_end": betas[-1], "trained_betas": None}
    plain = not schedule.get("zero_terminal_snr")
    if plain and schedule["_target_"] in ("linear", "scaled_linear"):
        return {**ends, "beta_schedule": schedule["_target_"]}
    if plain and schedule["_target_"] == "cosine" and (schedule["s"], schedule["max_beta"]) == (0.008, 0.999):
        return {**ends, "beta_schedule": "squaredcos_cap_v2"}
    return {**ends, "beta_schedule": "linear", "trained_betas": betas}


def files_of(exported: Exported) -> dict[str, Mapping[str, Any]]:
    """The JSON files of the folder, by their paths in it."""
    return {
        "model_index.json": INDEX,
        "unet/config.json": unet_config(exported.net, exported.unet, exported.kind),
        "scheduler/scheduler_config.json": scheduler_config(exported),
    }
