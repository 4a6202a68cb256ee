"""How a program is asked to end: Ctrl-C (SIGINT), SIGTERM, SIGHUP; at once, or at a moment that suits."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from diffuse.system.errors import Terminated

Handler = Callable[[int, FrameType | None], None]
# Closing a terminal, or logging out, sends several signals at once: together they are one wish.
IMPATIENT_AFTER = 2.0


def signals() -> list[signal.Signals]:
    """The signals that ask us to end. SIGHUP, a terminal that was closed, is not one of them under `nohup`."""
    asked = [signal.SIGINT, signal.SIGTERM]
    hung_up = getattr(signal, "SIGHUP", None)  # not on Windows
    return asked if hung_up is None or signal.getsignal(hung_up) is signal.SIG_IGN else [*asked, hung_up]


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Call handler(signal, frame) for each of them, and the handlers there were before once the context is left.

    Signals reach the main thread alone: in another one, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals()}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous or signal.SIG_DFL)


def end(number: int) -> NoReturn:
    """Raise what a signal stands for: KeyboardInterrupt or Terminated."""
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


class AtOnce:
    """The handler that raises what a signal stands for wherever the program is, and remembers that it did.

    before is called first, unless a signal came already: it may wait for other processes.
    """

    def __init__(self, before: Callable[[], None] | None = None):
        self.before = before
        self.received: int | None = None

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        first, self.received = self.received is None, number
        if self.before and first:
            self.before()
        end(number)


def pending() -> int | None:
    """The last signal that AtOnce raised, while it is the handler."""
    handler = signal.getsignal(signal.SIGINT)
    return handler.received if isinstance(handler, AtOnce) else None


def raise_pending() -> None:
    """Raise once more what a signal stands for, if it was raised and got lost: Python drops a destructor's errors.

    Call it between the steps of anything long.
    """
    if (number := pending()) is not None:
        end(number)


class Stop:
    """A wish to stop that waits until the program is ready for it; one repeated later does not. Use as a context."""

    def __init__(self) -> None:
        self.signal = pending()
        self.since = time.monotonic()
        self._context = handled_by(self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self.since = number, time.monotonic()
        elif number in (signal.SIGINT, signal.SIGTERM) and time.monotonic() - self.since > IMPATIENT_AFTER:
            end(number)

    def __enter__(self) -> "Stop":
        self._context.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)

    def obey(self) -> None:
        """Raise what the signal stands for, if one has come."""
        if self.signal is not None:
            end(self.signal)


class Once(AtOnce):
    """`AtOnce` for the first signal, and nothing for those after it."""

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        if self.received is None:
            super().__call__(number, frame)


@contextmanager
def ended_once() -> Iterator[None]:
    """A job in a process that a launcher started: the first signal ends it, and the process begins no other.

    Ctrl-C reaches every process of a terminal, and the first of them asks the others to end: that is one wish.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raise_pending()
    handler, asked = Once(), False
    before = {number: signal.signal(number, handler) for number in signals()}
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        asked, handler.received = True, stop.exit_code - 128 if isinstance(stop, Terminated) else signal.SIGINT
        raise
    finally:
        for number, previous in before.items():  # after a signal the handler stays: it is what the process remembers
            signal.signal(number, handler if asked else previous or signal.SIG_DFL)
