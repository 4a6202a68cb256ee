"""Several processes that compute one command, on one machine or on many: started by torchrun, Slurm or `launcher`.

The first process (rank 0) leads: it alone reads and writes the files of a command. The others follow: they wait for
its tasks, compute their share and send it back. In a training all of them take every step together, and follow only
between steps. Without torchrun's environment there is one process, for which everything here does nothing.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from diffuse.system.pairwise import sum_over
from diffuse.system.replies import PeerLost, Reply, attempt, connection, raise_first, sendable

# A process that follows waits for as long as the leader works alone. If the leader's process ends, so does the wait; of
# a machine that is cut off nothing comes, and torchrun or Slurm has to notice it.
FOLLOW = timedelta(days=30)

Item = TypeVar("Item")
Result = TypeVar("Result")
Task = Callable[[Any], Any]


class Dismissed(Exception):
    """The leader has ended the command: a process that follows has nothing more to do."""


@dataclass(frozen=True)
class _Order:
    """What the leader sends to a process: the name of a task, its item, and whether an answer is expected."""

    task: str = ""
    item: Any = None
    answered: bool = True


@dataclass(frozen=True)
class _Dismissal:
    """The leader's last word in a round of tasks; `ended`: there will be no other round."""

    value: Any = None
    ended: bool = False


_NOTHING = _Order()  # for a process without an item in this round


