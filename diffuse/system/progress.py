"""Log lines, a progress bar on a terminal and plain lines elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger("diffuse")
SECONDS_BETWEEN_PLAIN_LINES = 15.0


class _Console(logging.Handler):
    """Prints to standard output, above a progress bar if there is one; warnings and errors go to standard error.

    speaker begins each line where several processes share a terminal.
    """

    def __init__(self, speaker: str):
        super().__init__()
        self.speaker = speaker

    def emit(self, record: logging.LogRecord) -> None:
        trouble = record.levelno >= logging.WARNING
        prefix = self.speaker + (f"{record.levelname.lower()}: " if trouble else "")
        try:
            tqdm.write(prefix + record.getMessage(), file=sys.stderr if trouble else sys.stdout)
        except OSError:  # the terminal, or the program that read our output, has gone: not a reason to lose a run
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


class _LogFile(logging.FileHandler):
    """A log that is silent where the disk is full: what fails because of that is said on the console."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def log_to_console(speaker: str = "") -> None:
    """Show log messages; calling it again changes nothing but the speaker.

    speaker is for one of several processes that share a terminal: it begins each line, and there are no bars.
    """
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [handler for handler in log.handlers if not isinstance(handler, _Console)] + [_Console(speaker)]


def is_shared_terminal() -> bool:
    """Whether other processes write to this terminal too."""
    return any(isinstance(handler, _Console) and handler.speaker for handler in log.handlers)


@contextmanager
def logged_to(path: Path) -> Iterator[Callable[[int, str], object]]:
    """Append log messages, with date and time, to a file; gives a function (level, message) that logs there alone."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield lambda level, message: handler.handle(log.makeRecord(log.name, level, "", 0, message, (), None))
    finally:
        log.removeHandler(handler)
        handler.close()


class Progress:
    """How far a loop of `total` units is: a bar on a terminal, else a line every 15 seconds. Use as a context.

    done counts the units that were finished before the loop began; scale turns a unit into what is shown for each
    second (images a step, say).
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0, scale: float = 1.0, shown: str | None = None):
        self.what, self.total, self.unit, self.done, self.scale = what, total, unit, done, scale
        self.shown = shown or f"{unit}s"
        self.started = self.last_line = time.monotonic()
        self.start = done
        self.asked = (done, self.started)
        self.note: dict[str, str] = {}
        terminal = sys.stderr.isatty() and not is_shared_terminal()
        self.bar = tqdm(
            total=total, initial=done, desc=what, unit=unit, dynamic_ncols=True, leave=False, disable=not terminal
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def tell(self, note: Mapping[str, str]) -> None:
        """What to show beside the numbers, from now on."""
        self.note = dict(note)

    def advance(self, units: int = 1) -> None:
        self.done += units
        if not self.bar.disable:
            self.bar.set_postfix_str(", ".join(self._notes()), refresh=False)
            self.bar.update(units)
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_PLAIN_LINES and self.done < self.total:
            self.last_line = time.monotonic()
            so_far = f"{self.what} {self.done:,}/{self.total:,} {self.unit}s"
            left = f"{duration((self.total - self.done) / self.per_second())} left"
            log.info(", ".join([so_far, *self._notes(), left]))

    def _notes(self) -> list[str]:
        speed = f"{self.per_second() * self.scale:,.0f} {self.shown}/s"
        return [*(f"{name} {value}" for name, value in self.note.items()), speed]

    def count_from_here(self) -> None:
        """Leave what came before, such as steps that warm up, out of every rate."""
        self.started, self.start = time.monotonic(), self.done
        self.asked = (self.start, self.started)

    def per_second(self) -> float:
        """Units a second since the loop began, pauses aside."""
        return max(self.done - self.start, 1e-9) / max(time.monotonic() - self.started, 1e-9)

    def per_second_since_last_asked(self) -> float:
        """Units a second since this was asked last, or since the loop began, pauses aside."""
        (done, then), now = self.asked, time.monotonic()
        self.asked = (self.done, now)
        return (self.done - done) / max(now - then, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in this context does not count."""
        began = time.monotonic()
        try:
            yield
        finally:
            pause = time.monotonic() - began
            self.started += pause
            self.asked = (self.asked[0], self.asked[1] + pause)


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.4 h' or '2.1 days', the way a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
