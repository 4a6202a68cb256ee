"""State dicts of other programs: their names and shapes written out, and their forward passes in plain functions.

Nothing here is taken from the package: a block is a line of data, and a forward pass is the program's own, restated.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Lines = list[tuple[str, str, tuple[int, ...]]]  # the name of a block, its kind, and its widths

# Kind of block -> [(name inside, shape of the weight)], of widths (in, out) or (width,); n: of the norm.
RESIDUALS: dict[str, tuple[str, ...]] = {
    "openai": ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"),
    "ddim": ("norm1", "conv1", "temb_proj", "norm2", "conv2", "nin_shortcut"),
    "pytorch_ddpm": ("block1.0", "block1.2", "temb_proj.1", "block2.0", "block2.3", "shortcut"),
}


def random_state(lines: Lines, style: str, embedded: int, scale_shift: bool = False, dims: int = 1) -> State:
    """Random weights for blocks that are written as lines. dims: of the 1 x 1 convolutions in OpenAI's attention."""
    made = torch.Generator().manual_seed(2)
    state: State = {}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        fan = math.prod(shape[1:])
        state[f"{name}.weight"] = torch.randn(shape, generator=made) / fan**0.5
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0], generator=made) / 10

    for name, kind, sizes in lines:
        if kind == "residual":
            (narrow, wide), names = sizes, RESIDUALS[style]
            add(f"{name}.{names[0]}", narrow)
            add(f"{name}.{names[1]}", wide, narrow, 3, 3)
            add(f"{name}.{names[2]}", wide * (2 if scale_shift else 1), embedded)
            add(f"{name}.{names[3]}", wide)
            add(f"{name}.{names[4]}", wide, wide, 3, 3)
            if narrow != wide:
                add(f"{name}.{names[5]}", wide, narrow, 1, 1)
        elif kind == "attention":
            (width,) = sizes
            one = (1,) * dims
            if style == "openai":
                add(f"{name}.norm", width)
                add(f"{name}.qkv", 3 * width, width, *one)
                add(f"{name}.proj_out", width, width, *one)
            else:
                norm, *projections = {
                    "ddim": ("norm", "q", "k", "v", "proj_out"),
                    "pytorch_ddpm": ("group_norm", "proj_q", "proj_k", "proj_v", "proj"),
                }[style]
                add(f"{name}.{norm}", width)
                for each in projections:
                    add(f"{name}.{each}", width, width, 1, 1)
        else:
            add(name, *sizes, bias=kind != "table")
    return state


