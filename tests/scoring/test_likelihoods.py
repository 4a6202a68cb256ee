"""The scores of `diffuse eval` against the core and against what is known exactly."""

import math

import numpy as np
import pytest
import torch

from diffuse.mathematics import ode
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.likelihood import discretised_gaussian
from diffuse.mathematics.tables import linear
from diffuse.runs.trained import load, load_for
from diffuse.scoring.likelihood_part import LikelihoodPart
from diffuse.scoring.likelihoods import Moments, ScoredImages
from diffuse.system.errors import UsageError
from diffuse.system.randomness import generator
from tests.support.commands import FAST, config
from tests.support.running import scored, trained


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_gaussians_own_density_stands_beside_the_scores(gaussian_run):
    """-log N(x; mean, std) of the test images in bits/dim; the ODE with its exact divergence and its estimate agree."""
    scores = [
        scored(gaussian_run, "ode.solver=heun", "ode.steps=2", "n=2", *words)["bits_per_dim"]
        for words in (["ode.divergence=exact"], ["ode.probes=60", "metrics=[ode]"])
    ]
    assert set(scores[0]) == {"bound", "ode", "exact"}
    typed = load(str(gaussian_run)).config.dataset
    mean, std = (np.array(typed[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    rows = generator(0, "test order").permutation(typed["test_count"])[:2]
    normal = generator("gaussian", "test").standard_normal((typed["test_count"], 3, 8, 8), dtype=np.float32)[rows]
    nats = (0.5 * normal.astype(float) ** 2 + np.log(std) + 0.5 * np.log(2 * np.pi)).sum((1, 2, 3))
    bits = nats / normal[0].size / np.log(2)
    assert (mean.shape, scores[0]["exact"]["total"]) == ((3, 1, 1), pytest.approx(bits.mean(), rel=1e-4))
    assert scores[1]["ode"]["total"] == pytest.approx(scores[0]["ode"]["total"], rel=0.01)


def test_a_pixels_bin_is_part_of_the_likelihood(tiny_run):
    """The density of x + u in units of bins 2 / 255 wide: log 127.5 nats more for each dimension, and u is uniform."""
    typed = config("eval", f"ckpt={tiny_run}", "metrics=[ode]", "n=2", *FAST)
    scoring = LikelihoodPart(typed, load_for(typed))
    images = ScoredImages(scoring.network, 2, 0)
    x0, _ = images.batch(images.order)
    spread, log_q = scoring.scores["ode"].dequantise(x0, images.noise("dequantise", images.order))
    assert log_q.tolist() == pytest.approx([64 * math.log(127.5)] * 2)
    offset = ((spread - x0) * 127.5).abs()
    assert offset.max() <= 0.5 + 1e-4
    assert offset.mean().item() == pytest.approx(0.25, abs=0.05)


def test_a_border_is_no_data_for_the_flow():
    """A network that knows that the border is black pays nothing for it: its density is the noise's own."""
    run = trained("framed", "dataset.pad=2", "unet.channel_mult=[1,1]")
    typed = config("eval", f"ckpt={run}", "metrics=[ode]", "n=2", *FAST)
    scoring = LikelihoodPart(typed, load_for(typed))
    images = ScoredImages(scoring.network, 2, 0)
    x0, _ = images.batch(images.order)
    spread, log_q = scoring.scores["ode"].dequantise(x0, images.noise("dequantise", images.order))
    rho = math.sqrt(1e-4 / (1 - 1e-4))
    border = torch.ones(12, 12, dtype=torch.bool)
    border[2:10, 2:10] = False
    of_border = torch.distributions.Normal(-1.0, rho).log_prob(spread[..., border].double()).sum((1, 2))
    torch.testing.assert_close(log_q, of_border + 64 * math.log(127.5), rtol=1e-4, atol=0)


def test_a_border_is_no_data_for_the_bound():
    """L_0 is about the 64 pixels inside, whatever the network says of the others."""
    run = trained("framed", "dataset.pad=2", "unet.channel_mult=[1,1]")
    decoder = load(str(run)).formulas.decoder
    x0, mean, variance = torch.rand(3, 2, 1, 12, 12).double() - 0.5
    inside = (slice(None), slice(None), slice(2, 10), slice(2, 10))
    expected = discretised_gaussian(x0[inside], mean[inside], 0.1 + variance.abs()[inside])
    torch.testing.assert_close(decoder(x0, mean, 0.1 + variance.abs()), expected)
    torch.testing.assert_close(
        decoder(x0, mean, torch.tensor(0.1)), discretised_gaussian(x0[inside], mean[inside], torch.tensor(0.1))
    )


def test_the_memory_of_a_score_does_not_grow_with_the_images():
    """Running moments against numpy, and nothing kept that has a row for each image."""
    rows = generator(0, "rows").standard_normal((1000, 7)) + 100
    together, apart = Moments(), Moments()
    together.add(rows)
    for part in np.array_split(rows, 13):
        apart.add(part)
    np.testing.assert_allclose(together.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(together.standard_error, rows.std(0, ddof=1) / math.sqrt(1000), rtol=1e-9)
    assert (apart.mean == together.mean).all()
    assert all(np.size(value) <= 7 for value in vars(apart).values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["metrics=[fud]"], "metrics must be one of bound, ode"),
        (["metrics=[]"], "metrics must be a list of bound, ode"),
        (["ode.t_min=0"], "ode.t_min must be at least 1, the smallest time that the network was trained at"),
        (["ode.solver=euler"], "ode.solver must be one of rk45, rk4, heun"),
        (["ode.tolerance=0"], "ode.tolerance must be between 0 and 1"),
        (["ode.probes=0"], "ode.probes must be at least 1"),
        (["ode.divergence=trace"], "ode.divergence must be one of hutchinson, exact"),
    ],
)
def test_impossible_scores_are_refused(tiny_run, words, message):
    with pytest.raises(UsageError, match=message):
        scored(tiny_run, *words)


def test_the_likelihood_of_bytes_is_the_cores_density_less_that_of_the_noise(tiny_run):
    """-log P = -log p(x + u) - 64 log(2 / 255), with the core's density of the images that were scored."""
    found = scored(tiny_run, "metrics=[ode]", "ode.solver=heun", "ode.steps=3")["bits_per_dim"]["ode"]["total"]
    typed = config("eval", f"ckpt={tiny_run}", "metrics=[ode]", "n=4", *FAST)
    images = ScoredImages(load_for(typed), 4, 0)
    x0, _ = images.batch(images.order)
    uniform = torch.special.ndtr(images.noise("dequantise", images.order)(x0)) - 0.5
    signs = torch.where(images.noise("hutchinson", images.order)(x0) < 0, -1.0, 1.0)
    network = Denoiser(load(str(tiny_run)).net, linear())
    solved = ode.log_likelihood(
        network, x0 + uniform / 127.5, solver=ode.heun, divergence=ode.hutchinson(signs), steps=3
    )
    nats = -solved.log_density - 64 * math.log(2 / 255)
    assert found == pytest.approx(nats.mean().item() / 64 / math.log(2), rel=1e-4)
