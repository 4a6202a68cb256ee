"""The blocks of small networks of other programs, as lines: their names there, their kinds, their widths."""

from tests.support.foreign_states import Lines

OPENAI_STRIDED: Lines = [
    ("time_embed.0", "linear", (128, 32)),
    ("time_embed.2", "linear", (128, 128)),
    ("input_blocks.0.0", "conv", (32, 3, 3, 3)),
    ("input_blocks.1.0", "residual", (32, 32)),
    ("input_blocks.2.0.op", "conv", (32, 32, 3, 3)),
    ("input_blocks.3.0", "residual", (32, 64)),
    ("input_blocks.3.1", "attention", (64,)),
    ("middle_block.0", "residual", (64, 64)),
    ("middle_block.1", "attention", (64,)),
    ("middle_block.2", "residual", (64, 64)),
    ("output_blocks.0.0", "residual", (128, 64)),
    ("output_blocks.0.1", "attention", (64,)),
    ("output_blocks.1.0", "residual", (96, 64)),
    ("output_blocks.1.1", "attention", (64,)),
    ("output_blocks.1.2.conv", "conv", (64, 64, 3, 3)),
    ("output_blocks.2.0", "residual", (96, 32)),
    ("output_blocks.3.0", "residual", (64, 32)),
    ("out.0", "norm", (32,)),
    ("out.2", "conv", (6, 32, 3, 3)),
]
RESIDUAL_INSTEAD = {
    "input_blocks.2.0.op": ("input_blocks.2.0", "residual", (32, 32)),
    "output_blocks.1.2.conv": ("output_blocks.1.2", "residual", (64, 64)),
}
OPENAI_RESIDUAL: Lines = [
    *(RESIDUAL_INSTEAD.get(line[0], line) for line in OPENAI_STRIDED),
    ("label_emb", "table", (10, 128)),
]
# Twice as wide: where the time is added, a norm of 32 groups needs more than 32 channels.
OPENAI_WIDE: Lines = [
    (name, kind, tuple(2 * size if size >= 32 else size for size in sizes)) for name, kind, sizes in OPENAI_STRIDED
]
# The way down of a classifier of 8 pixels, whose heads are 64 wide, and its pooling over 4 x 4 pixels and their mean.
CLASSIFIER: Lines = [
    ("time_embed.0", "linear", (256, 64)),
    ("time_embed.2", "linear", (256, 256)),
    ("input_blocks.0.0", "conv", (64, 3, 3, 3)),
    ("input_blocks.1.0", "residual", (64, 64)),
    ("input_blocks.2.0", "residual", (64, 64)),
    ("input_blocks.3.0", "residual", (64, 128)),
    ("input_blocks.3.1", "attention", (128,)),
    ("middle_block.0", "residual", (128, 128)),
    ("middle_block.1", "attention", (128,)),
    ("middle_block.2", "residual", (128, 128)),
    ("out.0", "norm", (128,)),
    ("out.2.qkv_proj", "linear", (384, 128, 1)),
    ("out.2.c_proj", "linear", (10, 128, 1)),
]
# What ADM-512 has: a first level of half the channels, and a stem of that width.
OPENAI_HALF: Lines = [
    ("time_embed.0", "linear", (256, 64)),
    ("time_embed.2", "linear", (256, 256)),
    *(line for line in OPENAI_RESIDUAL if not line[0].startswith(("time_embed", "label_emb"))),
]
DDIM: Lines = [
    ("temb.dense.0", "linear", (256, 64)),
    ("temb.dense.1", "linear", (256, 256)),
    ("conv_in", "conv", (64, 3, 3, 3)),
    ("down.0.block.0", "residual", (64, 64)),
    ("down.0.block.1", "residual", (64, 64)),
    ("down.0.downsample.conv", "conv", (64, 64, 3, 3)),
    ("down.1.block.0", "residual", (64, 128)),
    ("down.1.attn.0", "attention", (128,)),
    ("down.1.block.1", "residual", (128, 128)),
    ("down.1.attn.1", "attention", (128,)),
    ("mid.block_1", "residual", (128, 128)),
    ("mid.attn_1", "attention", (128,)),
    ("mid.block_2", "residual", (128, 128)),
    ("up.1.block.0", "residual", (256, 128)),
    ("up.1.attn.0", "attention", (128,)),
    ("up.1.block.1", "residual", (256, 128)),
    ("up.1.attn.1", "attention", (128,)),
    ("up.1.block.2", "residual", (192, 128)),
    ("up.1.attn.2", "attention", (128,)),
    ("up.1.upsample.conv", "conv", (128, 128, 3, 3)),
    ("up.0.block.0", "residual", (192, 64)),
    ("up.0.block.1", "residual", (128, 64)),
    ("up.0.block.2", "residual", (128, 64)),
    ("norm_out", "norm", (64,)),
    ("conv_out", "conv", (3, 64, 3, 3)),
]
PYTORCH_DDPM_NAMES = {
    "temb.dense.0": "time_embedding.timembedding.1",
    "temb.dense.1": "time_embedding.timembedding.3",
    "conv_in": "head",
    "down.0.block.0": "downblocks.0",
    "down.0.block.1": "downblocks.1",
    "down.0.downsample.conv": "downblocks.2.main",
    "down.1.block.0": "downblocks.3",
    "down.1.attn.0": "downblocks.3.attn",
    "down.1.block.1": "downblocks.4",
    "down.1.attn.1": "downblocks.4.attn",
    "mid.block_1": "middleblocks.0",
    "mid.attn_1": "middleblocks.0.attn",
    "mid.block_2": "middleblocks.1",
    "up.1.block.0": "upblocks.0",
    "up.1.attn.0": "upblocks.0.attn",
    "up.1.block.1": "upblocks.1",
    "up.1.attn.1": "upblocks.1.attn",
    "up.1.block.2": "upblocks.2",
    "up.1.attn.2": "upblocks.2.attn",
    "up.1.upsample.conv": "upblocks.3.main",
    "up.0.block.0": "upblocks.4",
    "up.0.block.1": "upblocks.5",
    "up.0.block.2": "upblocks.6",
    "norm_out": "tail.0",
    "conv_out": "tail.2",
}
PYTORCH_DDPM: Lines = [(PYTORCH_DDPM_NAMES[name], kind, sizes) for name, kind, sizes in DDIM]
