"""The network: against diffusers' own implementation of the published ones, and by what each option must do."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention as DiffusersAttention

from diffuse.networks.blocks import Attention, ResidualBlock, Stage, doubled
from diffuse.networks.time_features import CosSin, Fourier, SinCos
from diffuse.networks.unet import UNet

# The published networks, in our options and in diffusers': Ho et al. 2020 on CIFAR-10 (google/ddpm-cifar10-32 on the
# Hugging Face hub), and ADM, Dhariwal and Nichol 2021, on ImageNet at 64 x 64.
DDPM = {"channel_mult": [1, 2, 2, 2], "blocks": 2, "dropout": 0.1}
DIFFUSERS_DDPM = {
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,  # diffusers then pads one row and column of zeros at the right and bottom, by itself
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
    "dropout": 0.1,
}
ADM = {
    "channel_mult": [1, 2, 3, 4],
    "norm_eps": 1e-5,
    "embedding": "cos_sin",
    "padding": "symmetric",
    "scale_shift": True,
    "resample": "residual",
    "num_classes": 1000,
    "dropout": 0.1,
}
DIFFUSERS_ADM = {
    "down_block_types": ("ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3),
    "up_block_types": (*["AttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-5,
    "num_class_embeds": 1000,
    "dropout": 0.1,
}


def ddpm_pair(**changes) -> tuple[UNet, UNet2DModel]:
    """The DDPM network, ours and theirs, at a quarter of its width."""
    # Four channels a group, as in the full network: with one, the norm would cancel the time embedding.
    ours = {"channels": 32, "attention": [16], "groups": 8, **DDPM, **changes}
    theirs = UNet2DModel(32, **DIFFUSERS_DDPM, block_out_channels=(32, 64, 64, 64), norm_num_groups=8)
    return UNet(32, 3, **ours), theirs


def adm_pair(**changes) -> tuple[UNet, UNet2DModel]:
    """ADM's network, ours and theirs, at a sixth of its width and with one residual block fewer."""
    ours = {"channels": 32, "blocks": 2, "attention": [8, 4, 2], "head_channels": 16, "groups": 8, **ADM, **changes}
    theirs = UNet2DModel(
        16,
        **DIFFUSERS_ADM,
        layers_per_block=2,
        block_out_channels=(32, 64, 96, 128),
        attention_head_dim=16,
        norm_num_groups=8,
        attn_norm_num_groups=8,
    )
    return UNet(16, 3, **ours), theirs


PAIRS = {"ddpm": ddpm_pair, "adm": adm_pair}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomise(net: torch.nn.Module) -> None:
    """Moves every parameter, also those that start at zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)


def names_in_diffusers(net: UNet) -> dict[str, str]:
    """Our modules' names -> theirs."""
    names = {
        "stem": "conv_in",
        "embed_time.0": "time_embedding.linear_1",
        "embed_time.2": "time_embedding.linear_2",
        "middle.0": "mid_block.resnets.0",
        "middle.1": "mid_block.attentions.0",
        "middle.2": "mid_block.resnets.1",
        "norm": "conv_norm_out",
        "head": "conv_out",
    }
    if net.embed_label:
        names["embed_label"] = "class_embedding"
    # With two blocks a level has three stages: down, two blocks and what halves; up, three blocks, the last doubling.
    for side in ("down", "up"):
        for i, stage in enumerate(getattr(net, side)):
            level, j = divmod(i, 3)
            for k, part in enumerate(stage):
                if side == "down" and j == 2:
                    place = "downsamplers.0"
                elif k == 0:
                    place = f"resnets.{j}"
                else:
                    place = f"attentions.{j}" if isinstance(part, Attention) else "upsamplers.0"
                names[f"{side}.{i}.{k}"] = f"{side}_blocks.{level}.{place}"
    return names


