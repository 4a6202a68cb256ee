"""Pictures, pixel by pixel."""

import pytest
import torch
from torchvision.utils import make_grid

from diffuse.runs.pictures import BETWEEN, GREY, image_grid, tiled


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "columns"), [(1, 1), (1, 4), (2, 4), (6, 3), (7, 3), (5, 1)])
def test_a_grid_is_that_of_torchvision(channels, n, columns):
    images = torch.randint(0, 256, (n, channels, 5, 7), dtype=torch.uint8)
    expected = make_grid(images, nrow=columns, padding=BETWEEN, pad_value=GREY)
    assert torch.equal(tiled(images, columns), expected.expand(3, -1, -1))


def test_small_images_are_enlarged():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    grid = image_grid(images)
    assert grid.shape == (3, 2 * 50 + 2, 2 * 50 + 2)
    assert torch.equal(grid[:, 2:50:6, 2:50:6], images[0])


def test_rectangles_are_enlarged_by_their_shorter_side_and_the_grid_stays_about_square():
    images = torch.randint(0, 256, (8, 3, 8, 16), dtype=torch.uint8)
    grid = image_grid(images)
    assert grid.shape == (3, 4 * 50 + 2, 2 * 98 + 2)
    assert torch.equal(grid[:, 52:100:6, 100:196:6], images[3])
    assert image_grid(images[:1, :, :2, :].repeat(1, 1, 1, 100)).shape == (3, 2, 1600)  # long enough already


@pytest.mark.parametrize(("channels", "shown"), [(2, 2), (4, 4), (11, 8)])
def test_channels_that_are_no_colours_are_shown_side_by_side(channels, shown):
    images = torch.randint(0, 256, (3, channels, 8, 8), dtype=torch.uint8)
    grid = image_grid(images, columns=1)
    assert grid.shape == (3, 3 * 50 + 2, 2 + shown * 49 - 1 + 2)
    for channel in range(shown):
        left = 2 + 49 * channel
        assert torch.equal(grid[1, 52:100:6, left : left + 48 : 6], images[1, channel])
    assert (grid[:, 2:-2, 2 + 48] == GREY).all()
