"""The classifier's network: the half of a U-Net, which is tested there, and ADM's attention pooling."""

import math

import pytest
import torch

from diffuse.networks.blocks import AttentionPool
from diffuse.networks.classifier import Classifier
from diffuse.networks.unet import UNet
from diffuse.system.errors import Refused
from tests.networks.test_unet import inputs, randomise

SIZES = {"channels": 16, "channel_mult": [1, 2], "blocks": 1, "attention": [4], "groups": 4}
ADM = {"embedding": "cos_sin", "norm_eps": 1e-5, "padding": "symmetric", "scale_shift": True, "resample": "residual"}
BOTH = pytest.mark.parametrize("options", [{}, {**ADM, "head_channels": 8}], ids=["ddpm", "adm"])


def small(**options) -> Classifier:
    """A network moved away from its start."""
    torch.manual_seed(0)
    net = Classifier(8, 3, **{**SIZES, "num_classes": 5, **options}).eval()
    randomise(net)
    return net


@BOTH
def test_there_is_a_logit_for_each_class_of_each_image(options):
    net, (x, time) = small(**options), inputs()
    assert net(x, time).shape == (2, 5)
    torch.testing.assert_close(net(x, time)[1:], net(x[1:], time[1:]))


@BOTH
def test_its_way_down_is_a_unets(options):
    """With a U-Net's weights it computes what that U-Net does down to the middle: the same names, the same order."""
    net, unet = small(**options), UNet(8, 3, **SIZES, **options)
    randomise(unet)
    shared = {"embed_time", "stem", "down", "middle"}
    weights = {name: value for name, value in unet.state_dict().items() if name.partition(".")[0] in shared}
    missing = net.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert {name.partition(".")[0] for name in missing.missing_keys} == {"norm", "pool"}
    found = []
    for each in (net, unet):
        each.middle.register_forward_hook(lambda module, inputs, output: found.append(output))
        each(*inputs())
    assert torch.equal(*found)


def pooled_as_adm_does(x: torch.Tensor, pool: AttentionPool) -> torch.Tensor:
    """AttentionPool2d of ADM's code, with its names: the mean first, the roots of the scale on q and k each."""
    b, c, *_ = x.shape
    x = x.reshape(b, c, -1)
    x = torch.cat([x.mean(dim=-1, keepdim=True), x], dim=-1)
    x = x + pool.place.T[None]
    qkv = torch.einsum("oc,bcl->bol", pool.qkv.weight, x) + pool.qkv.bias[:, None]
    heads, length = pool.heads, x.shape[-1]
    q, k, v = qkv.chunk(3, dim=1)
    width = c // heads
    scale = 1 / math.sqrt(math.sqrt(width))
    q, k = ((each * scale).reshape(b * heads, width, length) for each in (q, k))
    weight = torch.softmax(torch.einsum("bct,bcs->bts", q, k), dim=-1)
    a = torch.einsum("bts,bcs->bct", weight, v.reshape(b * heads, width, length)).reshape(b, -1, length)
    return (torch.einsum("oc,bcl->bol", pool.out.weight, a) + pool.out.bias[:, None])[:, :, 0]


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_pooling_is_adms(heads):
    torch.manual_seed(1)
    pool = AttentionPool(9, 8, 7, heads).double()
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, 8, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(pool(x), pooled_as_adm_does(x, pool), rtol=1e-10, atol=1e-10)


def test_adms_classifier_has_its_shapes():
    """64 x 64: width 128, four blocks a level, heads 64 wide; pooling over 8 x 8 pixels of 512 channels."""
    with torch.device("meta"):
        sizes = {"channels": 128, "channel_mult": [1, 2, 3, 4], "blocks": 4, "attention": [32, 16, 8]}
        net = Classifier(64, 3, **sizes, **ADM, head_channels=64, num_classes=1000)
    assert len(net.down) == 4 * 4 + 3
    assert net.pool.place.shape == (8 * 8 + 1, 512)
    assert (net.pool.qkv.weight.shape, net.pool.out.weight.shape) == ((3 * 512, 512), (1000, 512))
    assert net.pool.heads == 8


@BOTH
def test_gradients_reach_every_parameter_and_every_pixel(options):
    net, (x, time) = small(**options), inputs()
    net.double()
    x = x.double().requires_grad_()
    net(x, time).log_softmax(1)[:, 1].sum().backward()
    # The bias of attention's keys moves nothing but by rounding: softmax forgets it.
    assert [name for name, weight in net.named_parameters() if not weight.grad.abs().max() > 1e-12] == []
    assert (x.grad != 0).all()


@BOTH
def test_the_time_matters(options):
    net, (x, time) = small(**options), inputs()
    assert ((net(x, time) - net(x, time + 1)).abs().amax(1) > 1e-4).all()


def test_places_matter():
    """A picture turned around has other logits: pooling knows where a pixel is."""
    pool = small().pool
    x = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    assert ((pool(x) - pool(x.flip(-1))).abs().amax(1) > 1e-4).all()


def test_what_does_not_fit_is_refused_by_name():
    for option, options in [("channel_mult", {"channel_mult": [1, 1, 1, 1, 1]}), ("heads", {"heads": 3})]:
        with pytest.raises(Refused, match=rf"^{option} "):
            small(**options)
    with pytest.raises(Refused, match="y must be None: a classifier is not told the label"):
        small()(*inputs(), torch.tensor([0, 1]))
