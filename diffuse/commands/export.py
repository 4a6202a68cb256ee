"""`diffuse export`: the weights of a run in a format that other programs read, with a model card."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffuse.foreign import diffusers_export, diffusers_names, openai, openai_export, ours
from diffuse.foreign.export import Exported
from diffuse.foreign.naming import table, to_theirs
from diffuse.mathematics.schedules import TableSchedule
from diffuse.mathematics.spacings import uniform
from diffuse.mathematics.wrappers import PERCENTILE
from diffuse.networks.unet import UNet
from diffuse.options.build import with_defaults
from diffuse.options.schema import ExportConfig, plain
from diffuse.runs.card import card
from diffuse.runs.foreign import ORIGIN
from diffuse.runs.history import add_to_history
from diffuse.runs.output import Output
from diffuse.runs.trained import TrainedNetwork, load, weights_of
from diffuse.system.device import Device
from diffuse.system.errors import UserError
from diffuse.system.files import make_folder, short_path, write_json
from diffuse.system.progress import log

# The files of a format, by their paths in its folder, each as what writes it.
Files = Mapping[str, Callable[[Path], object]]


def run(config: ExportConfig, output: Output) -> Mapping[str, float]:
    """Write a folder in the format that is asked for. User errors are raised before anything is written."""
    network = load(
        config.ckpt,
        Device("cpu", "float32"),
        config.trust,
        weights=weights_of(config.ema.length),
        foreign=config.foreign,
    )
    network.refuse_unused(config.foreign, "ckpt", config.ckpt)
    network.refuse_classifier("ckpt", config.ckpt)
    folder = Path(config.out).expanduser() if config.out else network.home / "export" / config.to
    if folder.exists():
        raise UserError(f"out={short_path(folder)} exists already: remove it, or give another out=")
    files = FORMATS[config.to](network, exported_of(network))
    text = card(network, config.to, config.license)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    make_folder(beside)
    try:
        files = {**files, "README.md": partial(Path.write_text, data=text, encoding="utf-8")}
        for name, write in files.items():
            (beside / name).parent.mkdir(exist_ok=True)
            write(beside / name)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    if not network.foreign:
        add_to_history(network.home, output.command, folder, network.device, config.trust)
    log.info(f"{network.kind.name}, {network.in_words}: written to {short_path(folder)}")
    return {}


def exported_of(network: TrainedNetwork) -> Exported:
    """What a format has to say of a run. Raises UserError where its network is not our U-Net."""
    config, schedule = network.config, network.schedule
    if not isinstance(network.net, UNet):
        raise UserError(
            f"unet._target_={config.unet['_target_']} cannot be exported: it is not the U-Net of this program"
        )
    betas = schedule.beta[1:].tolist() if isinstance(schedule, TableSchedule) else None
    clip = config.sampler.get("clip")
    return Exported(
        net=network.net,
        kind=network.kind,
        unet=with_defaults(config.unet, "unet"),
        schedule=with_defaults(config.schedule, "schedule", network.trust),
        betas=betas,
        prediction=config.prediction["_target_"],
        variance=config.variance,
        clip=network.kind.bounded if clip is None else clip,
        percentile=config.sampler.get("percentile") or PERCENTILE,
        spacing=config.sampler.get("spacing") or uniform.__name__,
    )


def to_diffusers(network: TrainedNetwork, exported: Exported) -> Files:
    """A pipeline: model_index.json, unet/ and scheduler/."""
    facts = diffusers_export.files_of(exported)
    tensors = to_theirs(table(exported.net, diffusers_names.NAMING), exported.net.state_dict())
    if exported.kind.pad:
        log.warning(f"images have a black border of {exported.kind.pad} pixels there, which this program removes")
    if not exported.kind.eight_bit:
        log.warning("images have other values there, those that the network sees: README.md says which")
    if exported.variance == "analytic":
        log.warning("variance=analytic is estimated after training: the scheduler has fixed_small in its place")
    return {
        **{name: partial(write_json, facts=content) for name, content in facts.items()},
        "unet/diffusion_pytorch_model.safetensors": partial(save_file, tensors, metadata={"format": "pt"}),
    }


def to_safetensors(network: TrainedNetwork, exported: Exported) -> Files:
    """Our own names, with the config in the header: a ckpt for this program."""
    facts = {
        **{"config": plain(network.config), "kind": asdict(network.kind), "step": network.step},
        **{"data_sha256": network.data_sha256, "weights": network.known_as, ORIGIN: network.origin},
    }
    save = partial(save_file, exported.net.state_dict(), metadata=ours.header(facts))
    return {"model.safetensors": save}


def to_improved_diffusion(network: TrainedNetwork, exported: Exported) -> Files:
    """model.pt, and flags.txt for its scripts."""
    openai_export.refuse_what_it_has_not(exported)
    tensors = to_theirs(table(exported.net, openai.ORDERS["legacy"]), exported.net.state_dict())
    flags = openai_export.flags_of(exported)
    return {
        "model.pt": partial(torch.save, tensors),
        "flags.txt": partial(Path.write_text, data=flags, encoding="utf-8"),
    }


FORMATS: dict[str, Callable[[TrainedNetwork, Exported], Files]] = {
    "diffusers": to_diffusers,
    "safetensors": to_safetensors,
    "improved_diffusion": to_improved_diffusion,
}
