"""The group norm from moments against torch's own."""

import pytest
import torch
from torch import nn

from diffuse import UNet
from diffuse.networks.norm import NORMS, GroupNorm, from_moments, use_norm
from diffuse.system.errors import Refused

TINY = {"channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention": [4], "groups": 4}


def both(x: torch.Tensor, groups: int = 4) -> list[list[torch.Tensor]]:
    """The output and the gradients of x, weight and bias: of `from_moments`, and of torch's norm."""
    generator = torch.Generator().manual_seed(1)
    weight, bias = (torch.randn(x.shape[1], generator=generator, dtype=x.dtype) for _ in range(2))
    upstream = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    found = []
    for norm in (from_moments, NORMS["torch"]):
        leaves = [each.clone().requires_grad_() for each in (x, weight, bias)]
        out = norm(leaves[0], groups, leaves[1], leaves[2], 1e-6)
        out.backward(upstream)
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    return found


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("shape", [(3, 8, 5, 5), (1, 16, 1, 1), (2, 8, 4, 7)])
def test_it_is_torchs_group_norm_forward_and_backward(shape, groups):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.7
    for found, expected in zip(*both(x, groups), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_its_gradient_is_that_of_differences():
    x, weight, bias = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 4, 3, 3), 4, 4))
    assert torch.autograd.gradcheck(lambda *each: from_moments(each[0], 2, *each[1:], 1e-5), (x, weight, bias))


@pytest.mark.parametrize("ratio", [1e3, 1e4])
def test_nothing_cancels_where_the_mean_is_far_from_zero(ratio):
    """In float32, against float64; sums of x and of x^2 would be off by 1 and more."""
    x = torch.randn(4, 8, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = (x + ratio * torch.linspace(0.9, 1.1, 8, dtype=torch.float64).reshape(1, 8, 1, 1)).float()
    weight, bias = torch.ones(8), torch.zeros(8)
    exact = nn.functional.group_norm(x.double(), 8, weight.double(), bias.double(), 1e-6)  # a group for each channel
    torch.testing.assert_close(from_moments(x, 8, weight, bias, 1e-6).double(), exact, rtol=1e-3, atol=ratio * 3e-7)


def test_it_keeps_the_memory_layout_and_computes_in_float32():
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    assert from_moments(x, 4, torch.ones(8), torch.zeros(8), 1e-6).is_contiguous(memory_format=torch.channels_last)
    low = from_moments(x.bfloat16(), 4, torch.ones(8), torch.zeros(8), 1e-6)
    assert low.dtype == torch.float32  # as torch's is under autocast
    torch.testing.assert_close(low, nn.functional.group_norm(x.bfloat16().float(), 4, eps=1e-6))


def test_a_network_has_one_or_the_other_with_the_same_parameters():
    torch.manual_seed(0)
    net = UNet(8, 1, **TINY).double()
    nn.init.normal_(net.head.weight)
    x, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([3.0, 700.0], dtype=torch.float64)
    names, before = list(net.state_dict()), net(x, t)
    use_norm(net, "moments")
    assert all(each.formula is from_moments for each in net.modules() if isinstance(each, GroupNorm))
    torch.testing.assert_close(net(x, t), before, rtol=1e-9, atol=1e-9)
    assert list(net.state_dict()) == names
    use_norm(net, "torch")
    assert torch.equal(net(x, t), before)
    with pytest.raises(Refused, match="norm must be one of torch, moments, not 'batch'"):
        use_norm(net, "batch")
