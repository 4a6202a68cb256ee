"""Sums in pairs, over a list of tensors and over processes: the same bits, however the summands are shared out."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def first_half(count: int) -> int:
    """How many of so many numbers, 2 or more, are in the first half of a pairwise sum: a power of two."""
    return 1 << ((count - 1).bit_length() - 1)


def pairwise_sum(tensors: Sequence[Tensor]) -> Tensor:
    """((a + b) + (c + d)) + ...

    The same bits whether one process adds up all of them, or each adds up a share of 1, 2, 4, 8, ... before.
    """
    if len(tensors) == 1:
        return tensors[0]
    half = first_half(len(tensors))
    return pairwise_sum(tensors[:half]) + pairwise_sum(tensors[half:])


def sum_over(tensor: Tensor, levels: Sequence[Any]) -> Tensor:
    """The sum of a tensor [n] over all processes; levels: the groups of this one, the innermost first."""
    if not levels:
        return tensor
    group, *outer = levels
    if group.size() == 2 and not outer:  # a + b is b + a
        dist.all_reduce(tensor, group=group)
        return tensor
    padded = F.pad(tensor, (0, -len(tensor) % group.size()))
    pieces = torch.empty_like(padded)
    dist.all_to_all_single(pieces, padded, group=group)
    own = pairwise_sum([piece.float() for piece in pieces.chunk(group.size())]).to(tensor.dtype)
    dist.all_gather_into_tensor(padded, sum_over(own, outer), group=group)
    return padded[: len(tensor)]
