"""A CUDA graph: all that a function does on the device, recorded once and then started as one operation."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffuse.system.errors import UserError
from diffuse.system.progress import log

# Before, a failed recording leaves random numbers and memory in the state of a recording (pytorch #176752, #180395).
RECOVERS = torch.__version__ >= (2, 12)  # type: ignore[operator]
FIRST_CALLS = 3  # they compile, choose algorithms for convolutions and make tensors that stay; then it is recorded


class Captured:
    """A function without arguments or result, recorded as a CUDA graph after a few calls, and replayed from then on.

    It must read and write tensors that stay where they are, never wait for the device, and copy nothing from the CPU.
    Random numbers of torch's generator go on in a replay from the seed that it has then. Every call does what the
    function does, the first ones and the recorded one too. Where it cannot be recorded a warning says why, and the
    function is called as it is from then on; before torch 2.12, which cannot go on, a UserError says it.

    clear  called after a failed recording, before the function is called again
    """

    def __init__(self, function: Callable[[], None], clear: Callable[[], object] = lambda: None):
        self.function, self.clear = function, clear
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.failed = False

    @property
    def recorded(self) -> bool:
        return self.graph is not None

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
            self.graph.replay() if self.graph else self.function()

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.function()
            self.graph = graph
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.failed = True
            first: BaseException = error  # the end of a recording raises an error of its own about the one inside
            while first.__context__ is not None:
                first = first.__context__
            why = (str(first).strip().splitlines() or [type(first).__name__])[0]
        if self.failed:
            self.give_up(f"device.capture: this cannot be recorded as a CUDA graph: {why}")

    def give_up(self, message: str) -> None:
        """Go on without a graph, with a warning. Raises UserError where torch cannot compute after such a failure."""
        if not RECOVERS:
            raise UserError(f"{message}\nLeave out device.capture: torch {torch.__version__} cannot go on after that")
        self.clear()
        torch.cuda.synchronize()
        log.warning(f"{message}; it is computed without")


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
        shapes = tuple(None if each is None else (each.shape, each.dtype) for each in arguments)
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
