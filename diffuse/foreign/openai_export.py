"""A network of ours as improved-diffusion saves one, and the flags with which its scripts build it."""

import math
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
CLASSES = 1000
LINEAR_ENDS = (1e-4, 0.02)  # for 1,000 levels


def refuse_what_it_has_not(exported: Exported) -> None:
    """Raise UserError where improved-diffusion cannot have this network, schedule or prediction."""
    unet, levels = exported.unet, exported.betas and len(exported.betas)
    shown: dict[Any, str] = {None: "null"}
    wrong = [
        f"unet.{key}={shown.get(unet[key], unet[key])} (there {shown.get(value, value)})"
        for key, value in FIXED.items()
        if unet[key] != value
    ]
    if levels and unet["time_scale"] not in (1, 1000 / levels):
        wrong.append(f"unet.time_scale={unet['time_scale']:g} (there 1 or 1000 / levels)")
    if not is_of_scripts(exported):
        ends = "linear, with 1000 / levels times 1e-4 and 0.02 as its ends, and cosine"
        wrong.append(f"this table of betas, of schedule={exported.schedule['_target_']} (there {ends})")
    if exported.prediction not in ("eps", "x0"):
        wrong.append(f"prediction={exported.prediction} (there eps, x0)")
    if len(set(exported.kind.padded_size)) > 1:
        wrong.append(f"images of {in_words(*exported.kind.padded_size)} (there squares)")
    if wrong:
        raise UserError(f"this network cannot be exported to improved_diffusion: {', '.join(wrong)}")


def is_of_scripts(exported: Exported) -> bool:
    """Whether the table of betas is the one that the scripts make for the name of its schedule."""
    schedule, betas = exported.schedule, exported.betas
    if not betas or schedule.get("zero_terminal_snr"):
        return False
    if schedule["_target_"] == "cosine":
        return bool((schedule["s"], schedule["max_beta"]) == (0.008, 0.999))
    ends = zip((betas[0], betas[-1]), LINEAR_ENDS, strict=True)
    return schedule["_target_"] == "linear" and all(
        math.isclose(beta, usual * 1000 / len(betas), rel_tol=1e-6) for beta, usual in ends
    )


def flags_of(exported: Exported) -> str:
    """The flags of its scripts; of levels that they cannot build, a line that says so."""
    unet, kind = exported.unet, exported.kind
    betas, size, labels = exported.betas or [], kind.padded_size[0], exported.net.embed_label
    attention = unet["attention"] or [2 * size]  # there is no way to say `nowhere` but a resolution that never comes
    flags: dict[str, Any] = {
        **{"image_size": size, "num_channels": unet["channels"], "num_res_blocks": unet["blocks"]},
        **{"num_heads": unet["heads"], "attention_resolutions": ",".join(map(str, attention))},
        **{"dropout": unet["dropout"], "use_scale_shift_norm": unet["scale_shift"]},
        **{"class_cond": labels is not None},
        **{"learn_sigma": exported.variance == "learned", "sigma_small": exported.variance == "fixed_small"},
        **{"diffusion_steps": len(betas), "noise_schedule": exported.schedule["_target_"]},
        **{"rescale_timesteps": unet["time_scale"] != 1, "predict_xstart": exported.prediction == "x0"},
    }
    line = " ".join(f"--{name} {value}" for name, value in flags.items())
    differences = []
    if MULTIPLES.get(size) != list(unet["channel_mult"]):
        differences.append(f"channel_mult={unet['channel_mult']} at this size")
    if kind.channels != 3:
        differences.append(f"{kind.channels} channels")
    if labels is not None and labels.num_embeddings != CLASSES:
        differences.append(f"{labels.num_embeddings} rows of labels (there {CLASSES})")
    note = f"# improved-diffusion's scripts do not build it: {', '.join(differences)}\n" if differences else ""
    return f"{line}\n{note}"
