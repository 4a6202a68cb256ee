"""Dropout by a hash: whether a value is dropped depends on its place and on two random numbers for its image."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.system.randomness import hash_key

# The multipliers of `lowbias32` (Wellons 2018), a mixing of 32 bits that was found by searching for the least bias.
MULTIPLIERS = 0x7FEB352D, 0x846CA68B - 2**32


class Dropout(nn.Module):
    """Zero with probability p, otherwise x / (1 - p), while training (Srivastava et al. 2014).

    The mask of an image is a function of its keys, of the layer and of the place in the image alone. So a step has the
    same masks in one batch and in parts, on any number of processes, in two evaluations of one step, and where
    activations are computed again; no random state is read, which a CUDA graph would have to be given; and they cost
    a third less than those of a random generator.

    p       the probability
    number  of the layer in its network
    keys    two random 32-bit numbers for each image of the batch, int32 [b, 2], by `use_keys`. Without them masks are
            drawn from torch's generator
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self.keys: Tensor | None = None
        self.number = 0

    @property
    def number(self) -> int:
        return self._number

    @number.setter
    def number(self, number: int) -> None:
        self._number = number
        bits = hash_key("dropout", number)
        self.mixed_in = signed(bits), signed(bits >> 32)

    def forward(self, x: Tensor) -> Tensor:
        if self.keys is None or not self.training or self.p == 0:
            return F.dropout(x, self.p, self.training)
        first, second = (self.keys[:, place].reshape(-1, 1, 1, 1) ^ self.mixed_in[place] for place in (0, 1))
        places = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device).reshape(x[0].shape)
        kept = mixed(places, first, second) >= round(self.p * 2**32) - 2**31
        return torch.where(kept, x * (1 / (1 - self.p)), 0)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def mixed(places: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Uniform 32-bit numbers from places and two keys, all int32: `lowbias32` with the keys put in at two points.

    Two keys, because with one the masks of two images could be the same sequence, shifted.
    """
    h = places ^ first
    h ^= (h >> 16) & 0xFFFF
    h *= MULTIPLIERS[0]
    h ^= second
    h ^= (h >> 15) & 0x1FFFF
    h *= MULTIPLIERS[1]
    h ^= (h >> 16) & 0xFFFF
    return h


def signed(bits: int) -> int:
    """The lowest 32 bits as a signed number, which int32 holds."""
    return (bits + 2**31) % 2**32 - 2**31


def number_dropouts(net: nn.Module) -> None:
    """Give each dropout of a network its number."""
    for number, module in enumerate(each for each in net.modules() if isinstance(each, Dropout)):
        module.number = number


def dropouts_of(net: nn.Module) -> list[Dropout]:
    """The dropouts of a network that drop anything."""
    return [module for module in net.modules() if isinstance(module, Dropout) and module.p]


def use_keys(dropouts: Sequence[Dropout], keys: Tensor | None) -> None:
    """The keys of the images that the network of these dropouts is called with next, [b, 2] int32."""
    for dropout in dropouts:
        dropout.keys = keys
