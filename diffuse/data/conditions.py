"""The condition of a network: nothing, or the class of each image. Here it becomes the y of denoisers and samplers."""

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
    """The condition of a network's images; its tensors are the y of denoisers and samplers.

    classes  the names of the classes of a class-conditional network; empty for an unconditional one
    label    the class of every sample; None for all classes in turn
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
        """The arguments of a network for this condition."""
        return {"num_classes": len(self.classes) or None}

    def of_split(
        self, split: Split, rows: np.ndarray | slice = slice(None), device: torch.device = CPU
    ) -> Tensor | None:
        """The labels [n] of these images of a split; None without classes or labels."""
        if not self.classes or split.labels is None:
            return None
        return send(torch.from_numpy(split.labels[rows]), device)

    def of_samples(self, images: Sequence[int], device: torch.device = CPU) -> Tensor | None:
        """The labels [n] of the samples with these numbers; None without classes."""
        if not self.classes:
            return None
        labels = [i % len(self.classes) if self.label is None else self.label for i in images]
        return send(torch.tensor(labels), device)

    @property
    def record(self) -> dict[str, Any]:
        """The condition of samples, for the record beside them."""
        return {"label": self.label}
