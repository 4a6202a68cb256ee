"""The average of the weights, against its recursion in plain Python."""

import pytest
import torch

from diffuse.training.ema import EMA


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.995])
def test_the_average_follows_its_recursion(decay: float):
    net = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(net.weight, 1.0)
    ema, expected = EMA(net, decay), 1.0
    for step in range(50):
        with torch.no_grad():
            net.weight.fill_(step * 0.3 - 2)
        ema.update(torch.tensor(ema.rate(step), dtype=torch.float64))
        d = min(decay, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * (step * 0.3 - 2)
        assert ema.net.weight.item() == pytest.approx(expected, rel=1e-12)
    assert net.weight.item() == pytest.approx(49 * 0.3 - 2)


def test_the_average_is_never_trained():
    ema = EMA(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)), 0.9)
    assert not any(weight.requires_grad for weight in ema.net.parameters())
    assert not ema.net.training
