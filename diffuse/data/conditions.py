"""What a network is conditioned on: nothing, or the class of each image. Nobody else knows that labels are integers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.data.arrays import Split
from diffuse.system.device import send
from diffuse.system.errors import Refused, check

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Condition:
    """What the images of a network are conditioned on; its tensors are the y of denoisers and samplers.

    classes  the names of the classes that the network knows; none for an unconditional network
    label    the class of every image that is drawn; None for all classes in turn
    """

    classes: Sequence[str] = ()
    label: int | None = None

    def __post_init__(self) -> None:
        if self.label is not None and not self.classes:
            raise Refused("label", "needs a class-conditional network (class_conditional=true), and this one is not")
        if self.label is not None:
            check(0 <= self.label < len(self.classes), "label", f"between 0 and {len(self.classes) - 1}", self.label)

    @property
    def network_options(self) -> dict[str, Any]:
        """The arguments that make a network for it."""
        return {"num_classes": len(self.classes) or None}

    def of_split(
        self, split: Split, rows: np.ndarray | slice = slice(None), device: torch.device = CPU
    ) -> Tensor | None:
        """What these images of a split are conditioned on."""
        if not self.classes or split.labels is None:
            return None
        return send(torch.from_numpy(split.labels[rows]), device)

    def of_drawn(self, images: Sequence[int], device: torch.device = CPU) -> Tensor | None:
        """What drawn images with these numbers are conditioned on."""
        if not self.classes:
            return None
        labels = [i % len(self.classes) if self.label is None else self.label for i in images]
        return send(torch.tensor(labels), device)

    @property
    def record(self) -> dict[str, Any]:
        """What drawn images were conditioned on, for the files that say how they were made."""
        return {"label": self.label}
