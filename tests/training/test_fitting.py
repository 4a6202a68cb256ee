"""How a step is computed: what is refused, what is said where memory is too small, what a run goes on with."""

import weakref

import pytest
import torch

from diffuse.commands import train
from diffuse.networks.blocks import ResidualBlock, use_recomputation
from diffuse.networks.norm import from_moments, norm_of
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import OUTPUTS, make_new_folder
from diffuse.training.fitting import choose_norm
from tests.support.commands import TINY, config, output
from tests.support.comparing import newest
from tests.support.running import trained, trainer_of


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["batch_size=64", "grad_accumulation=3"],
            "grad_accumulation=3 must divide batch_size=64 without a remainder: 1, 2, 4, 8 would do",
        ),
        (["batch_size=7", "grad_accumulation=9"], "must divide batch_size=7 without a remainder: 1, 7 would do"),
        (["device.capture=true", "device=cpu"], "device.capture is for CUDA graphs, and the device is cpu: leave it"),
        (["device.precision=tf32", "device=cpu"], "device.precision is tf32, in which only CUDA devices compute"),
        (["device.norm=batch"], "device.norm must be one of torch, moments, not 'batch'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(words, message, tmp_path):
    with pytest.raises(UsageError) as caught:
        train.run(config("train", *TINY, *words), output())
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def limited_to(images: int):
    """What a device says that has memory for so many images."""

    failed: list[weakref.ref] = []

    def refuse(module, inputs):
        assert not any(reference() is not None for reference in failed), "what failed is still in memory"
        if len(inputs[0]) > images:
            failed.append(weakref.ref(inputs[0]))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    return refuse


@pytest.mark.parametrize(
    ("fits", "advice"),
    [
        (
            4,
            "grad_accumulation=4 does the same step in parts of 4, which fit.\ndevice.recompute=true needs",
        ),
        (1, "grad_accumulation=16 does the same step in parts of 1, which fit"),
        (0, "not even one image fits: a smaller network would"),
    ],
)
def test_a_batch_that_does_not_fit_is_answered_with_one_that_does(fits, advice):
    training = train.build_training(config("train", *TINY, "batch_size=16"))
    training.trainer.net.head.register_forward_pre_hook(limited_to(fits))
    with pytest.raises(UserError) as caught:
        train.train(training, make_new_folder(OUTPUTS / "r"), output(), float("inf"), None)
    assert str(caught.value).startswith("batch_size=16 does not fit into the memory of cpu")
    assert advice in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4


def test_parts_that_fit_go_on_and_smaller_ones_are_named_where_they_do_not():
    training = train.build_training(config("train", *TINY, "batch_size=16", "grad_accumulation=4", "steps=2"))
    training.trainer.net.head.register_forward_pre_hook(limited_to(2))
    with pytest.raises(UserError, match="batch_size=16 in 4 parts does not fit .*\ngrad_accumulation=8 does"):
        train.train(training, make_new_folder(OUTPUTS / "r"), output(), float("inf"), None)


def test_parts_of_a_batch_may_change_when_a_run_continues():
    """The same step, up to the order of sums."""
    whole = newest(trained("whole", "unet.dropout=0.2", "optim.decay=none"))
    trained("parts", "unet.dropout=0.2", "optim.decay=none", "steps=3", "grad_accumulation=4")
    parts = newest(trained("parts", "unet.dropout=0.2", "optim.decay=none", "grad_accumulation=2"))
    for one, other in zip(whole["model"].values(), parts["model"].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)


def test_recomputation_changes_no_bit():
    plain, again = (
        trainer_of(config("train", *TINY, "unet.dropout=0.3", *words)) for words in ([], ["device.recompute=true"])
    )
    calls = []
    for trainer in (plain, again):
        block = next(module for module in trainer.net.modules() if isinstance(module, ResidualBlock))
        block.register_forward_pre_hook(lambda module, inputs, trainer=trainer: calls.append(trainer is again))
    for _ in range(3):
        plain.advance()
        again.advance()
    assert calls.count(True) == 2 * calls.count(False) == 6
    for one, other in zip(plain.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(one, other)


def test_recomputation_without_keys_of_dropout_makes_the_same_masks_again():
    """In a notebook: dropout draws from torch's generator, and the gradient is that of the masks that were used."""
    net = trainer_of(config("train", *TINY, "unet.dropout=0.5")).net.train()
    x, time, y = torch.randn(4, 1, 8, 8), torch.rand(4), None
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.1)
    found = []
    for recompute in (False, True):
        if recompute:
            use_recomputation(net)
        torch.manual_seed(0)
        found.append(torch.autograd.grad(net(x, time, y).square().sum(), [*net.parameters()]))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_the_norm_of_a_run_is_recorded_and_kept():
    """On a CPU it is torch's own, unless the other one is asked for."""
    assert newest(trained("torch"))["norm"] == "torch"
    folder = trained("moments", "device.norm=moments", "steps=3", "optim.decay=none")
    assert newest(folder)["norm"] == "moments"
    assert newest(trained("moments", "optim.decay=none"))["norm"] == "moments"
    trainer = trainer_of(config("train", *TINY))
    choose_norm(trainer, "moments")
    assert norm_of(trainer.net) == "moments"
    assert trainer.net.norm.formula is from_moments
