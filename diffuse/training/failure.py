"""Compute a failed training step again, from the run's failure.pt."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffuse.networks.augmentation_labels import use_labels
from diffuse.networks.dropout import dropouts_of, use_keys
from diffuse.networks.norm import use_norm
from diffuse.options.build import build
from diffuse.runs import checkpoint
from diffuse.runs.trained import TrainedNetwork
from diffuse.system.device import Device
from diffuse.system.errors import UserError
from diffuse.training.batches import Batch


class FailedStep(NamedTuple):
    """A step: its number, the losses of its images [b], their times [b], the norm of the gradient, the network."""

    step: int
    losses: Tensor
    levels: Tensor
    norm: float
    net: nn.Module


def replay(failure: str | Path, trust: Sequence[str] = ()) -> FailedStep:
    """Forward and backward pass of the step in a failure.pt, with its weights, images, times, noise and dropout.

    It needs no data set, and runs on the device in the run's config.
    """
    stored = checkpoint.load_checkpoint(Path(failure))
    if "failure" not in stored.content:
        raise UserError(f"{failure} is a checkpoint; the file of a step that failed is called failure.pt")
    saved = stored.content["failure"]
    saved = {"importance": saved.get("weights"), **saved}  # the name in format 3
    device: Device = build(stored.content["config"]["device"], "device", trust)
    network = TrainedNetwork(stored, device, trust=trust, weights="model")
    net = network.net.train().requires_grad_(True)
    use_norm(net, stored.content.get("norm") or "torch")  # as the step was computed
    function = network.formulas.trained(net, device)
    saved = {"dropout": None, "augmentation": None, **saved}  # before it had them
    batch = Batch._make(None if saved[name] is None else saved[name].to(device.torch) for name in Batch._fields)
    use_keys(dropouts_of(net), batch.dropout)
    use_labels(net, batch.augmentation)
    torch.set_rng_state(saved["random"]["cpu"])
    if saved["random"]["cuda"] is not None and device.torch.type == "cuda":
        torch.cuda.set_rng_state(saved["random"]["cuda"])
    losses = network.formulas.loss(function, batch.x0, batch.t, batch.noise, batch.y)
    (batch.importance * losses).mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), torch.inf)
    return FailedStep(network.step, losses.detach().cpu(), batch.t.cpu(), float(norm), net)
