"""Where the network runs and in which precision. The network, and only the network, runs in less than float32."""

import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._triton import has_triton

from diffuse.system.cuda_graph import CapturedCalls
from diffuse.system.errors import Refused, check, check_choice
from diffuse.system.joining import WAIT, check_processes, gpu_of, join
from diffuse.system.memory import keep_freed_memory
from diffuse.system.threads import Item, Result, Workers, cores, threads_from_environment

STEPS_WORTH_COMPILING = 3_000  # it takes about a minute

Net = TypeVar("Net", bound=nn.Module)
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Device:
    """A CPU or accelerator, and how this package uses it.

    kind         auto (CUDA, else Apple's MPS, else the CPU), cpu, cuda or mps
    precision    auto (bfloat16 where it is faster than float32), float32, bfloat16 or tf32 (CUDA)
    compile      whether training compiles the network (null: on CUDA with Triton, in long runs)
    capture      whether training steps and calls of the network are recorded as CUDA graphs (null: no; that has not run
                 on a device yet)
    norm         how training computes group norms: torch or moments (null: the faster, measured where it compiles)
    recompute    whether training computes activations again for the gradient, for less memory
    threads      number of CPU threads; null takes OMP_NUM_THREADS, or else the fastest number
    keep_memory  whether freed memory is kept for the next tensors, which is faster with glibc
    processes    how many processes compute one command, each on its own device (all: one for each GPU, null: 1)
    restarts     how often they are started again where one of them is killed
    wait         seconds in which all of them must have come
    gradients    float32 or bfloat16: the precision in which they send each other the gradients of a training

    The last four are for `diffuse` as it starts processes; torchrun's are as many as torchrun says. Raises Refused if
    this machine has no such device.
    """

    def __init__(
        self,
        kind: str = "auto",
        precision: str = "auto",
        compile: bool | None = None,
        capture: bool | None = None,
        norm: str | None = None,
        recompute: bool = False,
        threads: int | None = None,
        keep_memory: bool = True,
        processes: int | str | None = None,
        restarts: int = 3,
        wait: float = WAIT,
        gradients: str = "float32",
    ):
        check_choice("gradients", gradients, ("float32", "bfloat16"))
        check_processes(processes)
        check(restarts >= 0, "restarts", "at least 0", restarts)
        check(wait > 0, "wait", "positive", wait)
        check_choice("kind", kind, ("auto", "cpu", "cuda", "mps"))
        check_choice("precision", precision, ("auto", "float32", "bfloat16", "tf32"))
        check(threads is None or threads >= 1, "threads", "at least 1 or null", threads)
        if keep_memory:
            keep_freed_memory()
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        available = [name for name, is_there in there.items() if is_there]
        kind = available[0] if kind == "auto" else kind
        if kind not in available:
            raise Refused("kind", f"is {kind}, but torch finds no {kind} device on this machine; use device=auto")
        if capture and kind != "cuda":
            raise Refused("capture", f"is for CUDA graphs, and the device is {kind}: leave it out")
        if precision == "auto":
            precision = "bfloat16" if _computes_in_bfloat16(kind) else "float32"
        if precision == "tf32" and kind != "cuda":
            raise Refused("precision", f"is tf32, in which only CUDA devices compute, and the device is {kind}")
        self.processes = join(wait)
        self.torch = torch.device(kind)
        self.precision = self.processes.published("precision", precision)  # measured on one CPU for all
        share = cores() // self.processes.local_count if self.processes.count > 1 else 0
        self.threads = threads or threads_from_environment() or share or None
        self.workers = Workers(self.threads or cores()) if kind == "cpu" else None
        self.gradients = torch.bfloat16 if gradients == "bfloat16" else torch.float32
        self.compiles = (kind == "cuda" and has_triton()) if compile is None else compile
        self.compiles_always = bool(compile)
        self.captures, self.norm, self.recompute = bool(capture), norm, recompute
        self.layout = torch.channels_last if kind == "cuda" else torch.contiguous_format
        if kind == "cuda":
            if self.processes.count > 1:
                torch.cuda.set_device(gpu_of(self.processes.local_rank, self.processes.local_count))
            torch.backends.cudnn.benchmark = True
            allow_tf32(precision == "tf32")  # float32 means float32

    def worth_compiling(self, steps: int) -> bool:
        """Whether a training of so many steps compiles its network; decides it if that was not typed.

        What was compiled is kept for the next run, in ~/.cache: torch's own place is a temporary folder.
        """
        self.compiles = self.compiles and (self.compiles_always or steps >= STEPS_WORTH_COMPILING)
        if self.compiles:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "diffuse" / "compiled"))
        return self.compiles

    def place(self, net: Net) -> Net:
        """The network, on this device and in the memory layout in which its convolutions are fastest."""
        return net.to(self.torch, memory_format=self.layout)  # type: ignore[call-overload, no-any-return]

    def network(self, net: Callable[..., Tensor], rows: int | None = None, float32: bool = False) -> Network:
        """The network as a function: this device's precision inside, float32 outside, `rows` images at a time if given.

        float32=True is for networks whose output needs that precision; of tf32 that holds for the forward pass alone.

        Results differ in the last bits between batch sizes. With batches cut and padded to a fixed number of rows, an
        image's result depends on the image alone.
        """

        low = not float32 and self.precision == "bfloat16"
        exactly = self.in_float32 if float32 else nullcontext

        def call(x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
            x = x.to(memory_format=self.layout)
            with torch.autocast(self.torch.type, torch.bfloat16, enabled=low), exactly():
                return net(x, time, y).to(x.dtype)

        called: Network = CapturedCalls(call) if self.captures else call
        return called if rows is None else in_chunks(called, rows, self.spread)

    def spread(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The results for all items: on a CPU spread over its cores, each computed by a single thread."""
        return self.workers.map(function, items) if self.workers else [function(item) for item in items]

    def rows(self, size: tuple[int, int], batch_size: int) -> int:
        """How many images one network call takes when sampling and scoring.

        On a CPU the image size alone decides (64 of 8 x 8, 16 of 32 x 32: larger batches are not faster), so that
        results do not depend on batch_size; elsewhere it is batch_size.
        """
        if self.torch.type == "cpu":
            return max(4, min(64, 16384 // math.prod(size)))
        return batch_size

    def whole_calls(self, batch_size: int, rows: int) -> int:
        """The number of images to draw at once: at least batch_size, in calls of `rows` that keep all cores busy."""
        at_once = rows * (self.workers.count if self.workers else 1)
        return -(-batch_size // at_once) * at_once

    def compute_with(self, threads: int) -> None:
        """Set the number of CPU threads of an operation; `spread` does not depend on it."""
        if self.torch.type == "cpu":
            torch.set_num_threads(threads)

    def fetch(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin to copy a tensor to the CPU, behind all that is queued; the function that is returned waits for it."""
        if self.torch.type != "cuda":
            here = tensor.cpu()
            return lambda: here
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> Tensor:
            copied.synchronize()
            return pinned

        return wait

    def in_float32(self) -> AbstractContextManager[None]:
        """Products in float32 proper, where TF32 is allowed too."""
        return without_tf32(self.precision == "tf32")

    def hold(self, array: Tensor) -> Tensor:
        """The array on this device, or on the CPU if it would take more than half of the device's free memory."""
        if self.torch.type == "cuda" and array.nbytes > torch.cuda.mem_get_info()[0] // 2:
            return array
        return array.to(self.torch)

    @property
    def asynchronous(self) -> bool:
        """Whether operations are queued: reading a number back then waits for them, and the device becomes idle."""
        return self.torch.type == "cuda"

    def peak_memory(self) -> int:
        """The most memory in use so far, in bytes: the device's, or that of the whole process on a CPU."""
        if self.torch.type == "cuda":
            return torch.cuda.max_memory_allocated()
        if self.torch.type == "mps":
            return torch.mps.driver_allocated_memory()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def synchronize(self) -> None:
        """Wait until the device has done all its work; for timing only."""
        if self.torch.type != "cpu":
            getattr(torch, self.torch.type).synchronize()


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA rounds the factors of float32 products to TF32's 10 bits, in convolutions and matrix products."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


@contextmanager
def without_tf32(needed: bool) -> Iterator[None]:
    """Products in float32 proper, if that is needed where TF32 is allowed."""
    if needed:
        allow_tf32(False)
    try:
        yield
    finally:
        if needed:
            allow_tf32(True)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; to CUDA through pinned memory, since a plain copy waits for all queued operations."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def in_chunks(net: Network, rows: int, spread: Callable[..., list[Tensor]]) -> Network:
    """The same network, called with exactly `rows` images each time: the last chunk is filled up with zeros."""

    def call(x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        missing = -len(x) % rows
        xs, times = (_pad(part, missing).split(rows) for part in (x, time))
        ys = [None] * len(xs) if y is None else _pad(y, missing).split(rows)
        return torch.cat(spread(lambda chunk: net(*chunk), zip(xs, times, ys, strict=True)))[: len(x)]

    return call


def _pad(part: Tensor, missing: int) -> Tensor:
    return torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part


def _computes_in_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and torch.cpu._is_avx512_bf16_supported() and _bfloat16_is_faster()


@cache
def _bfloat16_is_faster() -> bool:
    """Whether matrix products of this CPU are faster in bfloat16 than in float32, which takes 10 ms to find out.

    That it has the instructions says little: they do twice the work of float32's on AMD's Zen 4, and half of it on an
    Intel Xeon whose matrix unit (AMX) the hypervisor hides. Between them no noise makes a difference.
    """

    def seconds(factor: Tensor) -> float:
        started = time.perf_counter()
        factor @ factor
        return time.perf_counter() - started

    factors = [torch.ones(256, 256, dtype=precision) for precision in (torch.bfloat16, torch.float32)]
    low, full = (min(times) for times in zip(*([seconds(factor) for factor in factors] for _ in range(8)), strict=True))
    return low < full
