"""A training step that failed, done again from the file that it left behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffuse.data.images import ImageKind
from diffuse.options.build import build, build_network
from diffuse.options.formulas import Formulas
from diffuse.runs import checkpoint
from diffuse.system.device import Device
from diffuse.system.errors import UserError


@dataclass(frozen=True)
class Step:
    """One step: its number, the loss of each image [b] and its level [b], the gradient's norm, the network with it."""

    step: int
    losses: Tensor
    levels: Tensor
    norm: float
    net: nn.Module


def replay(failure: str | Path, trust: Sequence[str] = ()) -> Step:
    """Forward and backward of the step in a run's failure.pt, with its weights, images, levels, noise and dropout.

    The data set is not needed. On the device that the run was on, as its config says.
    """
    content = checkpoint.read(Path(failure))
    if "failure" not in content:
        raise UserError(f"{failure} is a checkpoint; the file of a step that failed is called failure.pt")
    config, made_of = content["config"], content["failure"]
    device: Device = build(config["device"], "device", trust)
    kind = ImageKind(**content["kind"])
    net = device.place(build_network(config, kind, trust))
    net.load_state_dict(content["model"])
    formulas = Formulas.of(config, kind, trust)
    denoiser = formulas.denoiser(net, device)
    x0, t, weights, noise = (made_of[name].to(device.torch) for name in ("x0", "t", "weights", "noise"))
    y = None if made_of["y"] is None else made_of["y"].to(device.torch)
    torch.set_rng_state(made_of["random"]["cpu"])
    if made_of["random"]["cuda"] is not None and device.torch.type == "cuda":
        torch.cuda.set_rng_state(made_of["random"]["cuda"])
    losses = formulas.loss(denoiser, x0, t, noise, y)
    (weights * losses).mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), torch.inf)
    return Step(content["step"], losses.detach().cpu(), t.cpu(), float(norm), net)
