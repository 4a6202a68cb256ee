"""Averages of a network's weights over its training: samples are drawn with them."""

import copy

import torch
from torch import Tensor, nn

from diffuse.mathematics import power_average


class EMA:
    """average <- d average + (1 - d) weights after every step, with d = min(decay, (1 + step) / (10 + step)).

    The warm-up of d lets the average forget the initial weights within a few steps. step counts from 0. Buffers (the
    random frequencies of Fourier features) never change and are copied once.

    net is the network with the averaged weights; the argument `net` is the one that is trained.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.decay = decay
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self._average = [weight.detach() for weight in self.net.parameters()]
        self._weights = [weight.detach() for weight in net.parameters()]

    def rate(self, step: int) -> float:
        """1 - d at a step: how far the average moves towards the weights."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, rate: Tensor) -> None:
        """Move the average towards the weights by a rate, a float32 number on their device."""
        torch._foreach_lerp_(self._average, self._weights, [rate] * len(self._weights))


class PowerAverage(EMA):
    """The power average of this length (EDM2), which `runs.averages` combines with others to averages of any length."""

    def __init__(self, net: nn.Module, length: float):
        super().__init__(net, 0.0)
        self.length, self.gamma = length, power_average.gamma_of(length)

    def rate(self, step: int) -> float:
        return power_average.rate(step + 1, self.gamma)
