"""What is done to training images, against exact cases; and that nothing of it reaches a sample."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuse.data.augmentation import LABELS, Augmentation, augmented
from diffuse.data.images import ImageKind
from diffuse.networks.augmentation_labels import use_labels
from diffuse.options.network import build_network
from diffuse.runs.trained import load
from diffuse.system.device import Device
from diffuse.system.errors import Refused, UsageError
from tests.support.commands import TINY, config, diffuse
from tests.support.comparing import assert_same, newest

X0 = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
SQUARE = X0[..., :8]


def labels(**columns: float) -> Tensor:
    names = ["mirrored", "upside_down", "scale", "cos", "sin", "along_x", "turned", "right", "down"]
    return torch.tensor([[columns.get(name, 0.0) for name in names]])


def quarter(turns: int) -> Tensor:
    return labels(cos=math.cos(turns * math.pi / 2) - 1, sin=math.sin(turns * math.pi / 2))


def test_exact_changes_move_pixels_and_no_value():
    for done, expected in (
        (labels(), X0),
        (labels(mirrored=1), X0.flip(-1)),
        (labels(upside_down=1), X0.flip(-2)),
        (labels(mirrored=1, upside_down=1), X0.flip(-1, -2)),
    ):
        torch.testing.assert_close(augmented(X0, done), expected, rtol=0, atol=1e-5)
    for turns in (1, 2, 3):
        torch.testing.assert_close(augmented(SQUARE, quarter(turns)), SQUARE.rot90(-turns, (2, 3)), rtol=0, atol=1e-5)
    assert torch.equal(augmented(X0, labels()), X0)


def test_translation_is_in_eighths_of_height_and_width_and_reflects():
    right = augmented(X0, labels(right=2 / 3))  # 0.125 * 12 * 2 / 3 = 1 pixel
    torch.testing.assert_close(right[..., 1:], X0[..., :-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(right[..., 0], X0[..., 0], rtol=0, atol=1e-5)
    down = augmented(X0, labels(down=-2.0))
    torch.testing.assert_close(down[..., :-2, :], X0[..., 2:, :], rtol=0, atol=1e-5)
    torch.testing.assert_close(down[..., -2:, :], X0[..., -2:, :].flip(-2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("done", "matrix"),
    [
        (labels(scale=1.5), np.eye(2) * 2 ** (0.2 * 1.5)),
        (labels(along_x=2.0), np.diag([2**0.4, 2**-0.4])),
        (labels(along_x=-2.0), np.diag([2**-0.4, 2**0.4])),
        (labels(turned=2.0), np.array([[1, -1], [1, 1]]) / 2 @ np.diag([2**0.4, 2**-0.4]) @ [[1, 1], [-1, 1]]),
        (labels(cos=-0.2, sin=0.6), np.array([[0.8, -0.6], [0.6, 0.8]])),
    ],
)
def test_a_smooth_image_is_changed_as_its_formula(done: Tensor, matrix: np.ndarray):
    """A wide Gaussian beside the middle of a large image: the result at p is the image at M^-1 p."""
    middle = (np.arange(128) + 0.5) - 64

    def bell(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp(-((x - 12) ** 2 + 2 * (y - 6) ** 2) / 2 / 12**2)

    x, y = np.meshgrid(middle, middle)
    back = np.linalg.inv(matrix) @ np.stack([x.ravel(), y.ravel()])
    found = augmented(torch.from_numpy(bell(x, y))[None, None].float(), done)[0, 0].numpy()
    inside = (slice(32, 96), slice(32, 96))  # nothing of the reflected border
    np.testing.assert_allclose(found[inside], bell(*back).reshape(128, 128)[inside], atol=6e-3)


def test_a_squeeze_is_a_stretch_along_the_other_axis():
    """So equal labels mean one change, whichever of the two was drawn."""
    torch.manual_seed(0)
    drawn = Augmentation(1.0).draw(1000, torch.device("cpu"))
    assert drawn.shape == (1000, LABELS)
    torch.testing.assert_close((drawn[:, 3] + 1) ** 2 + drawn[:, 4] ** 2, torch.ones(1000))
    squeezed = torch.rot90(augmented(SQUARE.rot90(1, (2, 3)), labels(along_x=-1.5)), -1, (2, 3))
    torch.testing.assert_close(augmented(SQUARE, labels(along_x=1.5)), squeezed, rtol=0, atol=1e-5)


@pytest.mark.parametrize("flips", [False, True])
def test_changes_are_as_likely_as_they_are_said_to_be(flips: bool):
    torch.manual_seed(0)
    drawn = Augmentation(0.12, flips).draw(100_000, torch.device("cpu"))
    shares = (drawn != 0).float().mean(0).tolist()
    half = 0.5 if flips else 0
    assert shares == pytest.approx([half, 0.12 * half, *[0.12] * 4, 0.06, 0.12, 0.12], abs=0.005)
    together = ((drawn[:, 7] != 0) & (drawn[:, 2] != 0)).float().mean()
    assert float(together) == pytest.approx(0.12**2, abs=0.002)
    for column in (2, 7, 8):
        assert float(drawn[:, column][drawn[:, column] != 0].std()) == pytest.approx(1, abs=0.03)
    amount = drawn[:, 5:7].norm(dim=1)
    assert float(amount[amount > 0].square().mean()) == pytest.approx(1, abs=0.05)


def test_a_probability_out_of_range_is_refused():
    with pytest.raises(Refused, match=r"probability must be between 0 and 1, not 1.5"):
        Augmentation(1.5)


def test_the_network_sees_labels_in_training_alone():
    net = build_network(config("train", *TINY, "augment.probability=0.5"), ImageKind("any", 1, 8, 8, []))
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) / 10)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0])
    plain = net(x, t)
    use_labels(net, torch.zeros(2, LABELS))
    assert torch.equal(net(x, t), plain)
    use_labels(net, torch.eye(2, LABELS))
    told = net(x, t)
    assert (told - plain).abs().flatten(1).amax(1).min() > 1e-4
    assert torch.equal(net.eval()(x, t), plain)


def test_a_classifier_is_not_told():
    with pytest.raises(UsageError, match="augment.probability is of denoisers"):
        build_network(config("train", "method=classifier", "augment.probability=0.1"), ImageKind("x", 1, 8, 8, ["a"]))


def test_a_run_goes_on_in_parts_and_is_exported_and_begun_from(tmp_path):
    words = [*TINY, "augment.probability=0.5", "optim.decay=none", "grad_accumulation=2"]
    assert diffuse("train", *words, "name=whole", cwd=tmp_path).returncode == 0
    for steps in (3, 6):
        more = [f"steps={steps}", "name=parts"]
        assert diffuse("train", *words, *more, cwd=tmp_path).returncode == 0
    one, other = (newest(tmp_path / "outputs" / name) for name in ("whole", "parts"))
    for name in ("model", "ema", "optimizer"):
        assert_same(one[name], other[name], name)
    weight = one["model"]["embed_augmentation.weight"]
    assert weight.abs().max() > 0
    done = diffuse("export", "ckpt=outputs/whole", "out=theirs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours, theirs = (load(str(tmp_path / name), Device("cpu", "float32")).net for name in ("outputs/whole", "theirs"))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0])
    assert torch.equal(ours(x, t), theirs(x, t))
    for name, more in (("without", []), ("again", ["augment.probability=0.1"])):
        done = diffuse("train", *TINY, *more, "init.ckpt=whole", "steps=1", f"name={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert ("embed_augmentation.weight" in newest(tmp_path / "outputs/again")["model"]) is True
    assert ("embed_augmentation.weight" in newest(tmp_path / "outputs/without")["model"]) is False
