"""Start several processes of one command on this machine with PyTorch's elastic launcher, as torchrun does.

Where one of them is killed, the others end and all are started again, up to `restarts` times: a training goes on from
its newest checkpoint, a sampling after its last image. Any other failure ends the command.
"""

import gc
import logging
import os
import pickle
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import active_children, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from diffuse.system.errors import Terminated, UserError
from diffuse.system.joining import leave
from diffuse.system.progress import log, log_to_console
from diffuse.system.ranks import OURS, rank_here
from diffuse.system.replies import PeerLost, portable
from diffuse.system.signals import AtOnce, end, handle_signals, signals

POLL = 0.05  # seconds


def launch_processes(count: int, restarts: int, speaker: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) in `count` processes, which find each other by `joining.join`: the leader's result.

    speaker begins each line of the log. Raises what a process failed with, and the exception of a signal that this
    process or one of them received, once all have ended.
    """
    name = f"{OURS}{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory(prefix="diffuse-") as notes:
        for attempt in range(restarts + 1):
            folder = Path(notes) / str(attempt)
            folder.mkdir()
            found = _Attempt(count, name, folder).run(folder, speaker, function, arguments)
            gc.collect()  # or the semaphores of the processes stay, and Python warns of them
            if not found.killed:
                break
            if attempt < restarts:
                log.warning(f"{found.killed}: all {count} processes start again ({attempt + 1} of {restarts} times)")
        if found.killed:
            raise UserError(f"{found.killed}, after {restarts} restarts (device.restarts): give the command again")
        return found.result


@dataclass
class _Attempt:
    """One start of all processes. notes: a folder in which each writes its process number, and its error."""

    count: int
    name: str
    notes: Path
    signal: int | None = None
    children: dict[int, BaseProcess] = field(default_factory=dict)  # by process number
    first: dict[int, int] = field(default_factory=dict)  # the exit codes of those that failed first
    results: dict[int, Any] = field(default_factory=dict)  # by rank
    killed: str = ""
    result: Any = None
    error: Exception | None = None

    def run(self, *work: Any) -> "_Attempt":
        """Start the processes, each of which calls _work(*work), hand signals on to them, and wait for their end.

        The launcher's own thread starts them. It blocks signals, and so do the processes until they are ready for them.
        """
        thread = threading.Thread(target=self._start, args=work, name="launcher")
        with handle_signals(self._hand_on):
            thread.start()
            while thread.is_alive():
                thread.join(POLL)
                self._watch()
            self._watch()
        self._judge()
        return self

    def _start(self, *work: Any) -> None:
        from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # we say what happens
        resource_tracker.ensure_running()  # when it starts, it unblocks signals
        signal.pthread_sigmask(signal.SIG_BLOCK, signals())
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.count,
            run_id=self.name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,  # which failures are worth another start is decided here
            logs_specs=DefaultLogsSpecs(log_dir=str(self.notes / "logs")),  # or each start leaves a folder in /tmp
        )
        try:
            self.results = elastic_launch(config, _work)(*work)
        except ChildFailedError:  # `first` and the notes say more
            pass
        except Exception as error:  # of the launcher itself
            self.error = error

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        for child in self.children.values():
            _send(child, number)

    def _watch(self) -> None:
        """Find the processes, and those that fail first. A process that starts after a signal gets it too."""
        for child in active_children():
            if child.pid is not None and child.pid not in self.children:
                self.children[child.pid] = child
                if self.signal:
                    _send(child, self.signal)
        if not self.first:
            codes = {number: child.exitcode for number, child in self.children.items()}
            self.first = {number: code for number, code in codes.items() if code}

    def _judge(self) -> None:
        """Raise what the attempt failed with, or note who was killed, or the leader's result."""
        errors = {rank: error for rank in range(self.count) if (error := self._error(rank))}
        for rank, error in errors.items():
            if not isinstance(error, PeerLost):
                raise error if not rank or not isinstance(error, UserError) else type(error)(f"rank {rank}: {error}")
        if self.error:
            raise self.error
        stopped = [result.signal for result in self.results.values() if isinstance(result, _Stopped)]
        if number := self.signal or next(iter(stopped), None):
            end(number)
        if len(self.results) == self.count:
            self.result = self.results[0]
            return
        if errors and all(code > 0 for code in self.first.values()):  # nobody was killed: that connection is the reason
            raise errors[min(errors)]
        # SIGTERM is what the elastic launcher sends to the others.
        code = min(self.first.values(), key=lambda code: (code >= 0, code == -signal.SIGTERM), default=0)
        ranks = {int(path.read_text()): path.stem for path in self.notes.glob("*.process")}
        who = next((ranks.get(number) for number, each in self.first.items() if each == code), None)
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        self.killed = f"{f'rank {who}' if who else 'a process'} {how}"

    def _error(self, rank: int) -> BaseException | None:
        with suppress(Exception):  # there is none, or a killed process has not finished it
            error = pickle.loads((self.notes / f"{rank}.error").read_bytes())
            return error if isinstance(error, BaseException) else None
        return None


@dataclass(frozen=True)
class _Stopped:
    """The result of a process that a signal asked to end."""

    signal: int


def _send(child: BaseProcess, number: int) -> None:
    if child.pid is not None and child.is_alive():
        with suppress(ProcessLookupError):
            os.kill(child.pid, number)


def _work(notes: Path, speaker: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What each process does: the function, as the whole program of that process."""
    rank, parent = rank_here(), os.getppid()
    (notes / f"{rank}.process").write_text(str(os.getpid()))
    log_to_console(speaker, rank)
    with handle_signals(AtOnce(waits=True)):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals())
        try:
            return function(*arguments)
        except (KeyboardInterrupt, Terminated) as stop:
            return _Stopped(stop.exit_code - 128 if isinstance(stop, Terminated) else signal.SIGINT)
        except BaseException as error:
            (notes / f"{rank}.error").write_bytes(pickle.dumps(portable(error)))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # at once: an orderly end of NCCL may wait for what the others have queued
        finally:
            leave()
            if os.getppid() != parent:  # the launcher was killed: nobody waits for what this process has to say
                os._exit(1)
