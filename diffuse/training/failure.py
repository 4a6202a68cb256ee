"""A training step that failed, done again from the file that it left behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffuse.options.build import build
from diffuse.runs import checkpoint
from diffuse.runs.trained import TrainedNetwork
from diffuse.system.device import Device
from diffuse.system.errors import UserError


@dataclass(frozen=True)
class FailedStep:
    """One step: its number, the loss of each image [b] and its level [b], the gradient's norm, the network with it."""

    step: int
    losses: Tensor
    levels: Tensor
    norm: float
    net: nn.Module


def replay(failure: str | Path, trust: Sequence[str] = ()) -> FailedStep:
    """Forward and backward of the step in a run's failure.pt, with its weights, images, levels, noise and dropout.

    The data set is not needed. On the device that the run was on, as its config says.
    """
    stored = checkpoint.stored(Path(failure))
    if "failure" not in stored.content:
        raise UserError(f"{failure} is a checkpoint; the file of a step that failed is called failure.pt")
    made_of = stored.content["failure"]
    device: Device = build(stored.content["config"]["device"], "device", trust)
    network = TrainedNetwork(stored, device, trust=trust, weights="model")
    net = network.net.train().requires_grad_(True)
    denoiser = network.formulas.denoiser(net, device)
    batch = {
        name: None if made_of[name] is None else made_of[name].to(device.torch) for name in ("x0", "t", "noise", "y")
    }
    torch.set_rng_state(made_of["random"]["cpu"])
    if made_of["random"]["cuda"] is not None and device.torch.type == "cuda":
        torch.cuda.set_rng_state(made_of["random"]["cuda"])
    losses = network.formulas.loss(denoiser, batch["x0"], batch["t"], batch["noise"], batch["y"])
    (made_of["importance"].to(device.torch) * losses).mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), torch.inf)
    return FailedStep(network.step, losses.detach().cpu(), made_of["t"].cpu(), float(norm), net)
