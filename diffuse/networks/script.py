"""Networks of any kind, saved by torch.jit.save, whose output for an image serves as its features."""

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diffuse.system.errors import UserError, check
from diffuse.system.progress import log


def load_script(file: Path, key: str, device: torch.device) -> torch.jit.ScriptModule:
    """The network in a file. It is a program, which is run. Raises UserError, with the key, for any other file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch recommends another format for new files
            script: torch.jit.ScriptModule = torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{key}={file} is not a network saved by torch.jit.save") from error
    for weight in script.parameters():
        weight.requires_grad_(False)
    log.info(f"{key}={file} is a program (TorchScript), and its code is run")
    return script


def check_scaling(size: int | None, low: float, high: float) -> None:
    """Raise Refused where images cannot be scaled so."""
    check(size is None or size >= 1, "size", "a number of pixels or null", size)
    check(low != high, "low", "another number than high", f"{low:g}")


def script_features(
    script: torch.jit.ScriptModule, images: Tensor, size: int | None, low: float, high: float
) -> Tensor:
    """The output [n, d] of a network for colour images [n, 3, H, W] with values from 0 to 255.

    They are resized to size x size, bilinear with antialiasing, unless that is None, and scaled to [low, high]. If the
    network has an argument return_features, as StyleGAN's copy of Inception, it is set to true: otherwise the output
    would be class probabilities.
    """
    if size is not None:
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    arguments = {argument.name for argument in script.forward.schema.arguments}  # type: ignore[attr-defined]
    extra = {"return_features": True} if "return_features" in arguments else {}
    found: Tensor = script(low + (high - low) * images / 255, **extra)
    return found.flatten(1)
