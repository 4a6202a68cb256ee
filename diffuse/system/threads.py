"""CPU threads: how many there are to use, and function calls spread over them, each computed by a single thread.

Threads that share one operation wait for each other: ten times as long as they compute if another program takes a core
away. And their number may change the order of a sum, and so its last bits. Calls computed by a single thread have
neither problem. This module imports torch only when it is used, so that a process that decodes images starts at once.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_from_environment() -> int | None:
    """The number of threads in OMP_NUM_THREADS; None without a valid number."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(first) if first.isdecimal() and int(first) > 0 else None


class Workers:
    """`count` threads, each of which computes alone: results do not depend on their number."""

    def __init__(self, count: int):
        self.count = count
        self._here = threading.local()
        self._pool = ThreadPoolExecutor(count, "diffuse", self._begin)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The results for all items, in their order; gradients are recorded if they are for the caller.

        A call from inside a worker is computed by that worker: two that wait for each other would wait for ever.
        """
        import torch

        if getattr(self._here, "is_worker", False):
            return [function(item) for item in items]
        recorded = torch.is_grad_enabled()

        def call(item: Item) -> Result:
            with torch.set_grad_enabled(recorded):
                return function(item)

        return list(self._pool.map(call, items))

    def _begin(self) -> None:
        import torch

        torch.set_num_threads(1)  # for this thread; the others keep their number
        self._here.is_worker = True
