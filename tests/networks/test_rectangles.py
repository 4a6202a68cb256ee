"""Networks of images that are no squares: height and width change places when images and kernels are transposed."""

import pytest
import torch
from torch import nn

from diffuse.networks.classifier import Classifier
from diffuse.networks.unet import UNet
from diffuse.system.errors import Refused

OPTIONS = {
    "paper": {"attention": [4]},
    "adm": {"attention": [8, 4], "padding": "symmetric", "scale_shift": True, "resample": "residual", "heads": 2},
}
NETWORK = {"channels": 16, "channel_mult": [1, 2, 2], "blocks": 1, "groups": 4}
SIZE = (8, 20)


def randomised(net: nn.Module) -> nn.Module:
    """No weight is zero, so that every part counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return net.double().eval()


def transposed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the same network for transposed images: kernels are transposed."""
    return {name: value.transpose(2, 3) if value.ndim == 4 else value for name, value in state.items()}


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, *SIZE, dtype=torch.float64, generator=generator), torch.tensor([3.0, 700.0]).double()


@pytest.mark.parametrize("options", OPTIONS)
def test_a_transposed_image_gives_the_transposed_output(options):
    lying = randomised(UNet(SIZE, 3, **NETWORK, **OPTIONS[options]))
    standing = UNet(SIZE[::-1], 3, **NETWORK, **OPTIONS[options]).double().eval()
    standing.load_state_dict(transposed(lying.state_dict()))
    x, t = inputs()
    with torch.no_grad():
        found, expected = standing(x.transpose(2, 3), t).transpose(2, 3), lying(x, t)
        crossed = lying(x.transpose(2, 3), t).transpose(2, 3)
    assert found.shape == x.shape
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert (crossed - expected).abs().max() > 0.1  # without transposed kernels it is another one


def test_a_classifier_of_rectangles_has_a_place_for_each_pixel():
    lying = randomised(Classifier(SIZE, 3, num_classes=4, **NETWORK, attention=[4]))
    standing = Classifier(SIZE[::-1], 3, num_classes=4, **NETWORK, attention=[4]).double().eval()
    state = transposed(lying.state_dict())
    mean, places = state["pool.place"][:1], state["pool.place"][1:]
    width = places.shape[1]
    state["pool.place"] = torch.cat([mean, places.reshape(2, 5, width).transpose(0, 1).reshape(10, width)])
    standing.load_state_dict(state)
    x, t = inputs()
    with torch.no_grad():
        torch.testing.assert_close(standing(x.transpose(2, 3), t), lying(x, t), rtol=1e-12, atol=1e-12)


def test_attention_is_where_the_shorter_side_is_of_that_size():
    def with_attention(size, attention: list[int]) -> int:
        net = UNet(size, 3, **NETWORK, attention=attention)
        return sum("qkv.weight" in name for name, _ in net.named_parameters())

    middle = with_attention(SIZE, [])
    assert with_attention(SIZE, [20]) == with_attention(SIZE, [10]) == middle
    assert with_attention(SIZE, [4]) == with_attention((16, 8), [4]) == with_attention(8, [4]) == middle + 3


@pytest.mark.parametrize(("size", "message"), [((8, 18), "they are 8 x 18"), ([10, 8], "they are 10 x 8")])
def test_both_sides_have_to_halve(size, message):
    with pytest.raises(Refused, match=f"channel_mult has 3 levels.* divisible by 4; {message}"):
        UNet(size, 3, **NETWORK, attention=[])


@pytest.mark.parametrize("size", [[8], [8, 8, 8], "88", 8.0, [8, True], None])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(Refused, match=r"image_size must be a number or \[height,width\]"):
        UNet(size, 3, **NETWORK, attention=[])
