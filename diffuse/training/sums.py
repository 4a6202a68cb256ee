"""What is added up on the device between two lines of metrics: reading it would wait for the device in every step."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from diffuse.runs.checkpoint import check_shapes

QUARTILES = 4
# Sums by name, the first two for each quartile of t.
SIZES = {"loss": QUARTILES, "images": QUARTILES, "grad_norm": 1, "steps": 1}


class Sums:
    """Sums over steps: losses and images by quartile of t, gradient norms, and how many steps."""

    def __init__(self, device: torch.device):
        self.device = device
        self.values = {name: torch.zeros(size, device=device) for name, size in SIZES.items()}

    def add(self, part_of_time: Tensor, losses: Tensor, images: Tensor, norm: Tensor, good: Tensor) -> None:
        """Add a step, unless it failed (good is false).

        part_of_time  t / T of each image, in (0, 1]
        losses        of each image, times its importance weight; images: those weights
        norm          of the gradient
        """
        quartile = ((part_of_time * QUARTILES).ceil() - 1).clamp(0, QUARTILES - 1).long()
        self.values["loss"].index_add_(0, quartile, torch.where(good, losses, 0))
        self.values["images"].index_add_(0, quartile, torch.where(good, images, 0))
        self.values["grad_norm"] += torch.where(good, norm, 0)
        self.values["steps"] += good

    def means(self) -> dict[str, float]:
        """The mean loss, loss by quartile of t and gradient norm since this was asked last; NaN without a step."""
        losses, images, (norm,), (steps,) = (self.values[name].tolist() for name in SIZES)
        for values in self.values.values():
            values.zero_()
        quartiles = enumerate(zip(losses, images, strict=True), start=1)
        return {
            "loss": sum(losses) / (sum(images) or math.nan),
            **{f"loss_t_quartile/{number}": loss / count for number, (loss, count) in quartiles if count},
            "grad_norm": norm / (steps or math.nan),
        }

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Continue with the sums of a checkpoint. Raises ValueError where they are none."""
        check_shapes(values, {name: (size,) for name, size in SIZES.items()}, "sums")
        self.values = {name: value.to(self.device, copy=True) for name, value in values.items()}
