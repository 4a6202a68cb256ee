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


def test_small_images_are_enlarged_and_of_many_channels_three_are_shown():
    images = torch.randint(0, 256, (4, 5, 8, 8), dtype=torch.uint8)
    grid = image_grid(images)
    assert grid.shape == (3, 2 * 50 + 2, 2 * 50 + 2)
    assert torch.equal(grid[:, 2:50:6, 2:50:6], images[0, :3])
    assert torch.equal(image_grid(images[:, :2])[0], image_grid(images[:, :1])[2])
