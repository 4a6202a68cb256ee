"""A whole train and eval on data whose answers are known: the bound of the trained network against the exact one."""

import json
import math

import pytest
import torch

from diffuse.commands import eval as evaluation
from diffuse.commands import train
from diffuse.mathematics.oracles import Gaussian
from diffuse.mathematics.spacings import time_grid
from diffuse.mathematics.tables import linear
from diffuse.mathematics.variances import reverse_steps
from tests.support.commands import config, output
from tests.support.gaussian import MEAN, STD, column


@pytest.mark.slow
def test_a_trained_network_comes_close_to_the_best_bound(tmp_path, monkeypatch):
    """The best denoiser's bound is a closed form; a network of a minute's training is above it, and not by much."""
    monkeypatch.chdir(tmp_path)
    train.run(config("train", "dataset=gaussian", "name=g", "images.every=1000"), output())
    typed = config("eval", "ckpt=outputs/g", "name=e", "n=128", "levels=100", "variance=fixed_small", "metrics=[bound]")
    found = evaluation.run(typed, output())["bound"]
    error = json.loads((tmp_path / "outputs/g/eval/e/eval.json").read_text())["bits_per_dim"]["bound"]["standard_error"]
    steps = reverse_steps(linear(), time_grid(linear(), 100))
    terms = Gaussian(column(MEAN), column(STD)).bound_terms(linear(), steps, [step.small for step in steps])
    best = torch.mean(terms.sum(0)).item() / math.log(2)
    assert best - 3 * error < found < best + 0.3