@dataclass
class Processes:
    """The processes of a command, and what they send each other.

    rank, count              the number of this process, from 0, and how many there are
    local_rank, local_count  the same among those on this machine
    store                    a table that all processes read and write; None for a single one
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    store: Any = None
    offered: Collection[str] = ()  # what the leader knows of the others: which tasks they wait for
    following: bool = False  # and whether they wait at all
    levels: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # the groups that add up, by kind of device
    _published: dict[str, int] = field(default_factory=dict)

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor [n], on every process, by the sum over all of them: `pairwise_sum` in their order.

        Every process of a machine adds up a piece, adds to it those of other machines, and sends its sum to the others
        of its machine: as many bytes on every link as other methods have, but in a known order.
        """
        if self.count > 1:
            recorded = tensor.is_cuda and torch.cuda.is_current_stream_capturing()  # whose errors are about recording
            with nullcontext() if recorded else connection():
                tensor.copy_(sum_over(tensor, self.levels[tensor.device.type]))

    def largest(self, *numbers: int) -> list[int]:
        """The largest of the numbers that each process gives, for each place."""
        if self.count == 1:
            return list(numbers)
        found = torch.tensor(numbers, dtype=torch.int64)
        with connection():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def of_all(self, value: Result) -> list[Result]:
        """The values of all processes, on every process: all call this at the same point."""
        values: list[Any] = [value] * self.count
        if self.count > 1:
            with connection():
                dist.all_gather_object(values, value)
        return values

    def from_leader(self, value: Result) -> Result:
        """The leader's value, on every process: all call this at the same point."""
        if self.count == 1:
            return value
        values = [value]
        with connection():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def published(self, name: str, value: str) -> str:
        """The leader's value, for which the others wait, whatever they do before."""
        if self.count == 1:
            return value
        number = self._published[name] = self._published.get(name, 0) + 1
        if self.rank == 0:
            self.store.set(f"{name}/{number}", value)
            return value
        with connection():
            self.store.wait([f"{name}/{number}"], FOLLOW)
            return str(self.store.get(f"{name}/{number}").decode())

    # What all call

    def command(
        self,
        build: Callable[[], Item],
        tasks: Callable[[Item], Mapping[str, Task]],
        lead: Callable[[Item], dict[str, float]],
    ) -> dict[str, float]:
        """A whole command: lead(built), while the others follow with tasks(built). Empty for those.

        built = build() on every process, the leader's first, since it may prepare files that the others then find.
        """
        with suppress(Dismissed):
            built = self.leader_first(build)
            if self.rank:
                self.follow(tasks(built))
            with self.leading(tasks(built)):
                return lead(built)
        return {}

    # What the leader calls

    @contextmanager
    def leading(self, tasks: Collection[str]) -> Iterator[None]:
        """The others follow, with these tasks, until the end of this context, and the command of all ends with it."""
        self.following, self.offered = self.count > 1, tasks
        try:
            yield
        finally:
            if self.following:
                self.following = False
                with suppress(PeerLost):  # whatever is under way says more
                    self._send([_Dismissal(ended=True)] * self.count)

    def map(self, task: str, items: Iterable[Item], own: Callable[[Item], Result]) -> Iterator[tuple[Item, Result]]:
        """Each item with own(item), in order: item i is computed by process i mod count, which knows `own` as `task`.

        Where the others do not follow with that task, the leader computes all. Where one fails, its error is raised
        here, with its rank.
        """
        if self.count == 1 or task not in self.offered:
            yield from ((item, own(item)) for item in items)
            return
        rest = iter(items)
        while group := list(islice(rest, self.count)):
            orders = [_Order(task, item) for item in group]
            self._send(orders + [_NOTHING] * (self.count - len(group)))
            mine = attempt(own, group[0])
            replies = self._gather(mine)
            raise_first([mine, *replies[1:]])
            yield from ((item, reply[1]) for item, reply in zip(group, replies, strict=False))

    def of_each(self, task: str, own: Callable[[Any], Result], item: Any = None) -> list[Result]:
        """The result of a task on every process, in the order of their ranks."""
        return [result for _, result in self.map(task, [item] * self.count, own)]

    @contextmanager
    def in_step(self, task: str, agreed: type[Exception]) -> Iterator[None]:
        """A task that all processes take together, step by step, after which the others follow again.

        So they do after an error of the type `agreed`, which all raise at the same step. Where the leader alone fails,
        nothing can be sent to them any more: their connection to it ends.
        """
        if self.count > 1:
            self._send([_Order(task, answered=False)] * self.count)
        before, self.following, self.offered = self.offered, False, ()
        try:
            yield
            self.following = self.count > 1
        except agreed:
            self.following = self.count > 1
            raise
        self.offered = before

    def led(self, action: Callable[[], Result], tasks: Mapping[str, Task]) -> Result:
        """Between two steps: the leader's action, while the others follow. Its result, on every process."""
        if self.rank:
            return self.follow(tasks)  # type: ignore[no-any-return]
        self.following, self.offered = self.count > 1, tasks
        result = action()
        if self.following:
            self._send([_Dismissal(result)] * self.count)
        self.following, self.offered = False, ()
        return result

    # What the others call

    def follow(self, tasks: Mapping[str, Task]) -> Any:
        """Compute the leader's tasks until it goes on with something else; its value then.

        Raises Dismissed at the end of the command.
        """
        while True:
            received: list[Any] = [None]
            with connection():
                dist.scatter_object_list(received, src=0)
            (order,) = received
            if isinstance(order, _Dismissal):
                if order.ended:
                    raise Dismissed
                return order.value
            if not order.answered:
                tasks[order.task](order.item)
            else:
                self._gather(attempt(tasks[order.task], order.item) if order.task else (None, None))

    # What both are made of

    def leader_first(self, build: Callable[[], Result]) -> Result:
        """build() on every process: first on the leader, which may prepare files that the others then find.

        Raises the error of any process on the leader, and Dismissed on the others.
        """
        if self.count == 1:
            return build()
        reply: Reply = (None, None)
        if self.rank == 0:
            reply = attempt(lambda _: build(), None)
        if not self.from_leader(reply[0] is None):
            if self.rank == 0:
                raise_first([reply])
            raise Dismissed
        if self.rank:
            reply = attempt(lambda _: build(), None)
        failures = self.of_all(sendable((reply[0], None)))
        if any(failure for failure, _ in failures):
            if self.rank == 0:
                raise_first(failures)
            raise Dismissed
        return reply[1]  # type: ignore[no-any-return]

    def _send(self, orders: Sequence[Any]) -> None:
        with connection():
            dist.scatter_object_list([None], list(orders), src=0)

    def _gather(self, reply: Reply) -> list[Reply]:
        replies: list[Any] | None = [None] * self.count if self.rank == 0 else None
        with connection():
            dist.gather_object(sendable(reply), replies, dst=0)
        return replies or []