class Reader:
    """Plain functions on the tensors of a state dict, which notes those that were used."""

    def __init__(self, state: State, eps: float):
        self.state, self.eps = {name: value.double() for name, value in state.items()}, eps
        self.used: set[str] = set()

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.state

    def get(self, name: str) -> Tensor:
        self.used.add(name)
        return self.state[name]

    def conv(self, x: Tensor, name: str, **options: int) -> Tensor:
        return F.conv2d(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"), **options)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.get(f"{name}.weight").flatten(1), self.get(f"{name}.bias"))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, self.get(f"{name}.weight"), self.get(f"{name}.bias"), self.eps)


def openai_forward(
    read: Reader, x: Tensor, t: Tensor, y: Tensor | None, heads: Callable[[int], int], legacy: bool, scale_shift: bool
) -> Tensor:
    """UNetModel of improved- and guided-diffusion; a block with a halving or doubling is told by its place."""
    width = read.get("time_embed.0.weight").shape[1]
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    embedded = torch.cat([angles.cos(), angles.sin()], dim=1)
    embedded = read.linear(F.silu(read.linear(embedded, "time_embed.0")), "time_embed.2")
    if y is not None:
        embedded = embedded + read.get("label_emb.weight")[y]

    def residual(h: Tensor, name: str, change: Callable[[Tensor], Tensor]) -> Tensor:
        inside = read.conv(change(F.silu(read.norm(h, f"{name}.in_layers.0"))), f"{name}.in_layers.2", padding=1)
        time = read.linear(F.silu(embedded), f"{name}.emb_layers.1")[:, :, None, None]
        if scale_shift:
            scale, shift = time.chunk(2, dim=1)
            inside = read.norm(inside, f"{name}.out_layers.0") * (1 + scale) + shift
        else:
            inside = read.norm(inside + time, f"{name}.out_layers.0")
        inside = read.conv(F.silu(inside), f"{name}.out_layers.3", padding=1)
        h = change(h)
        return inside + (read.conv(h, f"{name}.skip_connection") if read.has(f"{name}.skip_connection") else h)

    def attention(h: Tensor, name: str) -> Tensor:
        b, c = h.shape[:2]
        n = heads(c)
        qkv = read.linear(read.norm(h, f"{name}.norm").flatten(2).transpose(1, 2), f"{name}.qkv").transpose(1, 2)
        if legacy:  # (head, which, channel): split by heads first
            q, k, v = qkv.reshape(b * n, 3 * c // n, -1).split(c // n, dim=1)
        else:
            q, k, v = (each.reshape(b * n, c // n, -1) for each in qkv.chunk(3, dim=1))
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(c // n), dim=-1)
        found = torch.einsum("bts,bcs->bct", weight, v).reshape(b, c, -1)
        return h + read.linear(found.transpose(1, 2), f"{name}.proj_out").transpose(1, 2).reshape(h.shape)

    def module(h: Tensor, name: str, change: Callable[[Tensor], Tensor]) -> Tensor:
        if read.has(f"{name}.qkv"):
            return attention(h, name)
        if read.has(f"{name}.op"):
            return read.conv(h, f"{name}.op", stride=2, padding=1)
        if read.has(f"{name}.conv"):
            return read.conv(F.interpolate(h, scale_factor=2), f"{name}.conv", padding=1)
        return residual(h, name, change)

    def modules(name: str) -> int:
        return len({each[len(name) + 1 :].partition(".")[0] for each in read.state if each.startswith(f"{name}.")})

    def same(h: Tensor) -> Tensor:
        return h

    def twice(h: Tensor) -> Tensor:
        return F.interpolate(h, scale_factor=2)

    h = read.conv(x, "input_blocks.0.0", padding=1)
    skips, stage = [h], 1
    while modules(f"input_blocks.{stage}"):
        # In these small networks a level has two stages: a block, and the halving.
        change = (lambda h: F.avg_pool2d(h, 2)) if stage % 2 == 0 else same
        for number in range(modules(f"input_blocks.{stage}")):
            h = module(h, f"input_blocks.{stage}.{number}", change)
        skips.append(h)
        stage += 1
    for number in range(3):
        h = module(h, f"middle_block.{number}", same)
    if "out.2.positional_embedding" in read.state:
        return attention_pool(read, F.silu(read.norm(h, "out.0")))
    stage = 0
    while modules(f"output_blocks.{stage}"):
        h, count = torch.cat([h, skips.pop()], dim=1), modules(f"output_blocks.{stage}")
        for number in range(count):
            doubles = number == count - 1 and number > 0
            h = module(
                h, f"output_blocks.{stage}.{number}", (lambda h: F.interpolate(h, scale_factor=2)) if doubles else same
            )
        stage += 1
    return read.conv(F.silu(read.norm(h, "out.0")), "out.2", padding=1)


def attention_pool(read: Reader, h: Tensor) -> Tensor:
    """AttentionPool2d of ADM's classifiers: the output of the first token, the mean; 64 channels a head."""
    b, c = h.shape[:2]
    h = h.reshape(b, c, -1)
    h = torch.cat([h.mean(dim=2, keepdim=True), h], dim=2) + read.get("out.2.positional_embedding")
    q, k, v = read.linear(h.transpose(1, 2), "out.2.qkv_proj").transpose(1, 2).chunk(3, dim=1)
    q, k, v = (each.reshape(b * c // 64, 64, -1) for each in (q, k, v))
    weight = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / 8, dim=-1)
    found = torch.einsum("bts,bcs->bct", weight, v).reshape(b, c, -1)
    return read.linear(found[:, :, 0], "out.2.c_proj")


def papers_forward(read: Reader, x: Tensor, t: Tensor, style: str) -> Tensor:
    """The U-Net of two levels, two blocks and attention on the second, in the naming of DDIM or of pytorch-ddpm."""
    names = RESIDUALS[style]
    paper = style == "ddim"
    stem = "conv_in" if paper else "head"
    half = read.get(f"{stem}.weight").shape[0] // 2
    index = torch.arange(half, dtype=torch.float64)
    angles = t[:, None] * torch.exp(-math.log(10000) * index / (half - 1 if paper else half))
    if paper:
        features, linear = torch.cat([angles.sin(), angles.cos()], dim=1), ("temb.dense.0", "temb.dense.1")
    else:
        features = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
        linear = ("time_embedding.timembedding.1", "time_embedding.timembedding.3")
    embedded = F.silu(read.linear(F.silu(read.linear(features, linear[0])), linear[1]))

    def residual(h: Tensor, name: str) -> Tensor:
        inside = read.conv(F.silu(read.norm(h, f"{name}.{names[0]}")), f"{name}.{names[1]}", padding=1)
        inside = inside + read.linear(embedded, f"{name}.{names[2]}")[:, :, None, None]
        inside = read.conv(F.silu(read.norm(inside, f"{name}.{names[3]}")), f"{name}.{names[4]}", padding=1)
        return inside + (read.conv(h, f"{name}.{names[5]}") if read.has(f"{name}.{names[5]}") else h)

    def attention(h: Tensor, name: str) -> Tensor:
        norm, q, k, v, out = ("norm", "q", "k", "v", "proj_out") if paper else (
            "group_norm", "proj_q", "proj_k", "proj_v", "proj"
        )  # fmt: skip
        inside = read.norm(h, f"{name}.{norm}")
        q, k, v = (read.conv(inside, f"{name}.{each}").flatten(2) for each in (q, k, v))
        weight = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(h.shape[1]), dim=-1)
        return h + read.conv((v @ weight.transpose(1, 2)).reshape(h.shape), f"{name}.{out}")

    if paper:
        down = [["down.0.block.0"], ["down.0.block.1"], ["down.0.downsample.conv"],
                ["down.1.block.0", "down.1.attn.0"], ["down.1.block.1", "down.1.attn.1"]]  # fmt: skip
        middle = ["mid.block_1", "mid.attn_1", "mid.block_2"]
        up = [["up.1.block.0", "up.1.attn.0"], ["up.1.block.1", "up.1.attn.1"],
              ["up.1.block.2", "up.1.attn.2", "up.1.upsample.conv"],
              ["up.0.block.0"], ["up.0.block.1"], ["up.0.block.2"]]  # fmt: skip
        norm, head = "norm_out", "conv_out"
    else:
        down = [["downblocks.0"], ["downblocks.1"], ["downblocks.2.main"],
                ["downblocks.3", "downblocks.3.attn"], ["downblocks.4", "downblocks.4.attn"]]  # fmt: skip
        middle = ["middleblocks.0", "middleblocks.0.attn", "middleblocks.1"]
        up = [["upblocks.0", "upblocks.0.attn"], ["upblocks.1", "upblocks.1.attn"],
              ["upblocks.2", "upblocks.2.attn", "upblocks.3.main"],
              ["upblocks.4"], ["upblocks.5"], ["upblocks.6"]]  # fmt: skip
        norm, head = "tail.0", "tail.2"

    def module(h: Tensor, name: str) -> Tensor:
        if "attn" in name:
            return attention(h, name)
        if name.endswith(("downsample.conv", "downblocks.2.main")):
            return read.conv(F.pad(h, (0, 1, 0, 1)) if paper else F.pad(h, (1, 1, 1, 1)), name, stride=2)
        if name.endswith(("upsample.conv", ".main")):
            return read.conv(F.interpolate(h, scale_factor=2), name, padding=1)
        return residual(h, name)

    h = read.conv(x, stem, padding=1)
    skips = [h]
    for stage in down:
        for name in stage:
            h = module(h, name)
        skips.append(h)
    for name in middle:
        h = module(h, name)
    for stage in up:
        h = torch.cat([h, skips.pop()], dim=1)
        for name in stage:
            h = module(h, name)
    return read.conv(F.silu(read.norm(h, norm)), head, padding=1)
