"""Masks that are a function of keys: their statistics, and what they depend on."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from diffuse import UNet
from diffuse.networks.dropout import Dropout, dropouts_of, mixed, use_keys
from diffuse.networks.norm import GroupNorm

TINY = {"channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention": [4], "groups": 4, "dropout": 0.3}


def keys(n: int, seed: int = 0) -> torch.Tensor:
    drawn = np.random.default_rng(seed).integers(-(2**31), 2**31, (n, 2), dtype=np.int32)
    return torch.from_numpy(drawn)


def masks(p: float, n: int, shape: tuple[int, ...], seed: int = 0, number: int = 0) -> np.ndarray:
    """What is dropped of n images."""
    dropout = Dropout(p)
    dropout.number, dropout.keys = number, keys(n, seed)
    return (dropout(torch.ones(n, *shape)) == 0).numpy()


def test_lowbias32_is_that_of_its_author():
    """With both keys 0, on numbers computed by his C function written out in Python."""

    def lowbias32(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    numbers = [0, 1, 2, 77, 65_535, 2**31 - 1]
    none = torch.zeros((), dtype=torch.int32)
    found = mixed(torch.tensor(numbers, dtype=torch.int32), none, none)
    assert [value % 2**32 for value in found.tolist()] == [lowbias32(x) for x in numbers]


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_what_is_kept_is_scaled_and_the_share_dropped_is_p(p):
    dropout, n = Dropout(p), 200
    dropout.keys = keys(n)
    x = torch.full((n, 4, 16, 16), 3.0, dtype=torch.float64)
    found = dropout(x)
    dropped = int((found == 0).sum())
    torch.testing.assert_close(found[found != 0], torch.full([x.numel() - dropped], 3 / (1 - p), dtype=torch.float64))
    assert stats.binomtest(dropped, x.numel(), p).pvalue > 1e-4


def test_masks_are_independent_over_places_images_layers_and_steps():
    """Correlations of 200,000 pairs stay within five standard errors of 0."""
    dropped = masks(0.3, 200, (4, 16, 16)).reshape(200, -1)
    pairs = {
        "neighbours": (dropped[:, 1:], dropped[:, :-1]),
        "rows": (dropped[:, 16:], dropped[:, :-16]),
        "channels": (dropped[:, 256:], dropped[:, :-256]),
        "images": (dropped[1:], dropped[:-1]),
        "layers": (dropped, masks(0.3, 200, (4, 16, 16), number=1).reshape(200, -1)),
        "steps": (dropped, masks(0.3, 200, (4, 16, 16), seed=1).reshape(200, -1)),
    }
    for name, (a, b) in pairs.items():
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / a.size**0.5, name


def test_every_place_is_dropped_as_often_and_counts_are_binomial():
    dropped = masks(0.1, 4000, (2, 8, 8)).reshape(4000, -1)
    of_places = dropped.sum(0)
    assert stats.chisquare(of_places, np.full(len(of_places), of_places.mean())).pvalue > 1e-4
    spread = dropped.sum(1).var() / (dropped.shape[1] * 0.1 * 0.9)  # of an image's count
    assert spread == pytest.approx(1, abs=5 * (2 / 4000) ** 0.5)


def test_a_mask_is_of_the_image_not_of_its_batch():
    together, parts = masks(0.3, 6, (2, 4, 4)), []
    dropout = Dropout(0.3)
    for part in keys(6).split(2):
        dropout.keys = part
        parts.append((dropout(torch.ones(2, 2, 4, 4)) == 0).numpy())
    np.testing.assert_array_equal(together, np.concatenate(parts))


def test_the_gradient_is_of_what_is_kept():
    dropout, x = Dropout(0.4), torch.randn(3, 2, 4, 4, requires_grad=True)
    dropout.keys = keys(3)
    out = dropout(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, (out != 0) / 0.6)


def test_two_evaluations_of_a_network_have_the_same_masks_and_layers_have_others():
    torch.manual_seed(0)
    net = UNet(8, 1, **TINY)
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.2)
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([1.0, 20.0, 300.0, 1000.0])
    use_keys(dropouts_of(net), keys(4))
    first, second = net(x, t), net(x, t)
    assert torch.equal(first, second)
    use_keys(dropouts_of(net), keys(4, seed=1))
    assert not torch.allclose(net(x, t), first)
    numbers = [module.number for module in net.modules() if isinstance(module, Dropout)]
    assert numbers == list(range(len(numbers)))
    assert len({module.mixed_in for module in net.modules() if isinstance(module, Dropout)}) == len(numbers) > 3
    assert any(isinstance(module, GroupNorm) for module in net.modules())
    assert torch.equal(net.eval()(x, t), net(x, t))


def test_without_keys_masks_are_of_torchs_generator():
    dropout, x = Dropout(0.5), torch.ones(2, 3, 4, 4)
    torch.manual_seed(3)
    found = dropout(x)
    torch.manual_seed(3)
    assert torch.equal(found, nn.functional.dropout(x, 0.5))
