"""A UNet2DModel in a folder as diffusers saves it: a pipeline, or the network alone, with its config and weights."""

from pathlib import Path
from typing import Any

from diffuse.foreign.diffusers_config import fields_of, scheduler_of, unet_of
from diffuse.foreign.diffusers_names import NAMING, SWAPPED, with_todays_names
from diffuse.foreign.files import INDEX, SAFETENSORS, Tensors, read_json, read_sharded, read_weights, tensors_in
from diffuse.foreign.found import Found, asked
from diffuse.options.nested import Foreign
from diffuse.system.errors import Refused, UsageError, UserError
from diffuse.system.sizes import height_width

NAME = "diffusers"
CONFIG, SCHEDULER_CONFIG = "config.json", "scheduler_config.json"
# The names of weights, in the order in which diffusers looks for them.
WEIGHTS = ("diffusion_pytorch_model", "diffusion_model")
ENDINGS = (SAFETENSORS, SAFETENSORS + INDEX, ".bin", ".bin" + INDEX, ".fp16.safetensors", ".fp16.bin", ".pt")


def holds_network(folder: Path) -> bool:
    """Whether a folder is one that diffusers saves."""
    return (
        any((each / CONFIG).is_file() for each in (folder, folder / "unet")) or (folder / "model_index.json").is_file()
    )


def read(folder: Path, options: Foreign) -> tuple[Found, list[Path]]:
    """The network in a folder, and the files that it was read from. Raises UserError."""
    unet = next((each for each in (folder / "unet", folder) if (each / CONFIG).is_file()), None)
    if unet is None:
        raise UserError(f"{folder} has no {CONFIG}, and no unet/{CONFIG}: it is no UNet2DModel of diffusers")
    config = read_json(unet / CONFIG)
    if (name := config.get("_class_name", "UNet2DModel")) not in ("UNet2DModel", "UNetUnconditionalModel"):
        raise UserError(f"{unet / CONFIG} is of a {name}, and what can be read is a UNet2DModel")
    fields = fields_of(config)
    tensors, files = weights_in(unet)
    beside = (folder / "scheduler", folder, unet)
    scheduler = next((each / SCHEDULER_CONFIG for each in beside if (each / SCHEDULER_CONFIG).is_file()), None)
    said: dict[str, Any] = scheduler_of(read_json(scheduler)) if scheduler else {}
    if fields["layers_per_block"] * len(fields["block_out_channels"]) > len(tensors):
        raise UserError(f"{unet / CONFIG} is of a network of more blocks than {files[0].name} has tensors")
    size = size_of(fields["sample_size"], options.image_size, unet / CONFIG)
    # Of sine and cosine, and of two spacings, our network has two combinations of four: in the others they are swapped.
    usual = bool(fields["flip_sin_to_cos"]) == (fields["freq_shift"] == 0)
    found = Found(
        NAMING if usual else SWAPPED,
        with_todays_names(tensors),
        unet_of(fields, min(size)),
        image_channels=fields["in_channels"],
        outputs=fields["out_channels"],
        classes=fields["num_class_embeds"] or 0,
        image_size=size,
        **said,
    )
    return found, [*files, unet / CONFIG, *([scheduler] if scheduler else [])]


def size_of(said: Any, typed: int | None, config: Path) -> tuple[int, int]:
    """Height and width of the images, of the config or else of the user."""
    try:
        size = height_width(asked("image_size", said or typed, f"sample_size is null in {config}"), "sample_size")
    except Refused as error:
        raise UserError(f"{config}: {error}") from error
    if typed and size != (typed, typed):
        raise UsageError(f"foreign.image_size={typed} is not the sample_size={said} of {config}: leave it out")
    return size


def weights_in(folder: Path) -> tuple[Tensors, list[Path]]:
    """The tensors of a network, and the files that they lie in."""
    for name in WEIGHTS:
        for path in (folder / f"{name}{ending}" for ending in ENDINGS):
            if path.is_file():
                return (
                    read_sharded(path) if path.name.endswith(INDEX) else (tensors_in(read_weights(path), path), [path])
                )
    looked_for = ", ".join(WEIGHTS[0] + ending for ending in ENDINGS[:3])
    raise UserError(f"{folder} has a {CONFIG}, and no weights: none of {looked_for}, ...")
