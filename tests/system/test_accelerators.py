"""What an accelerator would complain of, seen without one: tensors that only pretend to be there.

torch's fake tensors have a device and a shape, and no numbers. Whatever mixes devices fails on them, and so does all
that would wait for a number, which a training step must not.
"""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffuse.mathematics import losses, predictions
from diffuse.mathematics.continuous import VE, VP, Flow
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.likelihood import prior_term, reverse_terms
from diffuse.mathematics.spacings import time_grid
from diffuse.mathematics.tables import linear
from diffuse.mathematics.time_sampling import ImportanceTimes, LogNormalTimes, UniformTimes
from diffuse.mathematics.variances import fixed_large, learned, reverse_steps
from diffuse.mathematics.wrappers import Clipped
from diffuse.networks.dropout import dropouts_of, use_keys
from diffuse.networks.norm import NORMS, use_norm
from diffuse.networks.unet import UNet
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


class NoCopies(TorchDispatchMode):
    """Refuses what a CUDA graph cannot record: copies from the CPU to the device."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        found = function(*arguments, **(keywords or {}))
        given = {each.device.type for each in tree_leaves((arguments, keywords)) if isinstance(each, Tensor)}
        made = {each.device.type for each in tree_leaves(found) if isinstance(each, Tensor)}
        copies = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        assert not (copies and "cpu" in given and "cuda" in made), f"{function} copies from the CPU to the device"
        return found


@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_copies_nothing_to_the_device(method):
    """From its second call on: tables are copied once, and kept."""
    denoiser, loss, drawn = METHODS[method]

    def step() -> None:
        t, weights = times.draw(4, "cuda")
        times.learn(t, weights * loss(denoiser, x0, t, torch.randn_like(x0)))

    with FakeTensorMode(allow_non_fake_inputs=True):
        times, x0 = drawn(denoiser.schedule).to("cuda"), torch.rand(4, 3, 2, 2, device="cuda")
        step()
        with NoCopies():
            step()


def test_a_copy_to_the_device_is_seen():
    with FakeTensorMode(), NoCopies(), pytest.raises(AssertionError, match="copies from the CPU to the device"):
        torch.ones(3).to("cuda")


class NoFloat64(TorchDispatchMode):
    """Refuses what Apple's MPS has not: float64 on the device, and operations that it is known to lack."""

    LACKING = ("linalg_", "special_bessel", "_fft_", "aten.lgamma", "aten.igamma", "aten._local_scalar_dense")

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        found = function(*arguments, **(keywords or {}))
        there = [each for each in tree_leaves(found) if isinstance(each, Tensor) and each.device.type == "cuda"]
        assert not [each for each in there if each.dtype == torch.float64], f"{function} makes float64 on the device"
        lacking = [name for name in self.LACKING if name in str(function)] if there else []
        assert not lacking, f"MPS has no {function}"
        return found


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"hybrid", "vlb"}))
def test_a_training_step_on_mps_has_no_float64(method):
    """With a device that pretends to be there in its place: of MPS torch makes no fake tensors.

    The terms of the bound in `hybrid` and `vlb` are in float64 but on MPS (`likelihood.to_float64`).
    """
    denoiser, loss, drawn = METHODS[method]
    with FakeTensorMode(allow_non_fake_inputs=True), NoFloat64():
        times = drawn(denoiser.schedule).to("cuda")
        x0 = torch.rand(4, 3, 2, 2, device="cuda")
        t, weights = times.draw(4, "cuda")
        times.learn(t, weights * loss(denoiser, x0, t, torch.randn_like(x0)))


def test_a_fake_device_without_float64_refuses_it():
    with FakeTensorMode(), NoFloat64(), pytest.raises(AssertionError, match="makes float64 on the device"):
        torch.rand(2, device="cuda").double()


def test_networks_have_nothing_that_mps_lacks():
    """Both norms, attention, dropout by keys."""
    with FakeTensorMode(), NoFloat64(), torch.device("cuda"):
        net = UNet(8, 3, channels=8, channel_mult=[1, 2], blocks=1, attention=[4], groups=4, dropout=0.1)
        use_keys(dropouts_of(net), torch.zeros(2, 2, dtype=torch.int32, device="cuda"))
        for norm in NORMS:
            use_norm(net, norm)
            assert net(torch.rand(2, 3, 8, 8), torch.rand(2)).dtype == torch.float32


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
