"""Failures that the user can mend, with a message of at most four lines; everything else is our bug."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

Option = TypeVar("Option")


class UserError(Exception):
    """Something the user can mend. The message names what was given, what was expected and the key to change."""

    exit_code = 1


class UsageError(UserError):
    """The command line itself is wrong: an unknown key, option or value."""

    exit_code = 2


class Refused(ValueError):
    """An argument that a function or class does not accept: its name, and what is wrong with it.

    From Python the two are one sentence, "beta_start must be between 0 and 1, not 2"; the command line puts the group
    of the argument before it, "schedule.beta_start must be between 0 and 1, not 2".
    """

    def __init__(self, argument: str, reason: str):
        super().__init__(argument, reason)
        self.argument, self.reason = argument, reason

    def __str__(self) -> str:
        return f"{self.argument} {self.reason}"


class Terminated(BaseException):
    """SIGTERM or SIGHUP, as Ctrl-C is KeyboardInterrupt: the program is asked to end, and its exit code says so."""

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = 128 + number


def check(holds: bool, argument: str, expected: str, given: object) -> None:
    """Raise Refused, "<argument> must be <expected>, not <given>", unless the condition holds."""
    if not holds:
        raise Refused(argument, f"must be {expected}, not {given}")


def check_choice(argument: str, given: object, allowed: Collection[str]) -> None:
    """Raise Refused, with the nearest of the allowed words, where the given one is not among them."""
    hint = did_you_mean(str(given), allowed)
    check(isinstance(given, str) and given in allowed, argument, f"one of {', '.join(allowed)}", f"{given!r}.{hint}")


def require_choice(key: str, given: object, allowed: Collection[str]) -> None:
    """`check_choice` for a whole key of the command line: raises UsageError."""
    try:
        check_choice(key, given, allowed)
    except Refused as error:
        raise UsageError(str(error)) from error


def pick(options: Mapping[str, Option], key: str, given: object) -> Option:
    """The option of that name. Raises UsageError, which names the key and lists the names there are."""
    require_choice(key, given, options)
    return options[str(given)]


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' where one of the known words is close to the given one, and nothing otherwise."""
    by_small_letters = {word.lower(): word for word in known}
    close = difflib.get_close_matches(given.lower(), list(by_small_letters), n=1, cutoff=0.5)
    return f" Did you mean {by_small_letters[close[0]]!r}?" if close else ""
