"""Drawing from a trained network: from each image's noise, or from given images at a given time."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from diffuse.data.conditions import Condition
from diffuse.mathematics.samplers.ddim import ddim
from diffuse.runs.drawing import Drawing, drawing_of
from diffuse.runs.trained import load_for
from diffuse.system.randomness import ImageNoise
from tests.support.commands import FAST, config


@pytest.fixture
def drawing(conditional_run) -> Drawing:
    typed = config("sample", f"ckpt={conditional_run}", "sampler=ddim", "sampler.steps=5", *FAST)
    return drawing_of(load_for(typed), typed)


def test_images_begin_as_their_own_noise(drawing):
    noise = ImageNoise(drawing.seed, "sample", range(3))(torch.empty(3, 1, 8, 8))
    torch.testing.assert_close(drawing.draw(range(3)), drawing.draw(range(3), x=noise), rtol=0, atol=0)


def test_given_images_are_walked_down_from_their_time(drawing):
    x, seen = torch.randn(4, 1, 8, 8), []
    drawn = drawing.draw(range(4), seen.append, x=x, start=500.5)
    grid = drawing.sampler.times
    times = torch.tensor([500.5, *(t for t in grid.tolist() if t < 500.5)], dtype=torch.float64)
    expected = list(ddim(drawing.denoiser, x, times, torch.tensor([0, 1, 2, 3])))
    assert len(seen) == len(expected) == len(times) - 1 < len(grid) - 1
    torch.testing.assert_close(drawn, expected[-1], rtol=0, atol=0)


def test_images_are_drawn_of_the_condition(drawing):
    assert drawing.condition == Condition(drawing.condition.classes, dropout=0.1, drawn=None)
    x = torch.randn(2, 1, 8, 8)
    (first, second), (again, other) = (drawing.draw(images, x=x) for images in (range(2), [0, 7]))
    assert torch.equal(first, again)
    assert not torch.equal(second, other)


def test_a_device_that_runs_ahead_draws_the_next_batch_first(tiny_run):
    """The same images in the same order, each batch given when the one after it is drawn."""
    typed = config("sample", f"ckpt={tiny_run}", "sampler=ddim", "sampler.steps=2", *FAST)
    drawing = drawing_of(load_for(typed), typed)
    expected = [(list(numbers), pixels) for numbers, pixels in drawing.batches(150, batch_size=64)]
    kind = type("Asynchronous", (type(drawing.device),), {"asynchronous": True})
    ahead = replace(drawing, device=kind("cpu", "float32"), evaluated=Counter())
    drawn = []
    for number, (numbers, pixels) in enumerate(ahead.batches(150, batch_size=64)):
        drawn.append(ahead.evaluated["images"])
        assert list(numbers) == expected[number][0]
        assert torch.equal(pixels, expected[number][1])
    assert drawn == [128, 150, 150]
