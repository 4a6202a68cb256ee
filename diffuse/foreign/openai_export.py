"""A network of ours as improved-diffusion saves one, and the flags with which its scripts build it."""

from typing import Any

from diffuse.foreign.export import Exported
from diffuse.system.errors import UserError
from diffuse.system.sizes import in_words

# What improved-diffusion's network has, and nothing else.
FIXED = {
    **{"embedding": "cos_sin", "padding": "symmetric", "norm_eps": 1e-5, "groups": 32, "resample": "strided"},
    **{"head_channels": None, "stem_mult": 1},
}
MULTIPLES = {256: [1, 1, 2, 2, 4, 4], 64: [1, 2, 3, 4], 32: [1, 2, 2, 2]}  # its scripts know these alone
SCHEDULES = ("linear", "cosine")


def refuse_what_it_has_not(exported: Exported) -> None:
    """Raise UserError where improved-diffusion cannot have this network, schedule or prediction."""
    unet, levels = exported.unet, exported.betas and len(exported.betas)
    wrong = [f"unet.{key}={unet[key]} (there {value})" for key, value in FIXED.items() if unet[key] != value]
    if levels and unet["time_scale"] not in (1, 1000 / levels):
        wrong.append(f"unet.time_scale={unet['time_scale']:g} (there 1 or 1000 / levels)")
    if not levels or exported.schedule["_target_"] not in SCHEDULES or exported.schedule.get("zero_terminal_snr"):
        wrong.append(f"schedule={exported.schedule['_target_']} (there linear, cosine)")
    if exported.prediction not in ("eps", "x0", "mean"):
        wrong.append(f"prediction={exported.prediction} (there eps, x0, mean)")
    if len(set(exported.kind.padded_size)) > 1:
        wrong.append(f"images of {in_words(*exported.kind.padded_size)} (there squares)")
    if wrong:
        raise UserError(f"this network cannot be exported to improved_diffusion: {', '.join(wrong)}")


def flags_of(exported: Exported) -> str:
    """The flags of its scripts; of levels that they cannot build, a line that says so."""
    unet, kind = exported.unet, exported.kind
    betas = exported.betas or []
    flags: dict[str, Any] = {
        **{"image_size": kind.padded_size[0], "num_channels": unet["channels"], "num_res_blocks": unet["blocks"]},
        **{"num_heads": unet["heads"], "attention_resolutions": ",".join(map(str, unet["attention"]))},
        **{"dropout": unet["dropout"], "use_scale_shift_norm": unet["scale_shift"]},
        **{"class_cond": exported.net.embed_label is not None},
        **{"learn_sigma": exported.variance == "learned", "sigma_small": exported.variance == "fixed_small"},
        **{"diffusion_steps": len(betas), "noise_schedule": exported.schedule["_target_"]},
        **{"rescale_timesteps": unet["time_scale"] != 1, "predict_xstart": exported.prediction == "x0"},
    }
    line = " ".join(f"--{name} {value}" for name, value in flags.items())
    if MULTIPLES.get(kind.padded_size[0]) != list(unet["channel_mult"]) or kind.channels != 3:
        line += f"\n# improved-diffusion's scripts do not build it: channel_mult={unet['channel_mult']} at this size"
    return line + "\n"