def weights_for_diffusers(net: UNet) -> dict[str, torch.Tensor]:
    in_block = {"time": ["time_emb_proj"], "skip": ["conv_shortcut"]}
    in_attention = {"norm": ["group_norm"], "qkv": ["to_q", "to_k", "to_v"], "out": ["to_out.0"]}
    weights = {}
    for ours, theirs in names_in_diffusers(net).items():
        module = net.get_submodule(ours)
        attends = isinstance(module, Attention)
        for name, value in module.state_dict().items():
            part, _, leaf = name.rpartition(".")
            parts = (in_attention if attends else in_block).get(part, [part])
            for their_part, piece in zip(parts, value.chunk(len(parts)), strict=True):
                # Attention's 1 x 1 convolutions are linear layers there.
                piece = piece.reshape(piece.shape[:2]) if attends else piece
                weights[".".join(filter(None, [theirs, their_part, leaf]))] = piece
    return weights


def assert_equal_to_diffusers(net: UNet, theirs: UNet2DModel, training: bool = False) -> None:
    randomise(net)
    theirs.load_state_dict(weights_for_diffusers(net), strict=True)
    net.double().train(training)
    theirs.double().train(training)

    size = theirs.config.sample_size
    x = torch.randn(4, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([0, 1, 500, 999])
    labels = torch.tensor([0, 7, 500, 999]) if net.embed_label else None

    def take_ours(module, inputs, features):
        """Frequencies rounded to float32 in two ways differ visibly at 999: past this check both go on with ours."""
        torch.testing.assert_close(features.double(), net.features(time), rtol=0, atol=2e-4)
        return net.features(time)

    theirs.time_proj.register_forward_hook(take_ours)
    # Dropout draws in the order of memory, which their attention changes.
    for module in theirs.modules():
        if isinstance(module, DiffusersAttention):
            module.register_forward_hook(lambda module, inputs, output: output.contiguous())

    with torch.no_grad():
        torch.manual_seed(2)  # both drop the same
        expected = theirs(x, time, labels).sample
        torch.manual_seed(2)
        torch.testing.assert_close(net(x, time, labels), expected, rtol=1e-10, atol=1e-10)


def count(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_base_is_as_large_as_the_papers():
    """35.7 million parameters: Ho et al. 2020, appendix B."""
    with torch.device("meta"):
        net = UNet(32, 3, channels=128, attention=[16], **DDPM)
        theirs = UNet2DModel(32, **DIFFUSERS_DDPM, block_out_channels=(128, 256, 256, 256))
    assert count(net) == count(theirs) == 35_746_307


def test_large_is_as_large_as_the_papers():
    """296 million parameters: Dhariwal and Nichol 2021, on ImageNet at 64 x 64."""
    with torch.device("meta"):
        net = UNet(64, 3, channels=192, blocks=3, attention=[32, 16, 8], head_channels=64, **ADM)
        theirs = UNet2DModel(
            64,
            **DIFFUSERS_ADM,
            layers_per_block=3,
            block_out_channels=(192, 384, 576, 768),
            attention_head_dim=64,
            attn_norm_num_groups=32,
        )
    assert count(net) == count(theirs)
    assert round(count(net) / 1e6, 1) == 295.9


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("pair", PAIRS)
def test_equal_to_diffusers(pair, training):
    assert_equal_to_diffusers(*PAIRS[pair](), training)


@pytest.mark.parametrize(
    ("pair", "change"),
    [
        ("ddpm", {"padding": "symmetric"}),
        ("ddpm", {"embedding": "cos_sin"}),
        ("ddpm", {"norm_eps": 1e-5}),
        ("ddpm", {"heads": 2}),
        ("adm", {"embedding": "sin_cos"}),
        ("adm", {"norm_eps": 1e-6}),
        ("adm", {"head_channels": 32}),
    ],
)
def test_each_convention_matters(pair, change):
    """The comparison above notices each of them: these keep the parameters' names and shapes, so they load."""
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_equal_to_diffusers(*PAIRS[pair](**change))


def test_dropout_matters():
    """Half the probability is noticed in training, and not in evaluation."""
    assert_equal_to_diffusers(*ddpm_pair(dropout=0.05))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_equal_to_diffusers(*ddpm_pair(dropout=0.05), training=True)


def test_time_features_are_the_formulas():
    time, half = np.array([0, 1, 2.5, 999]), np.arange(8)
    angles = time[:, None] * 10000 ** (-half / 7)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(SinCos(16)(torch.tensor(time)), expected, atol=2e-4)  # angles near 1000, in float32
    angles = time[:, None] * 10000 ** (-half / 8)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(CosSin(16)(torch.tensor(time)), expected, atol=2e-4)


def test_fourier_features():
    features = Fourier(20_000)
    w = features.frequencies.double()
    assert abs(w.mean() / (2 * np.pi)) < 0.05  # five standard errors of 10 000 draws from N(0, 1)
    assert abs(w.std() / (2 * np.pi) - 1) < 0.035
    time = torch.tensor([-4.5, 0, 0.3, 2])
    angles = w * time[:, None].double()
    torch.testing.assert_close(features(time).double(), torch.cat([angles.sin(), angles.cos()], 1), rtol=0, atol=1e-4)
    assert features(time).abs().max() <= 1


def small(**changes) -> UNet:
    """A network small enough for anything, moved away from its start."""
    options = {"channels": 16, "channel_mult": [1, 2], "blocks": 1, "attention": [4], "groups": 4, **changes}
    net = UNet(options.pop("image_size", 8), options.pop("image_channels", 3), **options).eval()
    randomise(net)
    return net


def inputs(image_channels: int = 3, image_size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images and their times."""
    x = torch.randn(2, image_channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([3.0, 700.0])


def test_random_frequencies_are_saved():
    """Those drawn once come back with the weights; those that follow from a formula need not be stored."""
    saved, other = small(embedding="fourier", time_scale=0.016), small(embedding="fourier", time_scale=0.016)
    assert not torch.equal(saved(*inputs()), other(*inputs()))
    other.load_state_dict(saved.state_dict())
    assert torch.equal(saved(*inputs()), other(*inputs()))
    assert "features.frequencies" not in small().state_dict()


def test_time_scale_multiplies_time():
    x, time = inputs()
    scaled = small(time_scale=0.5)
    torch.manual_seed(0)  # the same weights again
    torch.testing.assert_close(scaled(x, time), small()(x, 0.5 * time), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"scale_shift": True, "resample": "residual"}])
def test_fresh_network_outputs_zero(options):
    net = UNet(8, 3, channels=16, channel_mult=[1, 2], blocks=1, attention=[4], groups=4, **options)
    assert torch.equal(net(*inputs()), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("options", [{}, {"scale_shift": True, "resample": "residual"}])
def test_gradients_reach_every_parameter(options):
    """At first only the head learns, then what ends a residual branch and all outside them, then everything."""
    net = UNet(8, 3, channels=16, channel_mult=[1, 2], blocks=1, attention=[4], groups=4, num_classes=3, **options)
    net.double()
    x, time = inputs()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    learning = []
    for _ in range(3):
        optimiser.zero_grad()
        (net(x.double(), time, torch.tensor([0, 2])) - x).square().mean().backward()
        # A threshold, because the bias of attention's keys moves nothing but by rounding: softmax forgets it.
        learning.append({name for name, p in net.named_parameters() if p.grad.abs().max() > 1e-12})
        optimiser.step()
    every = {name for name, _ in net.named_parameters()}
    inside = ("norm1", "conv1", "time", "norm2", "qkv", "norm", "embed_time", "embed_label")
    outside = {"norm.weight", "norm.bias"}
    assert learning[0] == {"head.weight", "head.bias"}
    assert learning[1] == outside | {name for name in every if not set(inside) & set(name.split("."))}
    assert learning[2] == every


@pytest.mark.parametrize("image_channels", [1, 2, 3, 5])
@pytest.mark.parametrize("learned_variance", [False, True])
def test_output_channels(image_channels, learned_variance):
    net = small(image_channels=image_channels, learned_variance=learned_variance)
    x, time = inputs(image_channels)
    assert net(x, time).shape == (2, image_channels * (2 if learned_variance else 1), 8, 8)


@pytest.mark.parametrize("resample", ["strided", "residual"])
@pytest.mark.parametrize("padding", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("image_size", [8, 16, 28])
def test_image_sizes(image_size, padding, resample):
    """With three levels: 28, 14 and 7."""
    net = small(image_size=image_size, channel_mult=[1, 2, 2], padding=padding, resample=resample)
    x, time = inputs(image_size=image_size)
    assert net(x, time).shape == x.shape


@pytest.mark.parametrize(
    "options",
    [
        {"scale_shift": True},
        {"resample": "residual"},
        {"heads": 2},
        {"head_channels": 16},
        {"padding": "symmetric"},
        {"embedding": "cos_sin"},
        {"embedding": "fourier"},
        {"blocks": 2},
        {"attention": []},
        {"channel_mult": [2]},
    ],
)
def test_options_run(options):
    x, time = inputs()
    output = small(**options)(x, time)
    assert output.shape == x.shape
    assert output.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"scale_shift": True, "resample": "residual"}])
def test_time_and_label_change_the_output(options):
    net = small(num_classes=4, **options)
    x, time = inputs()
    output = net(x, time, torch.tensor([0, 1]))
    for other in (net(x, time + 1, torch.tensor([0, 1])), net(x, time, torch.tensor([2, 3]))):
        assert ((output - other).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_images_do_not_mix():
    """What a network answers about an image does not depend on the rest of the batch."""
    net, (x, time) = small(), inputs()
    torch.testing.assert_close(net(x, time)[1:], net(x[1:], time[1:]))


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("channel_mult", {"channel_mult": []}),
        ("channel_mult", {"channel_mult": [1, 0]}),
        ("channel_mult", {"channel_mult": [1, 2, 2], "image_size": 10}),
        ("channel_mult", {"channel_mult": [1, 1, 1, 1, 1]}),
        ("groups", {"groups": 0}),
        ("groups", {"channels": 18}),
        ("groups", {"groups": 16}),
        ("norm_eps", {"norm_eps": 0.0}),
        ("channels", {"channels": 15, "groups": 5}),
        ("channels", {"channels": 2, "groups": 1}),
        ("blocks", {"blocks": 0}),
        ("heads", {"heads": 0}),
        ("heads", {"heads": 3}),
        ("head_channels", {"head_channels": 0}),
        ("head_channels", {"head_channels": 5}),
        ("dropout", {"dropout": -0.1}),
        ("dropout", {"dropout": 1.0}),
        ("embedding", {"embedding": "sincos"}),
        ("padding", {"padding": "same"}),
        ("resample", {"resample": "conv"}),
    ],
)
def test_what_does_not_fit_is_refused_by_name(option, options):
    with pytest.raises(ValueError, match=rf"^{option} "):
        small(**options)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_residual_resampling_without_convolutions(scale_shift):
    """What remains is the resampling of the input: means of squares, and squares."""
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    means = x.reshape(2, 8, 2, 2, 2, 2).mean(dim=(3, 5))
    squares = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    for change, expected in ((torch.nn.AvgPool2d(2), means), (torch.nn.Upsample(scale_factor=2), squares)):
        block = ResidualBlock(8, 8, 16, partial(torch.nn.GroupNorm, 4), 0.0, scale_shift, change)
        torch.nn.init.zeros_(block.conv2.weight)
        torch.nn.init.zeros_(block.conv2.bias)
        torch.testing.assert_close(block(x, torch.randn(2, 16)), expected)


def test_a_part_of_a_stage_is_a_stage():
    """Features are read from inside a network by running its first modules only."""
    middle = UNet(8, 1, channels=8, channel_mult=[1, 1], groups=4, attention=[4], blocks=1).middle
    x, embedded = torch.randn(2, 8, 4, 4), torch.randn(2, 32)
    assert isinstance(middle[:2], Stage)
    torch.testing.assert_close(middle[2:](middle[:2](x, embedded), embedded), middle(x, embedded))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_upsampling_repeats_pixels_in_the_layout_that_it_is_given(layout):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=layout)
    upstream = torch.randn(2, 3, 8, 10, dtype=torch.float64)
    results = []
    for function in (doubled, lambda x: torch.nn.functional.interpolate(x, scale_factor=2)):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        out = function(leaf)
        results.append((out, *torch.autograd.grad(out, leaf, upstream)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert results[0][0].is_contiguous(memory_format=layout)
