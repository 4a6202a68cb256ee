"""A step is the same operations on the same tensors every time: what a CUDA graph asks for, seen without one.

The operations of one step are recorded, with the very tensors that they read and write, and done again for the next
steps. Whatever a step would decide in Python, or keep in a tensor that is made anew, would be missing.
"""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.commands import TINY, config
from tests.support.comparing import assert_same
from tests.support.running import trainer_of

EVERYTHING = ["unet.dropout=0.3", "class_conditional=true", "times=importance", "times.history=2", "dataset.flip=true"]
CHOICES = {
    "ddpm": ["optim.decay=cosine", "device.precision=float32"],
    "everything": [*EVERYTHING, "schedule.levels=4", "schedule=cosine", "grad_accumulation=2"],
    "recomputed": ["unet.dropout=0.3", "device.recompute=true"],
    "improved_ddpm": ["method=improved_ddpm"],
    "edm": ["method=edm"],
    "flow": ["method=flow", "dataset.pad=2"],
    "classifier": ["method=classifier"],
}


def recorded(trainer):
    """Do a step, and return what does the recorded operations again."""

    def step(unused):
        trainer.compute()
        return unused + 0

    graph = make_fx(step)(torch.zeros(()))
    return torch.no_grad()(lambda: graph(torch.zeros(())))


@pytest.mark.parametrize("choice", CHOICES)
def test_a_recorded_step_done_again_is_the_next_step(choice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain, other = (trainer_of(config("train", *TINY, *CHOICES[choice])) for _ in range(2))
    for _ in range(2):
        plain.advance()
        other.advance()
    other.begin()
    again = recorded(other)
    for _ in range(3):
        other.step += 1
        other.begin()
        again()
    other.step += 1
    for _ in range(4):
        plain.advance()
    assert_same(plain.state(), other.state())
    assert plain.report() == other.report()


def test_a_step_waits_for_nothing(tmp_path, monkeypatch):
    """No number is read back in it, which would wait for a device that runs ahead."""
    monkeypatch.chdir(tmp_path)

    class Refused(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return function(*arguments, **(keywords or {}))

    trainer = trainer_of(config("train", *TINY, *EVERYTHING))
    trainer.advance()
    trainer.begin()
    with Refused():
        trainer.compute()
