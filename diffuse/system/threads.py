"""CPU threads: how many there are to use, and calls that are spread over them, each computed by one thread alone.

Threads that share one operation wait for each other, ten times as long as they compute where another program takes a
core away; and sums may come out in another order with another number of them. Calls that a single thread computes have
neither problem. This module imports torch only when it is used, so that a process that decodes images starts at once.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
VARIABLE = "OMP_NUM_THREADS"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_from_environment() -> int | None:
    """The number of threads that OMP_NUM_THREADS asks for; None where it does not."""
    first = os.environ.get(VARIABLE, "").partition(",")[0]
    return int(first) if first.isdecimal() and int(first) > 0 else None


class Workers:
    """So many threads, each of which computes alone: results do not depend on how many there are."""

    def __init__(self, count: int):
        self.count = count
        self._here = threading.local()

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The results for all items, in their order; gradients are recorded where they are for the caller.

        A call from within a worker is computed by that worker.
        """
        import torch

        if getattr(self._here, "is_worker", False):
            return [function(item) for item in items]
        recorded = torch.is_grad_enabled()

        def call(item: Item) -> Result:
            with torch.set_grad_enabled(recorded):
                return function(item)

        return list(self._pool.map(call, items))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.count, "diffuse", self._begin)

    def _begin(self) -> None:
        import torch

        torch.set_num_threads(1)  # of this thread; the others keep their number
        self._here.is_worker = True
