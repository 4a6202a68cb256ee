"""The input of a network that says how the images of a training were augmented."""

import torch
from torch import Tensor, nn


class AugmentationLabels(nn.Module):
    """A linear function of the labels of an augmentation, added to the embedding of the time; nothing where they are 0.

    labels  of the images of the next training call, [b, count], by `use_labels`; None for images as they are
    """

    def __init__(self, count: int, embedded: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(embedded, count))
        self.labels: Tensor | None = None

    def forward(self, embedded: Tensor) -> Tensor:
        if self.labels is None or not self.training:
            return embedded
        return embedded + self.labels.to(embedded) @ self.weight.T.to(embedded)


def use_labels(net: nn.Module, labels: Tensor | None) -> None:
    """The labels of the images that a network is called with next, where it has this input."""
    module = getattr(net, "embed_augmentation", None)
    if isinstance(module, AugmentationLabels):
        module.labels = labels
