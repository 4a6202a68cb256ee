"""How the step is computed where it could be computed in several ways: what fits into memory, what is fastest."""

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diffuse.networks.norm import NORMS, GroupNorm, use_norm
from diffuse.system.device import Device
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import format_bytes
from diffuse.system.progress import log
from diffuse.training.trainer import Trainer

ROUNDS, CALLS = 5, 10  # of each norm
MOMENTS = 2  # of AdamW, each as large as the weights


def parts_for(batch_size: int, processes: int, asked: int | None, accumulated: int) -> int:
    """The number of parts of a batch: as asked for, or one for each process, times `accumulated`.

    Each process computes as many parts as the others. Where a run was begun in fewer parts than there are processes
    now, its parts are divided further. Raises UsageError where the batch cannot be divided so, with numbers that do.
    """
    parts = asked or processes * accumulated
    if parts % processes:
        parts, before = math.lcm(parts, processes), parts
        if batch_size % parts == 0:
            log.info(f"parts={before} becomes {parts} for {processes} processes: sums are rounded differently")
    if batch_size % parts:
        possible = [count for count in range(processes, batch_size + 1, processes) if batch_size % count == 0]
        near = sorted(sorted(possible, key=lambda count: abs(count - parts))[:4])
        numbers = ", ".join(map(str, near))
        if processes == 1:
            key = f"parts={parts}" if asked else f"grad_accumulation={parts}"
            raise UsageError(f"{key} must divide batch_size={batch_size} without a remainder: {numbers} would do")
        do = f"parts={numbers} would do" if near else f"batch_size={batch_size // processes * processes} would do"
        given = f", with parts={asked}," if asked else ""
        raise UsageError(
            f"{processes} processes{given} cannot divide batch_size={batch_size} into {parts} equal parts: {do}"
        )
    return parts


def does_not_fit(trainer: Trainer) -> UserError:
    """The error for a step that ran out of memory, with the number of parts that was tried and fits."""
    device, batch_size, count = trainer.device, trainer.batch_size, trainer.processes.count
    trainer.forget_gradients()
    needed = f"batch_size={batch_size}"
    if trainer.parts > 1:
        needed += f" in {trainer.parts} parts"
    for parts in range(trainer.parts + 1, batch_size + 1):
        if batch_size % parts == 0 and parts % count == 0 and _fits(trainer, parts):
            advice = (
                f"grad_accumulation={parts // count} does the same step in parts of {batch_size // parts}, which fit"
            )
            break
    else:
        advice = "not even one image fits: a smaller network would"
    less = "" if device.recompute else ".\ndevice.recompute=true needs less memory too, and a third more time"
    memory = f"the memory of {device.torch.type} ({_memory(device)})"
    return UserError(f"{needed} does not fit into {memory}:\n{advice}{less}")


def fits(step: Callable[[], object]) -> bool:
    """Call a step; whether its memory was enough. What a failed one held is free again: its error held it."""
    try:
        step()
    except torch.OutOfMemoryError:
        return False
    return True


def _fits(trainer: Trainer, parts: int) -> bool:
    """Whether a step in so many parts fits: one gradient, beside all that a step holds at the same time."""
    images, own = trainer.batch_size // parts, parts // trainer.processes.count
    held = (0 if trainer.optimizer.state else MOMENTS) + (max(0, (own - 1).bit_length() - 1) if own > 2 else 0)

    def compute() -> None:
        _beside = [torch.empty_like(weight) for weight in trainer.net.parameters() for _ in range(held)]
        trainer.gradients(trainer.batch(trainer.step).first(images))

    found = fits(compute)
    trainer.forget_gradients()
    return found


def _memory(device: Device) -> str:
    if device.torch.type != "cuda":
        return "the limit is the system's"
    free, total = torch.cuda.mem_get_info()
    return f"{format_bytes(total)}, of which {format_bytes(total - free)} are in use now"


def choose_norm(trainer: Trainer, recorded: str | None) -> str:
    """Compute the network's group norms as it is asked for, as the run did before, or in the way measured faster.

    torch's own where the network is not compiled: on a CPU, and wherever nothing joins what `moments` is made of.
    """
    device = trainer.device
    name = device.norm or recorded or "torch"
    has_norms = any(isinstance(module, GroupNorm) for module in trainer.net.modules())
    if device.norm is None and recorded is None and device.compiles and device.torch.type == "cuda" and has_norms:
        seconds = {name: _seconds_of_norm(trainer, name) for name in NORMS}
        name = min(seconds, key=lambda each: seconds[each])
        measured = ", ".join(f"{each} {1e3 * taken:.2f} ms" for each, taken in seconds.items())
        log.info(f"group norm: {name}, the faster one of {measured}")
    use_norm(trainer.net, name)
    return name


def _seconds_of_norm(trainer: Trainer, name: str) -> float:
    """The time of the network's first norm and its SiLU, forward and backward, compiled: the least of some rounds."""
    device = trainer.device
    norm = next(module for module in trainer.net.modules() if isinstance(module, GroupNorm))
    channels, size = norm.num_channels, trainer.data.kind.padded_size
    x = torch.randn(trainer.batch_size // trainer.parts, channels, *size, device=device.torch)
    x = x.to(torch.bfloat16 if device.precision == "bfloat16" else torch.float32, memory_format=device.layout)
    x.requires_grad_()

    @torch.compile
    def function(x: Tensor) -> Tensor:
        return F.silu(NORMS[name](x, norm.num_groups, norm.weight, norm.bias, norm.eps)).to(x.dtype)

    def seconds() -> float:
        started = time.perf_counter()
        for _ in range(CALLS):
            torch.autograd.grad(function(x), x, torch.ones_like(x))
        device.synchronize()
        return (time.perf_counter() - started) / CALLS

    return min(seconds() for _ in range(1 + ROUNDS))
