"""Where the options of each group are defined: a `_target_` is a name, and its group says in which modules to look.

So a config that is stored in a checkpoint does not break when a module moves. This module imports no torch.
"""

import pkgutil
from pathlib import Path

# Modules of this package, or folders of modules.
HOMES = {
    "dataset": ("data.datasets",),
    "schedule": ("mathematics.schedules", "mathematics.continuous"),
    "prediction": ("mathematics.predictions",),
    "loss": ("mathematics.losses",),
    "weight": ("mathematics.loss_weights",),
    "times": ("mathematics.time_sampling",),
    "unet": ("networks.unet",),
    "sampler": ("mathematics.samplers",),
    "features": ("scoring.features", "scoring.feature_classifier"),
    "device": ("system.device",),
}
# Names that stored configs may have, and what they are called today.
RENAMED = {
    ("times", "Uniform"): "UniformTimes",
    ("times", "LogNormal"): "LogNormalTimes",
    ("times", "Importance"): "ImportanceTimes",
}
PACKAGE = "diffuse"
ROOT = Path(__file__).resolve().parent.parent


def homes(group: str) -> list[str]:
    """The modules in which the options of a group are defined, by their dotted names."""
    found = []
    for home in HOMES[group]:
        folder = ROOT / home.replace(".", "/")
        inside = [f"{home}.{module.name}" for module in pkgutil.iter_modules([str(folder)])] if folder.is_dir() else []
        found += [f"{PACKAGE}.{module}" for module in inside or [home]]
    return found


def own_name(group: str, target: str) -> str | None:
    """What a `_target_` is called in this package today; None where it names code from elsewhere.

    Until checkpoint format 4 a `_target_` of ours was a path, diffuse.schedules.linear: its last part is the name.
    """
    package, _, name = target.rpartition(".")
    if package and package.partition(".")[0] != PACKAGE:
        return None
    return RENAMED.get((group, name), name)
