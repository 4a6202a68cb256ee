"""A CUDA graph: all that a function does on the device, recorded once and then started as one operation."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffuse.system.progress import log

FIRST_CALLS = 3  # they compile, choose algorithms for convolutions and make tensors that stay; then it is recorded


class Captured:
    """A function without arguments or result, recorded as a CUDA graph after a few calls, and replayed from then on.

    It must read and write tensors that stay where they are, never wait for the device, and copy nothing from the CPU.
    Random numbers of torch's generator go on in a replay from the seed that it has then. Every call does what the
    function does, the first ones and the recorded one too. Where it cannot be recorded a warning says why, and the
    function is called as it is from then on.

    clear  called after a failed recording, before the function is called again
    """

    def __init__(self, function: Callable[[], None], clear: Callable[[], object] = lambda: None):
        self.function, self.clear = function, clear
        self.calls, self.graph = 0, torch.cuda.CUDAGraph()
        self.recorded = self.failed = False

    def __call__(self) -> None:
        self.calls += 1
        if self.failed:
            self.function()
        elif self.calls <= FIRST_CALLS:  # on another stream, as recording is: memory is kept by stream
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.function()
            torch.cuda.current_stream().wait_stream(stream)
        else:
            if not self.recorded:
                self._record()
            self.function() if self.failed else self.graph.replay()

    def _record(self) -> None:
        try:
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.function()
            self.recorded = True
        except RuntimeError as error:
            self.failed = True
            self.clear()
            torch.cuda.synchronize()
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            log.warning(f"device.capture: this cannot be recorded as a CUDA graph, and is computed without: {why}")


class CapturedCalls:
    """A function of tensors whose calls without gradients are recorded as CUDA graphs, one for each shape of arguments.

    The arguments are copied into tensors that stay, and the result is a copy too. Where a call cannot be recorded a
    warning says why, and the function is called as it is from then on.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function
        self.recorded: dict[tuple[object, ...], tuple[list[Tensor | None], list[Tensor], Captured]] = {}

    def __call__(self, *arguments: Tensor | None) -> Tensor:
        if torch.is_grad_enabled():
            return self.function(*arguments)
        shapes = tuple(None if each is None else (each.shape, each.dtype, each.stride()) for each in arguments)
        if shapes not in self.recorded:
            kept, result = [None if each is None else each.clone() for each in arguments], list[Tensor]()

            def compute() -> None:
                result[:] = [self.function(*kept)]

            self.recorded[shapes] = kept, result, Captured(compute)
        kept, result, captured = self.recorded[shapes]
        for place, given in zip(kept, arguments, strict=True):
            if place is not None and given is not None:
                place.copy_(given)
        captured()
        return result[0].clone()
