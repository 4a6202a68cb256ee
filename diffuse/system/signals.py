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


def signals() -> list[signal.Signals]:
    """The signals that ask us to end. SIGHUP, a terminal that was closed, is none of them under `nohup`."""
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
        Asked.signal = None if handler is at_once else Asked.signal
        for number, previous in before.items():
            signal.signal(number, previous or signal.SIG_DFL)


# Closing a terminal, or logging out, sends several signals at once: together they are one wish.
IMPATIENT_AFTER = 2.0


class Asked:
    """The last signal that asked us to end at once. What it raises may get lost: Python drops a destructor's errors."""

    signal: int | None = None

    @classmethod
    def again(cls) -> None:
        """Raise once more what was raised and lost; call it between the steps of anything long."""
        if cls.signal is not None:
            end(cls.signal)


def end(number: int) -> NoReturn:
    """Raise what a signal stands for."""
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def at_once(number: int, _: FrameType | None = None) -> None:
    """The handler that raises KeyboardInterrupt or Terminated wherever the program is."""
    Asked.signal = number
    end(number)


class Stop:
    """A wish to stop that waits until the program is ready for it; one repeated later does not. Use as a context."""

    def __init__(self) -> None:
        self.signal = Asked.signal
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
