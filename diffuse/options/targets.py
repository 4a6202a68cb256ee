"""Where the options of each group are defined: `_target_` is a name, and the group decides in which modules to look.

Therefore a config in a checkpoint still works after a module has moved. This module does not import torch.
"""

import pkgutil
from pathlib import Path

# Modules of this package, or folders of modules.
HOMES = {
    "dataset": ("data.datasets",),
    "schedule": ("mathematics.tables", "mathematics.continuous"),
    "prediction": ("mathematics.predictions",),
    "loss": ("mathematics.losses",),
    "weight": ("mathematics.loss_weights",),
    "times": ("mathematics.time_sampling",),
    "unet": ("networks.unet", "networks.classifier"),
    "sampler": ("mathematics.samplers", "runs.recommended"),
    "guidance": ("runs.guidance", "runs.loss_guidance"),
    "features": ("scoring.features", "scoring.feature_classifier"),
    "device": ("system.device",),
}
# Names in stored configs that have changed since: (group, old name) -> new name.
RENAMED = {
    ("times", "Uniform"): "UniformTimes",
    ("times", "LogNormal"): "LogNormalTimes",
    ("times", "Importance"): "ImportanceTimes",
}
PACKAGE = "diffuse"
ROOT = Path(__file__).resolve().parent.parent


def homes(group: str) -> list[str]:
    """The dotted names of the modules in which the options of a group are defined."""
    found = []
    for home in HOMES[group]:
        folder = ROOT / home.replace(".", "/")
        inside = [f"{home}.{module.name}" for module in pkgutil.iter_modules([str(folder)])] if folder.is_dir() else []
        found += [f"{PACKAGE}.{module}" for module in inside or [home]]
    return found


def own_name(group: str, target: str) -> str | None:
    """Today's name of a `_target_` in this package; None if it names code outside of it.

    Before checkpoint format 4 it was a path such as diffuse.schedules.linear, whose last part is the name.
    """
    package, _, name = target.rpartition(".")
    if package and package.partition(".")[0] != PACKAGE:
        return None
    return RENAMED.get((group, name), name)
