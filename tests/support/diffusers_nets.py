"""Networks of diffusers with random weights, and their features of the time in float64."""

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor, nn

# The fields in which google/ddpm-cifar10-32 differs from the defaults of the class.
PAPER = {"flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "downsample_padding": 0}
ADM = {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"}


def levels(*types: str) -> dict[str, tuple[str, ...]]:
    """The types of blocks, on the way down and in reverse on the way up: A with attention, D without, R residual."""
    names = {"A": "Attn{}Block2D", "D": "{}Block2D", "R": "Resnet{}sampleBlock2D"}
    down = tuple(names[each].format("Down") for each in types)
    return {"down_block_types": down, "up_block_types": tuple(names[each].format("Up") for each in reversed(types))}


# Small networks, each with another combination of options.
NETWORKS: dict[str, dict[str, Any]] = {
    "paper": {**PAPER, **levels("D", "A", "D"), "block_out_channels": (16, 32, 32), "attention_head_dim": None},
    "defaults with classes": {**levels("D", "A"), "block_out_channels": (32, 64), "num_class_embeds": 7},
    "attention everywhere": {**levels("A", "A", "A"), "block_out_channels": (16, 16, 32), "layers_per_block": 1},
    "adm": {
        **{**ADM, **levels("R", "A"), "block_out_channels": (16, 32), "attn_norm_num_groups": 8, "out_channels": 6},
        **{"num_class_embeds": 5, "attention_head_dim": 4},
    },
    "residual without attention": {**levels("R", "R"), "block_out_channels": (16, 32), "layers_per_block": 3},
    "scale and shift, strided": {
        **{**levels("D", "A"), "block_out_channels": (16, 32), "resnet_time_scale_shift": "scale_shift"},
        "attn_norm_num_groups": 8,
    },
    "cosine first, the paper's spacing": {**PAPER, "flip_sin_to_cos": True, **levels("D"), "block_out_channels": (16,)},
    "sine first, the later spacing": {"flip_sin_to_cos": False, **levels("D", "A"), "block_out_channels": (16, 32)},
    "rectangle": {**levels("D", "A", "D"), "block_out_channels": (16, 32, 32), "sample_size": (16, 24)},
    "widths that are no multiples": {**levels("D", "A", "D"), "block_out_channels": (32, 48, 40), "in_channels": 1},
}


def random_network(name: str, **changes: Any) -> UNet2DModel:
    """A network whose every weight is random, norms and biases too, so that none can be exchanged unnoticed."""
    torch.manual_seed(0)
    options = {"sample_size": 16, "norm_num_groups": 8, "attention_head_dim": 8, **NETWORKS[name], **changes}
    net = UNet2DModel(**{"out_channels": options.get("in_channels", 3), **options})
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return net.eval()


def save_pipeline(net: UNet2DModel, folder: Path, **scheduler: Any) -> Path:
    """A pipeline's folder, as diffusers writes it."""
    DDPMPipeline(net, DDPMScheduler(**scheduler)).save_pretrained(folder)
    return folder


class Features64(nn.Module):
    """What diffusers computes of the time, in float64 where it takes float32: [sin, cos] or [cos, sin]."""

    def __init__(self, dim: int, flip_sin_to_cos: bool, freq_shift: int):
        super().__init__()
        self.half, self.flip, self.shift = dim // 2, flip_sin_to_cos, freq_shift

    def forward(self, time: Tensor) -> Tensor:
        exponent = torch.arange(self.half, dtype=torch.float64) / (self.half - self.shift)
        angles = time[:, None].double() * torch.exp(-math.log(10000) * exponent)
        parts = [angles.cos(), angles.sin()] if self.flip else [angles.sin(), angles.cos()]
        return torch.cat(parts, dim=1)


def in_float64(net: UNet2DModel) -> UNet2DModel:
    """The network in float64, its features of the time too."""
    config = net.config
    net.time_proj = Features64(config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)
    return net.double()


def ours_in_float64(net: nn.Module) -> nn.Module:
    """Our network in float64, its frequencies too."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        net.features = type(net.features)(2 * len(net.features.frequencies))
    finally:
        torch.set_default_dtype(default)
    return net.double()
