"""The noise of a training step: chosen among candidates, and perturbed on the input alone."""

import pytest
import torch
from torch import Tensor

from diffuse.data.images import ImageKind
from diffuse.mathematics import losses, predictions
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.tables import linear
from diffuse.mathematics.training_noise import NORMAL, TrainingNoise
from diffuse.options.formulas import Formulas
from diffuse.system.errors import Refused, UsageError
from tests.support.commands import config

X0 = torch.linspace(-1, 1, 400).reshape(100, 1, 2, 2)
T = torch.arange(1, 101) * 10


def drawn(noise: TrainingNoise, x0: Tensor = X0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return noise.draw(x0, T[: len(x0)], linear())


def test_usual_noise_is_torchs_own():
    x0, noise = drawn(NORMAL)
    torch.manual_seed(3)
    assert torch.equal(noise, torch.randn_like(X0))
    assert x0 is X0
    assert NORMAL.is_usual


def test_of_several_noises_the_nearest_to_the_image_is_taken():
    """Each image's own: found again one by one."""
    _, noise = drawn(TrainingNoise(nearest=4))
    torch.manual_seed(3)
    candidates = torch.randn(4, *X0.shape)
    for image, chosen, offered in zip(X0, noise, candidates.transpose(0, 1), strict=True):
        distances = [float(((image - each) ** 2).sum()) for each in offered]
        assert torch.equal(chosen, offered[distances.index(min(distances))])
    assert len({int(place) for place in (noise == candidates).flatten(2).all(2).int().argmax(0)}) == 4


def test_a_perturbation_is_on_the_input_and_not_to_be_predicted():
    """Ning et al. 2023, algorithm 1: the squared error of eps from a network that sees x_t with more noise."""
    schedule, gamma = linear(), 0.3
    x0, noise = drawn(TrainingNoise(perturbation=gamma))
    torch.manual_seed(3)
    eps, xi = torch.randn_like(X0), torch.randn_like(X0)
    assert torch.equal(noise, eps)

    def net(x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.sin(2 * x)

    found = losses.simple(Denoiser(net, schedule, predictions.eps), x0, T, noise)
    alpha_bar = schedule.alpha_bar[T].reshape(-1, 1, 1, 1).float()
    perturbed = alpha_bar.sqrt() * X0 + (1 - alpha_bar).sqrt() * (eps + gamma * xi)
    torch.testing.assert_close(found, ((eps - net(perturbed, T)) ** 2).flatten(1).mean(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["noise.nearest=4", "loss=vlb"], "noise.nearest and noise.perturbation are of loss=simple, and loss=vlb"),
        (["noise.nearest=2", "method=classifier"], "and loss=cross_entropy needs normal noise"),
        (["noise.perturbation=0.1", "loss=hybrid"], "and loss=hybrid needs normal noise"),
        (["noise.perturbation=0.1", "prediction=v"], "prediction=v does not predict noise: set prediction=eps"),
        (["noise.perturbation=0.1", "method=edm"], "prediction=edm does not predict noise"),
        (["loss=consistency"], "loss=consistency compares times .* choose schedule=edm"),
        (["method=ect", "weight=min_snr"], "weight is not used by loss=consistency"),
        (["method=ect", "loss.closeness=1"], "loss.closeness must be above 1, not 1"),
    ],
)
def test_what_cannot_be_trained_together_is_refused(words: list[str], message: str):
    with pytest.raises(UsageError, match=message):
        Formulas.of(config("train", *words), ImageKind("bytes", 1, 8, 8, ["a", "b"]))


@pytest.mark.parametrize("options", [{"nearest": 0}, {"perturbation": -0.1}, {"perturbation": 1.0}])
def test_impossible_noise_is_refused(options: dict):
    with pytest.raises(Refused, match=f"{next(iter(options))} must be"):
        TrainingNoise(**options)
