"""How the system asks a program to end, by SIGINT (Ctrl-C), SIGTERM or SIGHUP: at once, or at a good moment."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NoReturn

from diffuse.system.errors import Terminated

Handler = Callable[[int, FrameType | None], None]
# Closing a terminal, or logging out, sends several signals at once: together they are one request.
IMPATIENT_AFTER = 2.0


def signals() -> list[signal.Signals]:
    """The signals that ask us to end. SIGHUP, a terminal that was closed, is not one of them under `nohup`."""
    ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignores_hangup else [signal.SIGHUP])]


@contextmanager
def handle_signals(handler: Handler, stays: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Call handler(signal, frame) for each of them; after the context the earlier handlers return, unless it stays().

    Only the main thread receives signals: in another thread nothing is changed.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in signals() if in_main_thread}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, handler if stays() else previous or signal.SIG_DFL)


def end(number: int) -> NoReturn:
    """Raise the exception of a signal: KeyboardInterrupt or Terminated."""
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


class AtOnce:
    """The handler that raises the exception of a signal wherever the program is, and remembers the signal.

    In the middle of an import it does not raise: a library that is loaded by half may crash. Then `raise_pending` does,
    at the next step of whatever follows. before is called at the first signal, and may wait for other processes. With
    `once`, later signals do nothing. With `waits`, only `raise_pending` raises at the first signal: a process that
    sends something to others must not stop in the middle.
    """

    def __init__(self, before: Callable[[], None] = lambda: None, once: bool = False, waits: bool = False):
        self.before, self.once, self.waits = before, once, waits
        self.received: int | None = None
        self.since = 0.0

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        first = self.received is None
        if self.once and not first:
            return
        self.received = number
        if first:
            self.since = time.monotonic()
            self.before()
        if self.waits and time.monotonic() - self.since < IMPATIENT_AFTER:
            return
        if not is_importing(frame):
            end(number)


def is_importing(frame: FrameType | None) -> bool:
    """Whether an import is under way in a frame, or in one that called it."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def pending() -> int | None:
    """The last signal for which AtOnce raised an exception, while it is the handler."""
    handler = signal.getsignal(signal.SIGINT)
    return handler.received if isinstance(handler, AtOnce) else None


def raise_pending() -> None:
    """Raise the exception of a signal again if it was raised and lost: Python drops exceptions in destructors.

    Call it between the steps of anything long.
    """
    if (number := pending()) is not None:
        end(number)


class Stop(ExitStack):
    """A request to stop, which waits until the program is ready; a second one, later, does not. Use as a context."""

    def __init__(self) -> None:
        super().__init__()
        self.signal = pending()
        self.since = time.monotonic()

    def take(self, number: int) -> None:
        """Take over a signal that another process of the command has received; 0 for none."""
        if number and self.signal is None:
            self.signal, self.since = number, time.monotonic()

    def __enter__(self) -> "Stop":
        self.enter_context(handle_signals(self._note))
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.take(number)
        elif number in (signal.SIGINT, signal.SIGTERM) and time.monotonic() - self.since > IMPATIENT_AFTER:
            end(number)

    def obey(self) -> None:
        """Raise the exception of the signal, if one has come."""
        if self.signal is not None:
            end(self.signal)


@contextmanager
def end_at_first_signal(waits: bool = False) -> Iterator[None]:
    """A job in a process that a launcher started: the first signal ends it, and the process begins no other job.

    Ctrl-C reaches every process of a terminal, and the first of them asks the others to end: that is one request.
    waits: as for AtOnce.
    """
    raise_pending()
    handler = AtOnce(once=True, waits=waits)
    with handle_signals(handler, stays=lambda: handler.received is not None):
        try:
            yield
        except (KeyboardInterrupt, Terminated) as stop:  # perhaps raised by another handler, such as Stop
            handler.received = stop.exit_code - 128 if isinstance(stop, Terminated) else signal.SIGINT
            raise
