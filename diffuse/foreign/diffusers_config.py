"""The options of a UNet2DModel and of a scheduler of diffusers as ours; a field without a match is refused."""

from collections.abc import Mapping
from typing import Any

from diffuse.foreign.found import unet_options
from diffuse.options.keys import Node
from diffuse.system.errors import UserError

Fields = Mapping[str, Any]
# The fields of a UNet2DModel with the values of those that a config leaves out (diffusers 0.42).
UNET: dict[str, Any] = {
    **{"sample_size": None, "in_channels": 3, "out_channels": 3, "center_input_sample": False},
    **{"time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True},
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    **{"block_out_channels": [224, 448, 672, 896], "layers_per_block": 2, "mid_block_scale_factor": 1.0},
    **{"downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "dropout": 0.0, "act_fn": "silu"},
    **{"attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None, "norm_eps": 1e-5},
    **{"resnet_time_scale_shift": "default", "class_embed_type": None, "num_class_embeds": None},
    **{"num_train_timesteps": None, "add_attention": True},
}
# Names of fields until diffusers 0.1.
OLD_FIELDS = {
    "image_size": "sample_size",
    "num_res_blocks": "layers_per_block",
    "block_channels": "block_out_channels",
    "down_blocks": "down_block_types",
    "up_blocks": "up_block_types",
    "downscale_freq_shift": "freq_shift",
    "resnet_num_groups": "norm_num_groups",
    "resnet_act_fn": "act_fn",
    "resnet_eps": "norm_eps",
    "num_head_channels": "attention_head_dim",
}
# The types of fields that may be null; the others have that of the value above, where a number may be whole.
NULLABLE: dict[str, type | tuple[type, ...]] = {
    **{"sample_size": (int, list), "time_embedding_dim": int, "attn_norm_num_groups": int, "class_embed_type": str},
    **{"num_class_embeds": int, "num_train_timesteps": int, "attention_head_dim": int, "mid_block_type": str},
    **{"trained_betas": list, "variance_type": str},
}
# What a field must be, since our network has nothing else.
FIXED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
    "add_attention": (True,),
    "downsample_padding": (0, 1),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "freq_shift": (0, 1),
}
ATTENTION = {"down": "AttnDownBlock2D", "up": "AttnUpBlock2D"}
PLAIN = {"down": "DownBlock2D", "up": "UpBlock2D"}
RESIDUAL = {"down": "ResnetDownsampleBlock2D", "up": "ResnetUpsampleBlock2D"}
RESAMPLINGS = {"conv": "strided", "resnet": "residual"}

SCHEDULER: dict[str, Any] = {
    **{"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    **{"trained_betas": None, "variance_type": "fixed_small", "prediction_type": "epsilon"},
    **{"rescale_betas_zero_snr": False, "clip_sample": True, "clip_sample_range": 1.0, "thresholding": False},
    **{"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0},
    **{"timestep_type": "discrete", "use_flow_sigmas": False},
}
# Schedulers of a table of betas: they share the fields above.
SCHEDULERS = (
    *("DDPM", "DDIM", "PNDM", "DDPMParallel", "DDIMParallel", "DDIMInverse", "DPMSolverMultistep", "LMSDiscrete"),
    *("DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "EulerDiscrete", "EulerAncestralDiscrete"),
    *("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"),
)
# Those of Karras et al. 2022 have other ends where a config leaves them out.
OTHER_ENDS = {"beta_start": 0.00085, "beta_end": 0.012}
DEFAULTS = dict.fromkeys(("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"), OTHER_ENDS)
CLIPPING = ("DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "DDIMInverse")  # the others do not clip unless asked to
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "sigmoid": "sigmoid", "squaredcos_cap_v2": "cosine"}
NO_LIMIT = 1e6  # of sample_max_value
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES: dict[str | None, str] = {
    **{None: "fixed_small"},  # of solvers of the ODE, which have none
    **{"fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large"},
    **{"fixed_large_log": "fixed_large", "learned_range": "learned"},
}


def fields_of(config: Fields) -> dict[str, Any]:
    """The fields of a UNet2DModel's config.json, by today's names and with its defaults. Raises UserError."""
    found = dict(UNET)
    for name, value in config.items():
        today = OLD_FIELDS.get(name, name)
        if today in UNET:
            found[today] = value
    refuse_other_types(found, UNET)
    for key in ("down_block_types", "up_block_types"):
        types = found[key]
        if not all(isinstance(each, str) for each in types):
            raise UserError(f"{key} must be a list of names of blocks, not {str(types)[:60]}")
        found[key] = [each.replace("UNetRes", "") for each in types]
    for key, allowed in FIXED.items():
        if found[key] not in allowed:
            raise UserError(f"{key}={found[key]!r} is nothing that our U-Net has: it has {allowed[0]!r}")
    return found


def refuse_other_types(fields: Fields, defaults: Fields) -> None:
    """Raise UserError where a field has a value of another type than it has in diffusers."""
    for key, value in fields.items():
        expected = NULLABLE.get(key, type(defaults[key]))
        types = expected if isinstance(expected, tuple) else (int, float) if expected is float else (expected,)
        is_null = value is None and key in NULLABLE
        if not is_null and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            names = " or ".join(each.__name__ for each in types)
            raise UserError(f"{key}={str(value)[:60]} is of another type than in diffusers, where it is {names}")


def unet_of(fields: Fields, shorter: int) -> Node:
    """Our options of a UNet2DModel with these fields; shorter: the shorter side of its images, in pixels."""
    widths = fields["block_out_channels"]
    numbers = [*widths, fields["layers_per_block"], fields["norm_num_groups"]]
    if not all(isinstance(number, int) and 0 < number < 1 << 16 for number in numbers):
        raise UserError(f"block_out_channels, layers_per_block and norm_num_groups must be numbers, not {numbers}")
    levels = len(widths)
    with_attention = {side: attention_levels(fields, side, levels) for side in ATTENTION}
    if with_attention["down"] != with_attention["up"]:
        raise UserError("down_block_types and up_block_types must have attention on the same levels in our U-Net")
    scale_shift = fields["resnet_time_scale_shift"] == "scale_shift"
    groups, attention_groups = fields["norm_num_groups"], fields["attn_norm_num_groups"]
    if attention_groups != groups and (scale_shift or attention_groups is not None):
        raise UserError(
            f"attn_norm_num_groups={attention_groups} is attention in the middle without the group norm of {groups} "
            "groups that our U-Net has there"
        )
    return unet_options(
        widths[0],
        widths,
        fields["layers_per_block"],
        [shorter >> level for level in with_attention["down"]],
        head_channels=fields["attention_head_dim"],
        dropout=float(fields["dropout"]),
        groups=groups,
        norm_eps=float(fields["norm_eps"]),
        embedding="sin_cos" if fields["freq_shift"] == 1 else "cos_sin",
        padding="symmetric" if fields["downsample_padding"] == 1 else "asymmetric",
        scale_shift=scale_shift,
        resample=resampling(fields, levels),
    )


def attention_levels(fields: Fields, side: str, levels: int) -> list[int]:
    """The levels with attention, counted from the resolution of the image."""
    types = fields[f"{side}_block_types"]
    known = {ATTENTION[side], PLAIN[side], RESIDUAL[side]}
    if unknown := [each for each in types if each not in known]:
        raise UserError(
            f"{side}_block_types has {unknown[0]}, which our U-Net has not: it has {', '.join(sorted(known))}"
        )
    if len(types) != levels:
        raise UserError(f"{side}_block_types has {len(types)} entries for {levels} block_out_channels")
    ordered = types if side == "down" else types[::-1]
    return [level for level, each in enumerate(ordered) if each == ATTENTION[side]]


def resampling(fields: Fields, levels: int) -> str:
    """How the resolution is halved and doubled: on all levels in the same way."""
    found = set()
    for side in ATTENTION:
        types = fields[f"{side}_block_types"][: levels - 1]  # the last one of each way changes no resolution
        of_attention = fields[f"{side}sample_type"]
        of_types = {ATTENTION[side]: of_attention, PLAIN[side]: "conv", RESIDUAL[side]: "resnet"}
        found |= {of_types[each] for each in types}
    if len(found) > 1 or not found <= RESAMPLINGS.keys():
        raise UserError(
            f"the levels are halved and doubled in different ways ({', '.join(sorted(map(str, found)))}), and in our "
            "U-Net all by convolutions (conv) or all by residual blocks (resnet)"
        )
    return RESAMPLINGS[next(iter(found), "conv")]


def scheduler_of(config: Fields) -> dict[str, Any]:
    """schedule, prediction, variance, clip and percentile of a scheduler_config.json. Raises UserError."""
    name = str(config.get("_class_name", "")).removesuffix("Scheduler")
    if name not in SCHEDULERS:
        raise UserError(
            f"the scheduler is {name}Scheduler, which has no table of betas that we know: remove its file and set "
            "foreign.schedule, foreign.levels and foreign.prediction"
        )
    defaults = {**SCHEDULER, "clip_sample": name in CLIPPING, **DEFAULTS.get(name, {})}
    fields = {key: config.get(key, value) for key, value in defaults.items()}
    refuse_other_types(fields, SCHEDULER)
    for key in ("timestep_type", "use_flow_sigmas"):
        if fields[key] != SCHEDULER[key]:
            raise UserError(f"{key}={fields[key]} of the scheduler is no table of betas: it must be {SCHEDULER[key]}")
    for key, known in (("prediction_type", PREDICTIONS), ("variance_type", VARIANCES)):
        if fields[key] not in known:
            raise UserError(f"{key}={fields[key]!r} of the scheduler is not one of {', '.join(filter(None, known))}")
    return {
        "schedule": schedule_of(fields),
        "prediction": {"_target_": PREDICTIONS[fields["prediction_type"]]},
        "variance": VARIANCES[fields["variance_type"]],
        **clip_of(fields),
    }


def clip_of(fields: Fields) -> dict[str, Any]:
    """clip and percentile of a scheduler.

    Its thresholding divides by at most sample_max_value, and by at least 1: with the default of 1 it is to clip.
    """
    if fields["thresholding"]:
        if fields["sample_max_value"] <= 1:
            return {"clip": True}
        if fields["sample_max_value"] < NO_LIMIT:
            raise UserError(
                f"sample_max_value={fields['sample_max_value']} of the scheduler limits its thresholding, and "
                "sampler.clip=dynamic has no limit: make it 1 (to clip) or 1e6 (no limit) in scheduler_config.json"
            )
        return {"clip": "dynamic", "percentile": fields["dynamic_thresholding_ratio"]}
    if fields["clip_sample"] and fields["clip_sample_range"] != 1:
        raise UserError(
            f"clip_sample_range={fields['clip_sample_range']} of the scheduler is not 1, to which x0 is clipped"
        )
    return {"clip": bool(fields["clip_sample"])}


def schedule_of(fields: Fields) -> Node:
    """The option of the group `schedule` for a table of betas."""
    common = {"zero_terminal_snr": bool(fields["rescale_betas_zero_snr"])}
    if fields["trained_betas"] is not None:
        return {"_target_": "betas", "path": None, "values": fields["trained_betas"], **common}
    if fields["beta_schedule"] not in SCHEDULES:
        raise UserError(
            f"beta_schedule={fields['beta_schedule']!r} of the scheduler is not one of {', '.join(SCHEDULES)}"
        )
    name, levels = SCHEDULES[fields["beta_schedule"]], fields["num_train_timesteps"]
    ends = {"beta_start": fields["beta_start"], "beta_end": fields["beta_end"]}
    return {"_target_": name, "levels": levels, **({} if name == "cosine" else ends), **common}
