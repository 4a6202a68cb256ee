"""Where the network runs."""

import pytest
import torch

from diffuse.system.device import Device, in_chunks


def test_a_missing_device_is_said(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match="kind is cuda, but torch finds no cuda device"):
        Device("cuda")
    assert Device("auto").torch.type in ("cpu", "mps")


@pytest.mark.parametrize("option", ["kind", "precision"])
def test_unknown_values_are_named(option):
    with pytest.raises(ValueError, match=f"^{option} must be one of auto"):
        Device(**{option: "fast"})


@pytest.mark.parametrize("count", [1, 4, 5, 11])
def test_chunks_have_one_size_and_lose_nothing(count):
    sizes = []

    def net(x, time, y=None):
        sizes.append((len(x), len(time), len(y)))
        return x * 2 + time.reshape(-1, 1) + y.reshape(-1, 1)

    x, time, y = torch.randn(count, 3), torch.randn(count), torch.arange(count)
    torch.testing.assert_close(in_chunks(net, 4, Device("cpu").spread)(x, time, y), net(x, time, y))
    assert set(sizes[:-1]) == {(4, 4, 4)}


def test_chunks_go_without_labels():
    call = in_chunks(lambda x, time, y: x if y is None else None, 4, Device("cpu").spread)
    assert call(torch.ones(3, 1), torch.ones(3), None).shape == (3, 1)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_only_the_inside_of_the_network_is_in_low_precision(precision, dtype):
    seen = []
    layer = torch.nn.Conv2d(1, 1, 1)

    def net(x, time, y):
        out = layer(x)
        seen.append(out.dtype)
        return out

    out = Device("cpu", precision).network(net)(torch.ones(1, 1, 2, 2), torch.ones(1), None)
    assert seen == [dtype]
    assert out.dtype == torch.float32
