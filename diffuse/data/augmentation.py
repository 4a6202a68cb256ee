"""Augmentation that does not leak into samples: the network is told what was done to an image, and samples ask for
none.

Karras et al. 2022 (EDM), appendix F.2, after Jun et al. 2020. A cure for small sets of images that are seen often.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffuse.system.errors import check

LABELS = 9  # numbers that say what was done to an image; all 0 for an image as it is
SCALE_STD = ANISOTROPY_STD = 0.2  # of the base-2 logarithm
TRANSLATION_STD = 0.125  # of height and width
ANISOTROPY_TURNED = 0.5  # share of the stretched images whose axis is turned


@dataclass(frozen=True)
class Augmentation:
    """What is done to each image of a batch, each with this probability and independently of the others.

    Scaling by 2^(0.2 z), rotation by any angle, stretching by 2^(0.2 z) along any axis, translation by 0.125 z of
    height and width, with z standard normal; and where flips is set mirroring of half of the images, and with the same
    probability of half of them upside down. What lies outside of an image is its reflection.

    probability  0.12 in the paper; 0 for none
    flips        whether a mirrored image is as likely as the image: dataset.flip
    """

    probability: float = 0.0
    flips: bool = False

    def __post_init__(self) -> None:
        check(0 <= self.probability <= 1, "probability", "between 0 and 1", self.probability)

    def draw(self, count: int, device: torch.device) -> Tensor:
        """What is to be done to `count` images, [count, 9], from torch's generator.

        The columns: mirrored, upside down (0 or 1), z of the scale, cos - 1 and sin of the angle, z times cos and sin
        of twice the angle of the stretched axis, z of the translation in x and y. Twice, because a squeeze is a stretch
        along the other axis: so each row means one change.
        """

        def sometimes(values: Tensor, probability: float = self.probability) -> Tensor:
            return torch.where(torch.rand(count, device=device) < probability, values, 0)

        def normal() -> Tensor:
            return torch.randn(count, device=device)

        def angle() -> Tensor:
            return (2 * torch.rand(count, device=device) - 1) * math.pi

        coin = torch.randint(2, (2, count), device=device).float() * self.flips
        mirrored, upside_down = coin[0], sometimes(coin[1])
        scale, turn = sometimes(normal()), sometimes(angle())
        stretch, axis = sometimes(normal()), sometimes(angle(), ANISOTROPY_TURNED)
        moved = torch.rand(count, device=device) < self.probability
        right, down = torch.where(moved, normal(), 0), torch.where(moved, normal(), 0)
        rows = [mirrored, upside_down, scale, turn.cos() - 1, turn.sin()]
        return torch.stack([*rows, stretch * (2 * axis).cos(), stretch * (2 * axis).sin(), right, down], dim=1)


def augmented(x0: Tensor, labels: Tensor) -> Tensor:
    """Images [b, C, H, W] after what their labels [b, 9] say; those of labels 0 are as they were, to the last bit."""
    height, width = x0.shape[-2:]
    flip = torch.diag_embed(1 - 2 * labels[:, :2])
    turn_back = matrices(labels[:, 3] + 1, labels[:, 4], -labels[:, 4], labels[:, 3] + 1)
    shrink = torch.exp2(-SCALE_STD * labels[:, 2])
    stretch = ANISOTROPY_STD * labels[:, 5:7].norm(dim=1)
    axis = torch.atan2(labels[:, 6], labels[:, 5]) / 2
    to_axis = matrices(axis.cos(), axis.sin(), -axis.sin(), axis.cos())
    squeeze = to_axis.mT @ torch.diag_embed(torch.exp2(torch.stack([-stretch, stretch], 1))) @ to_axis
    backward = shrink[:, None, None] * flip @ turn_back @ squeeze  # flip, then turn, stretch, scale and move
    # In pixels from the middle; `affine_grid` has 1 at the borders, and goes from the result to the image.
    half = torch.tensor([width / 2, height / 2], device=x0.device)
    moved = TRANSLATION_STD * labels[:, 7:9] * 2 * half
    shift = -(backward @ moved[:, :, None])
    theta = torch.cat([backward * half / half[:, None], shift / half[:, None]], dim=2)
    grid = F.affine_grid(theta.to(x0), list(x0.shape), align_corners=False)
    found = F.grid_sample(x0, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return torch.where((labels == 0).all(1)[:, None, None, None], x0, found)


def matrices(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """[[a, b], [c, d]] for each image, [b, 2, 2]."""
    return torch.stack([a, b, c, d], dim=1).reshape(-1, 2, 2)
