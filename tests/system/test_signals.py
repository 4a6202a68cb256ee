"""Signals: obeyed at once or when it suits, never lost, and left as they were found."""

import signal
import threading

import pytest

from diffuse.system import signals as stopping
from diffuse.system.errors import Terminated
from diffuse.system.signals import AtOnce, Stop, handle_signals, pending, raise_pending


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_at_once_means_at_once(number, error):
    with handle_signals(AtOnce()), pytest.raises(error):
        signal.raise_signal(number)
    assert pending() is None  # the next command in this process does not end by it
    raise_pending()


def test_what_is_to_be_done_first_is_done_once():
    """A second signal, while it waits, does not wait."""
    calls = []

    def wait() -> None:
        calls.append("waited")
        signal.raise_signal(signal.SIGTERM)

    with handle_signals(AtOnce(wait)), pytest.raises(Terminated):
        signal.raise_signal(signal.SIGINT)
    assert calls == ["waited"]


def test_exit_codes_are_those_of_a_shell():
    assert [Terminated(number).exit_code for number in (signal.SIGTERM, 1)] == [143, 129]


def test_a_wish_waits_until_it_is_obeyed():
    with Stop() as stop:
        assert stop.signal is None
        stop.obey()
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        with pytest.raises(Terminated):
            stop.obey()


@pytest.mark.parametrize("pair", [(signal.SIGHUP, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)])
def test_signals_that_come_together_are_one_wish(pair):
    with Stop() as stop:
        for number in pair:
            signal.raise_signal(number)
        assert stop.signal == pair[0]


def test_a_wish_that_is_repeated_later_does_not_wait(monkeypatch):
    monkeypatch.setattr(stopping, "IMPATIENT_AFTER", 0.0)
    with Stop():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_left_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with handle_signals(AtOnce()), Stop():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_under_nohup_a_closed_terminal_is_no_wish():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_destructor_swallowed_is_not_lost():
    class Swallows:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    with handle_signals(AtOnce()):
        Swallows()
        with pytest.raises(KeyboardInterrupt):
            raise_pending()
        assert Stop().signal == signal.SIGINT


def test_another_thread_changes_no_handler():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with Stop():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
