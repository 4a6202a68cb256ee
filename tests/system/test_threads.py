"""Calls spread over the cores: the same results whatever their number is, gradients and errors included."""

import threading

import pytest
import torch

from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.ode import heun, hutchinson, log_likelihood
from diffuse.mathematics.tables import linear
from diffuse.networks.unet import UNet
from diffuse.system.device import Device
from diffuse.system.threads import Workers, threads_from_environment


def test_results_come_in_their_order_and_each_is_computed_by_one_thread():
    def call(item: int) -> tuple[int, int, bool]:
        return item, torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    before = torch.get_num_threads()
    assert Workers(2).map(call, range(7)) == [(item, 1, False) for item in range(7)]
    assert torch.get_num_threads() == before


def test_a_worker_that_spreads_does_so_itself():
    """Or two of them would wait for each other for ever."""
    workers = Workers(1)
    assert workers.map(lambda rows: sum(workers.map(float, rows)), [[1, 2], [3]]) == [3.0, 3.0]


@pytest.mark.parametrize("recorded", [True, False])
def test_gradients_are_recorded_where_they_are_for_the_caller(recorded):
    x = torch.ones(3, requires_grad=True)
    with torch.set_grad_enabled(recorded):
        (doubled,) = Workers(1).map(lambda x: 2 * x, [x])
    assert doubled.requires_grad == recorded


def test_an_error_in_a_worker_is_raised():
    with pytest.raises(ZeroDivisionError):
        Workers(2).map(lambda item: 1 / item, [1, 0])


@pytest.mark.parametrize(("text", "expected"), [("3", 3), ("4,2", 4), ("", None), ("many", None), ("0", None)])
def test_the_variable_of_the_environment_is_read(monkeypatch, text, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert threads_from_environment() == expected
    assert Device("cpu").threads == expected
    assert Device("cpu", threads=2).threads == 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_call_does_not_depend_on_the_number_of_threads(precision):
    """To the last bit, for a batch of several calls with a derivative, whatever the caller computes with."""
    torch.manual_seed(0)
    net = UNet(8, 1, channels=32, channel_mult=[1, 2], blocks=1, attention=[4], groups=8)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    x, probe = torch.randn(2, 150, 1, 8, 8)
    found = []
    for threads in (1, 2, 3):
        device = Device("cpu", precision, threads=threads)
        device.compute_with(threads)
        denoiser = Denoiser(device.network(net, rows=64), linear())

        def solve(part: slice, denoiser: Denoiser = denoiser) -> torch.Tensor:
            divergence = hutchinson(probe[part].sign())
            return log_likelihood(denoiser, x[part], solver=heun, divergence=divergence, steps=2).log_density

        with torch.no_grad():
            drawn = denoiser(x, torch.tensor(500.0)).x0
        found.append((drawn, torch.cat(device.spread(solve, [slice(0, 64), slice(64, 128), slice(128, 150)]))))
    Device("cpu").compute_with(1)
    for drawn, density in found[1:]:
        assert torch.equal(drawn, found[0][0])
        assert torch.equal(density, found[0][1])
