"""Log lines, and how far a long loop is: a progress bar on a terminal, plain lines elsewhere."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

tqdm.set_lock(threading.RLock())  # its own is shared with other processes, and stays where one is killed
log = logging.getLogger("diffuse")
SECONDS_BETWEEN_PLAIN_LINES = 15.0
WORTH_SAYING = 60.0  # seconds


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
    """A log file that stays silent when the disk is full: the error that this causes elsewhere is on the console."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def log_to_console(speaker: str = "", rank: int = 0) -> None:
    """Show log messages; calling it again changes nothing but the speaker and the rank.

    speaker is for one of several processes that share a terminal: it begins each line, and there are no bars. Of the
    processes of one command only that of rank 0 shows anything: the others would say the same.
    """
    log.setLevel(logging.INFO)
    log.propagate = False
    console = _Console(f"{speaker}rank {rank}: " if rank else speaker)
    console.setLevel(logging.CRITICAL if rank else logging.NOTSET)
    log.handlers = [handler for handler in log.handlers if not isinstance(handler, _Console)] + [console]


@contextmanager
def log_to_file(path: Path) -> Iterator[Callable[[int, str], object]]:
    """Append log messages, with date and time, to a file; gives a function (level, message) that logs only there."""
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
    """A loop of `total` units: a bar on a terminal, otherwise a line every 15 seconds. Use as a context.

    done counts the units that were finished before the loop began. Speed is shown in units per second, or in `shown`
    per second where a unit has `scale` of them: a step has many images. `note` is text to show beside it.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0, scale: float = 1.0, shown: str | None = None):
        self.what, self.total, self.unit, self.done, self.scale = what, total, unit, done, scale
        self.shown = shown or f"{unit}s"
        self.note = ""
        self.last_line = time.monotonic()
        self.pauses = 0.0
        self.count_from_here()
        # None lets tqdm decide: it shows a bar on a terminal alone.
        off = any(isinstance(handler, _Console) and handler.speaker for handler in log.handlers) or None
        self.bar = tqdm(total=total, initial=done, desc=what, unit=unit, dynamic_ncols=True, leave=False, disable=off)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, units: int = 1) -> None:
        self.done += units
        if not self.bar.disable:
            self.bar.set_postfix_str(self._speed(), refresh=False)
            self.bar.update(units)
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_PLAIN_LINES and self.done < self.total:
            self.last_line = time.monotonic()
            left = duration((self.total - self.done) / self.per_second())
            log.info(f"{self.what} {self.done:,}/{self.total:,} {self.unit}s, {self._speed()}, {left} left")

    def _speed(self) -> str:
        speed = f"{self.per_second() * self.scale:,.0f} {self.shown}/s"
        return f"{self.note}, {speed}" if self.note else speed

    def count_from_here(self) -> None:
        """Leave what came before, such as steps that warm up, out of every rate."""
        self.start = self.asked = (self.done, self._clock())

    def per_second(self) -> float:
        """Units per second since the loop began, pauses excluded."""
        return self._rate_since(self.start)

    def per_second_since_last_asked(self) -> float:
        """Units per second since the last call, or since the loop began, pauses excluded."""
        rate, self.asked = self._rate_since(self.asked), (self.done, self._clock())
        return rate

    def _rate_since(self, begun: tuple[int, float]) -> float:
        return max(self.done - begun[0], 1e-9) / max(self._clock() - begun[1], 1e-9)

    def _clock(self) -> float:
        return time.monotonic() - self.pauses

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in this context does not count."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.pauses += time.monotonic() - began


def log_cost(costs: Mapping[str, float]) -> None:
    """Say before it begins what will take long: {"drawing 10,000 images": seconds, ...}; nothing below a minute."""
    total = sum(costs.values())
    if total >= WORTH_SAYING:
        parts = [f"{what} {duration(seconds)}" for what, seconds in costs.items() if seconds >= 1]
        log.info(f"about {duration(total)} from here" + (f": {', '.join(parts)}" if len(parts) > 1 else ""))


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.4 h' or '2.1 days'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
