"""`diffuse export`: the weights of a run in a format that other programs read, with a model card."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffuse.foreign import diffusers_export, diffusers_names, openai, openai_export, ours
from diffuse.foreign.export import Exported
from diffuse.foreign.naming import table, to_theirs
from diffuse.mathematics.schedules import TableSchedule
from diffuse.mathematics.wrappers import PERCENTILE
from diffuse.networks.unet import UNet
from diffuse.options.build import with_defaults
from diffuse.options.schema import ExportConfig, plain
from diffuse.runs.card import card
from diffuse.runs.history import add_to_history
from diffuse.runs.output import Output
from diffuse.runs.trained import TrainedNetwork, load, weights_of
from diffuse.system.device import Device
from diffuse.system.errors import UserError
from diffuse.system.files import make_folder, short_path, write_json
from diffuse.system.progress import log

Write = Callable[[Path, TrainedNetwork, Exported], None]


def run(config: ExportConfig, output: Output) -> Mapping[str, float]:
    """Write a folder in the format that is asked for. User errors are raised before anything is written."""
    network = load(
        config.ckpt,
        Device("cpu", "float32"),
        config.trust,
        weights=weights_of(config.ema.length),
        foreign=config.foreign,
    )
    network.refuse_classifier("ckpt", config.ckpt)
    folder = Path(config.out).expanduser() if config.out else network.home / "export" / config.to
    if folder.exists():
        raise UserError(f"out={short_path(folder)} exists already: remove it, or give another out=")
    exported = exported_of(network)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    make_folder(beside)
    try:
        FORMATS[config.to](beside, network, exported)
        (beside / "README.md").write_text(card(network, config.to, config.license), encoding="utf-8")
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    if not network.foreign:
        add_to_history(network.home, output.command, folder, network.device, config.trust)
    log.info(f"{network.kind.name}, step {network.step:,}, {network.weights} weights: written to {short_path(folder)}")
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
    )


def to_diffusers(folder: Path, network: TrainedNetwork, exported: Exported) -> None:
    """A pipeline: model_index.json, unet/ and scheduler/."""
    files = diffusers_export.files_of(exported)
    tensors = to_theirs(table(exported.net, diffusers_names.NAMING), exported.net.state_dict())
    for name, content in files.items():
        write_json(folder / name, content)
    save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    if exported.kind.pad:
        log.warning(f"images have a black border of {exported.kind.pad} pixels there, which this program removes")
    if not exported.kind.eight_bit:
        log.warning("images have other values there, those that the network sees: README.md says which")
    if exported.variance == "analytic":
        log.warning("variance=analytic is estimated after training: the scheduler has fixed_small in its place")


def to_safetensors(folder: Path, network: TrainedNetwork, exported: Exported) -> None:
    """Our own names, with the config in the header: a ckpt for this program."""
    facts = {
        **{"config": plain(network.config), "kind": asdict(network.kind), "step": network.step},
        **{"data_sha256": network.data_sha256, "weights": network.weights},
    }
    save_file(exported.net.state_dict(), folder / "model.safetensors", ours.header(facts))


def to_improved_diffusion(folder: Path, network: TrainedNetwork, exported: Exported) -> None:
    """model.pt, and flags.txt for its scripts."""
    openai_export.refuse_what_it_has_not(exported)
    tensors = to_theirs(table(exported.net, openai.ORDERS["legacy"]), exported.net.state_dict())
    torch.save(tensors, folder / "model.pt")
    (folder / "flags.txt").write_text(openai_export.flags_of(exported), encoding="utf-8")


FORMATS: dict[str, Write] = {
    "diffusers": to_diffusers,
    "safetensors": to_safetensors,
    "improved_diffusion": to_improved_diffusion,
}
