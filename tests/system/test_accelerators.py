"""What an accelerator would complain of, seen without one: tensors that only pretend to be there.

torch's fake tensors have a device and a shape, and no numbers. Whatever mixes devices fails on them, and so does all
that would wait for a number, which a training step must not.
"""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from diffuse.mathematics import losses, predictions
from diffuse.mathematics.continuous import VE, VP, Flow
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.likelihood import prior_term, reverse_terms
from diffuse.mathematics.spacings import time_grid
from diffuse.mathematics.tables import linear
from diffuse.mathematics.time_sampling import ImportanceTimes, LogNormalTimes, UniformTimes
from diffuse.mathematics.variances import fixed_large, learned, reverse_steps
from diffuse.mathematics.wrappers import Clipped
from tests.support.samplers import SAMPLERS


def said(x: Tensor, time: Tensor, y: Tensor | None = None, channels: int = 1) -> Tensor:
    assert time.device == x.device
    assert time.dtype == x.dtype == torch.float32
    return torch.cat([x * 0.5 + time.reshape(-1, 1, 1, 1)] * channels, dim=1)


METHODS = {
    "simple": (Denoiser(said, linear(10, 1e-4, 0.02)), losses.simple, UniformTimes),
    "importance": (Denoiser(said, linear(10, 1e-4, 0.02)), losses.simple, partial(ImportanceTimes, history=3)),
    "hybrid": (
        Denoiser(partial(said, channels=2), linear(10, 1e-4, 0.02), learned_variance=True),
        losses.hybrid,
        UniformTimes,
    ),
    "vlb": (
        Denoiser(partial(said, channels=2), linear(10, 1e-4, 0.02), learned_variance=True),
        losses.vlb,
        ImportanceTimes,
    ),
    "edm": (Denoiser(said, VE(), predictions.edm), losses.simple, LogNormalTimes),
    "flow": (Denoiser(said, Flow(), predictions.flow), losses.simple, UniformTimes),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_on_cuda_waits_for_nothing(method):
    """Times, loss, and what importance sampling learns of it."""
    denoiser, loss, drawn = METHODS[method]
    with FakeTensorMode(allow_non_fake_inputs=True):
        times = drawn(denoiser.schedule).to("cuda")
        x0 = torch.rand(4, 3, 2, 2, device="cuda")
        t, weights = times.draw(4, "cuda")
        found = loss(denoiser, x0, t, torch.randn_like(x0))
        times.learn(t, found)
        assert found.device == weights.device == x0.device
        assert found.dtype == weights.dtype == torch.float32


WITH_NUMBERS = ("analytic_ddim", "dormand_prince")  # an estimate; steps that depend on the images


@pytest.mark.parametrize("sampler", [SAMPLERS[name] for name in SAMPLERS if name not in WITH_NUMBERS])
@pytest.mark.parametrize("schedule", [linear(10, 1e-4, 0.02), VP(), VE()], ids=["linear", "vp", "ve"])
def test_samplers_stay_on_the_device(sampler, schedule):
    """On torch's device without numbers, with times and coefficients that have some."""
    x = torch.randn(2, 3, 2, 2, device="meta")
    for found in sampler(Clipped(Denoiser(said, schedule)), x, time_grid(schedule, 4)):
        assert (found.device.type, found.dtype) == ("meta", torch.float32)


@pytest.mark.parametrize("variance", [fixed_large, learned])
def test_the_bound_stays_on_the_device(variance):
    denoiser = Denoiser(partial(said, channels=2), linear(10, 1e-4, 0.02), learned_variance=True)
    x0 = torch.rand(2, 3, 2, 2, device="meta")
    steps = reverse_steps(denoiser.schedule, time_grid(denoiser.schedule, 4))
    for term in [
        prior_term(denoiser.schedule, x0),
        *reverse_terms(denoiser, x0, steps, None, variance, None, torch.randn_like),
    ]:
        assert (term.device.type, term.dtype) == ("meta", torch.float32)
