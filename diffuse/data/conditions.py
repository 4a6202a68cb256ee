"""The condition of a network: nothing, or the class of each image. Here it becomes the y of denoisers and samplers.

Nothing outside knows that a class is a number: a tensor y is made here, and what stands for "no class" in it too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.data.arrays import Split
from diffuse.system.device import send
from diffuse.system.errors import Refused, did_you_mean

CPU = torch.device("cpu")
LISTED = 100  # classes in a message


@dataclass(frozen=True)
class Condition:
    """The condition of a network's images; its tensors are the y of denoisers and samplers.

    classes  the names of the classes of a class-conditional network; empty for an unconditional one
    dropout  the share of labels that training replaces by the null label, "no class", so that one network is
             conditional and unconditional: Ho and Salimans 2022, algorithm 1. At 0 there is no null label
    drawn    the numbers of the classes that samples have in turn; None for all of them
    """

    classes: Sequence[str] = ()
    dropout: float = 0.0
    drawn: Sequence[int] | None = None

    @property
    def network_options(self) -> dict[str, Any]:
        """The arguments of a network for this condition: the null label has the last row of the embedding."""
        return {"num_classes": len(self.classes) + bool(self.dropout) if self.classes else None}

    def of(self, label: Any) -> "Condition":
        """The condition of samples of a class, given by name or number, or of those in a list, in turn; None for all.

        Raises Refused where there is no such class.
        """
        if label is None:
            return replace(self, drawn=None)
        if not self.classes:
            raise Refused("label", "needs a run trained on labels (class_conditional=true) or guidance=classifier")
        several = label if isinstance(label, list | tuple) else [label]
        if not several:
            raise Refused("label", "must be a class or a list of classes, not empty")
        return replace(self, drawn=[self._number(each) for each in several])

    def _number(self, label: Any) -> int:
        """The number of a class. Names come first; where they are numbers themselves, no other number is taken."""
        names = [str(name) for name in self.classes]
        if (name := str(label)) in names and not isinstance(label, bool):
            return names.index(name)
        is_number = name.isascii() and name.isdigit() and not any(each.isdigit() for each in names)
        if is_number and int(name) < len(names):
            return int(name)
        numbers = "" if any(each.isdigit() for each in names) else f", or a number from 0 to {len(names) - 1}"
        raise Refused(
            "label", f"must be one of the classes {in_short(names)}{numbers}, not {name}.{did_you_mean(name, names)}"
        )

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
        return send(torch.tensor([self.number_of(image) for image in images]), device)

    def labels(self, n: int) -> np.ndarray | None:
        """The labels of the first n samples; None without classes."""
        y = self.of_samples(range(n))
        return None if y is None else y.numpy()

    def number_of(self, image: int) -> int:
        """The number of the class of a sample."""
        drawn = range(len(self.classes)) if self.drawn is None else self.drawn
        return drawn[image % len(drawn)]

    def null(self, y: Tensor) -> Tensor:
        """The null label for each image of y."""
        return torch.full_like(y, len(self.classes))

    def drop(self, y: Tensor | None) -> Tensor | None:
        """The labels of a training step, each replaced by the null label with probability `dropout`.

        Draws one number for each image from torch's generator, and none without dropout.
        """
        if y is None or not self.dropout:
            return y
        return torch.where(torch.rand(len(y), device=y.device) < self.dropout, self.null(y), y)

    @property
    def record(self) -> dict[str, Any]:
        """The condition of samples, for the record beside them: the names of the classes that they have in turn."""
        if not self.classes:
            return {"label": None}
        return {"label": [self.classes[number] for number in self.drawn] if self.drawn else list(self.classes)}

    def titles(self, images: Sequence[int]) -> list[str]:
        """The name of the class of each of these samples; none without classes."""
        return [str(self.classes[self.number_of(image)]) for image in images] if self.classes else []

    def arrays(self, n: int) -> Mapping[str, np.ndarray]:
        """What an npz file of n samples holds beside the images: arr_1, their labels, and the names of the classes."""
        labels = self.labels(n)
        return {} if labels is None else {"arr_1": labels, "classes": np.array(list(self.classes), dtype=str)}


def in_short(names: Sequence[str], most: int = LISTED) -> str:
    """The names of classes, or the first of them where there are many, for a message."""
    return ", ".join(names if len(names) <= most else [*names[: most - 1], f"... ({len(names):,} in all)"])
