"""Errors that the user can correct, with a message of at most four lines; every other error is our bug."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


class UserError(Exception):
    """A mistake that the user can correct. The message names what was given, what was expected, the key to change."""

    exit_code = 1


class UsageError(UserError):
    """The command line itself is wrong: an unknown key, option or value."""

    exit_code = 2


class Refused(ValueError):
    """An argument that a function or class does not accept: its name, and what is wrong with it.

    In Python the message is one sentence, "beta_start must be between 0 and 1, not 2"; on the command line the group
    of the argument comes before it, "schedule.beta_start must be between 0 and 1, not 2".
    """

    def __init__(self, argument: str, reason: str):
        super().__init__(argument, reason)
        self.argument, self.reason = argument, reason

    def __str__(self) -> str:
        return f"{self.argument} {self.reason}"


class Terminated(BaseException):
    """Raised at SIGTERM or SIGHUP, as KeyboardInterrupt is at Ctrl-C; the exit code is 128 + the signal's number."""

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = 128 + number


def check(holds: bool, argument: str, expected: str, given: object) -> None:
    """Raise Refused, "<argument> must be <expected>, not <given>", unless the condition holds."""
    if not holds:
        raise Refused(argument, f"must be {expected}, not {given}")


def check_choice(argument: str, given: object, allowed: Collection[str]) -> None:
    """Raise Refused, with the most similar of the allowed words, if the given one is not among them."""
    hint = did_you_mean(str(given), allowed)
    check(isinstance(given, str) and given in allowed, argument, f"one of {', '.join(allowed)}", f"{given!r}.{hint}")


def require_choice(key: str, given: object, allowed: Collection[str]) -> None:
    """`check_choice` for a full key of the command line: raises UsageError."""
    try:
        check_choice(key, given, allowed)
    except Refused as error:
        raise UsageError(str(error)) from error


def pick(options: Mapping[str, Entry], key: str, given: object) -> Entry:
    """The option of that name. Raises UsageError, with the key and all names, if there is no such option."""
    require_choice(key, given, options)
    return options[str(given)]


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' if one of the known words is similar to the given one, otherwise ''."""
    by_lower_case = {word.lower(): word for word in known}
    close = difflib.get_close_matches(given.lower(), by_lower_case, n=1, cutoff=0.5)
    return f" Did you mean {by_lower_case[close[0]]!r}?" if close else ""
