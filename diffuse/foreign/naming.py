"""What another program calls the tensors of our U-Net, and in which order it keeps their numbers.

A format is one `Naming`: its names for our modules, and where its blocks lie. From it and a network follows a table of
rows, each for one of our tensors, which is read in both directions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffuse.foreign.files import Tensors, shown
from diffuse.networks.blocks import Attention, ResidualBlock
from diffuse.networks.encoder import Encoder
from diffuse.networks.unet import UNet
from diffuse.system.errors import UserError

Order = Callable[[int, int], Tensor]  # (heads, rows) -> for each of our rows the number of theirs


class Place(NamedTuple):
    """Where a block of a U-Net is.

    side    down, middle or up
    level   0 at the resolution of the image, on both ways
    stage   the number of the group of modules on this side, from 0, in the order of computation
    block   the number of that group in its level, from 0
    module  the number of the module in its group
    role    residual, attention, halve or double
    levels  the number of levels
    """

    side: str
    level: int
    stage: int
    block: int
    module: int
    role: str
    levels: int


@dataclass(frozen=True)
class Naming:
    """The names of a format.

    plain       our modules outside of the blocks -> theirs
    residual    the modules of a residual block -> theirs
    attention   the modules of attention -> theirs, or several that are joined to one of ours
    prefix      the name of a block by its place
    strided     what follows it for the convolution that halves, and for that which doubles
    transposed  our parameters that are transposed there -> theirs
    ndim        the number of dimensions of the weights of attention, which are 1 x 1 convolutions here
    qkv         the order of the rows of qkv, where it differs
    features    the order of the features of the time, where it differs: half of their number -> columns of theirs
    """

    plain: Mapping[str, str]
    residual: Mapping[str, str]
    attention: Mapping[str, str | Sequence[str]]
    prefix: Callable[[Place], str]
    strided: Mapping[str, str]
    transposed: Mapping[str, str] = field(default_factory=dict)
    ndim: int = 4
    qkv: Order | None = None
    features: Callable[[int], Tensor] | None = None


@dataclass(frozen=True)
class Row:
    """One of our tensors in a foreign format.

    ours     its name here
    theirs   the names of those that it is made of, along dimension 0
    ndim     the number of dimensions that theirs have, of sizes 1 at the end where ours has more
    order    for each of our rows or columns (`dim` 0 or 1) the number of theirs; None where they are the same
    transposed    whether theirs are transposed
    """

    ours: str
    theirs: tuple[str, ...]
    ndim: int | None = None
    order: Tensor | None = None
    dim: int = 0
    transposed: bool = False

    def to_ours(self, tensors: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """Our tensor, in float32, of theirs. Raises ValueError where theirs have other shapes, but for sizes of 1."""
        rows, *others = shape
        expected = [rows // len(tensors), *(size for size in others if size != 1)]
        turned = [tensor.detach().t() if self.transposed else tensor.detach() for tensor in tensors]
        for name, tensor in zip(self.theirs, turned, strict=True):
            if [*tensor.shape[:1], *(size for size in tensor.shape[1:] if size != 1)] != expected:
                raise ValueError(f"{name} has the shape {list(tensor.shape)}, and {expected} is expected")
        found = torch.cat(turned).reshape(shape)
        return (found if self.order is None else found.index_select(self.dim, self.order)).float().contiguous()

    def to_theirs(self, tensor: Tensor) -> dict[str, Tensor]:
        """Their tensors, by name, of ours: the inverse of `to_ours`."""
        found = tensor.detach()
        if self.order is not None:
            found = torch.empty_like(found).index_copy_(self.dim, self.order, found)
        if self.ndim is not None and tensor.ndim > 1:
            found = found.reshape(*found.shape[: self.ndim], *[1] * (self.ndim - found.ndim))
        parts = found.chunk(len(self.theirs))
        return {
            name: (part.t() if self.transposed else part).contiguous()
            for name, part in zip(self.theirs, parts, strict=True)
        }


def table(net: Encoder, naming: Naming) -> list[Row]:
    """A row for every tensor of a network."""
    rows: list[Row] = []
    for ours, theirs in naming.plain.items():
        if (module := _module(net, ours)) is not None:
            half = net.make.embedded // 8  # of the features, of which the embedding has 4 times as many
            columns = naming.features(half) if naming.features and ours == "embed_time.0" else None
            ndim = naming.ndim if ours.startswith("pool.") else None
            rows += _rows(module, ours, (theirs,), ndim, order=columns, dim=1)
    for ours, place, block in blocks_of(net):
        prefix = naming.prefix(place)
        if isinstance(block, ResidualBlock):
            rows += _inside(block, ours, prefix, naming.residual)
        elif isinstance(block, Attention):
            rows += _attention(block, ours, prefix, naming)
        else:
            rows += _rows(block.get_submodule("conv"), f"{ours}.conv", (prefix + naming.strided[place.role],))
    named = {name for name, _ in net.named_parameters()}
    rows += [Row(ours, (theirs,), transposed=True) for ours, theirs in naming.transposed.items() if ours in named]
    return rows


def blocks_of(net: Encoder) -> Iterator[tuple[str, Place, nn.Module]]:
    """The blocks of a network with their names and places, in the order of computation."""
    levels = len(net.widths)
    period = (len(net.down) + 1) // levels
    for stage, modules in enumerate(net.down.children()):
        level, block = divmod(stage, period)
        for number, module in enumerate(modules.children()):
            role = "attention" if isinstance(module, Attention) else "halve" if block == period - 1 else "residual"
            yield f"down.{stage}.{number}", Place("down", level, stage, block, number, role, levels), module
    for number, module in enumerate(net.get_submodule("middle").children()):
        role = "attention" if isinstance(module, Attention) else "residual"
        yield f"middle.{number}", Place("middle", levels - 1, number, number, number, role, levels), module
    for stage, modules in enumerate(net.up.children() if isinstance(net, UNet) else ()):
        above, block = divmod(stage, period)
        for number, module in enumerate(modules.children()):
            role = "attention" if isinstance(module, Attention) else "double" if number else "residual"
            yield f"up.{stage}.{number}", Place("up", levels - 1 - above, stage, block, number, role, levels), module


def to_ours(net: Encoder, rows: Sequence[Row], tensors: Tensors) -> Tensors:
    """The state of a network, by our names. Raises UserError unless each tensor is used, and none is missing."""
    state = net.state_dict()
    expected = {name for row in rows for name in row.theirs}
    if missing := sorted(expected - tensors.keys()):
        raise UserError(f"the weights have no {shown(missing[0])}{_and_more(missing)}, which this network needs")
    if unknown := sorted(tensors.keys() - expected):
        raise UserError(f"the weights hold {shown(unknown[0])}{_and_more(unknown)}, which this network does not have")
    try:
        found = {row.ours: row.to_ours([tensors[name] for name in row.theirs], state[row.ours].shape) for row in rows}
    except (ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"the weights are not those of this network: {error}") from error
    return {name: found[name] for name in state}


def to_theirs(rows: Sequence[Row], state: Mapping[str, Tensor]) -> Tensors:
    """The weights of a network, by their names."""
    return {name: tensor for row in rows for name, tensor in row.to_theirs(state[row.ours]).items()}


def _module(net: nn.Module, name: str) -> nn.Module | None:
    """The module of that name; None where the network has none."""
    try:
        return net.get_submodule(name)
    except AttributeError:
        return None


def _inside(block: nn.Module, ours: str, prefix: str, names: Mapping[str, str]) -> Iterator[Row]:
    for name, theirs in names.items():
        yield from _rows(block.get_submodule(name), f"{ours}.{name}", (f"{prefix}.{theirs}",))


def _attention(block: Attention, ours: str, prefix: str, naming: Naming) -> Iterator[Row]:
    for name, theirs in naming.attention.items():
        module = block.get_submodule(name)
        joined = tuple(f"{prefix}.{each}" for each in ([theirs] if isinstance(theirs, str) else theirs))
        order = naming.qkv(block.heads, 3 * block.qkv.in_channels) if name == "qkv" and naming.qkv else None
        yield from _rows(module, f"{ours}.{name}", joined, ndim=None if name == "norm" else naming.ndim, order=order)


def _rows(
    module: nn.Module,
    ours: str,
    theirs: Sequence[str],
    ndim: int | None = None,
    order: Tensor | None = None,
    dim: int = 0,
) -> Iterator[Row]:
    """A row for each tensor of a module: its weight, and its bias if it has one."""
    for name in module.state_dict():
        ordered = order if dim == 0 or name == "weight" else None
        yield Row(f"{ours}.{name}", tuple(f"{each}.{name}" for each in theirs), ndim, ordered, dim)


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""
