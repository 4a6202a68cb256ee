"""The exponential moving average of a network's weights, from which samples are drawn."""

import copy

import torch
from torch import nn


class EMA:
    """average <- d average + (1 - d) weights after every step, with d = min(decay, (1 + step) / (10 + step)).

    The warm-up of d lets the average forget the initial weights within a few steps. step counts from 0. Buffers (the
    random frequencies of Fourier features) never change and are copied once.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.decay = decay
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self._average = [weight.detach() for weight in self.net.parameters()]
        self._weights = [weight.detach() for weight in net.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights as they are after step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)
