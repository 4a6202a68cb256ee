"""Two kinds of failure: the user's, worded in at most four lines, and ours, which keeps its traceback."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

Option = TypeVar("Option")


class UserError(Exception):
    """Something the user can mend. The message names what was given, what was expected and the key to change."""

    exit_code = 1


class Terminated(BaseException):
    """SIGTERM or SIGHUP, as Ctrl-C is KeyboardInterrupt: the program is asked to end, and its exit code says it did."""

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = 128 + number


class UsageError(UserError):
    """The command line itself is wrong: an unknown key, option or value."""

    exit_code = 2


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' where one of the known words is close to the given one, and nothing otherwise."""
    by_small_letters = {word.lower(): word for word in known}
    close = difflib.get_close_matches(given.lower(), list(by_small_letters), n=1, cutoff=0.5)
    return f" Did you mean {by_small_letters[close[0]]!r}?" if close else ""


def check_choice(option: str, given: object, allowed: Collection[str]) -> None:
    """Raise ValueError, beginning with the option's name, where the given word is none of those allowed."""
    if not isinstance(given, str) or given not in allowed:
        hint = did_you_mean(str(given), allowed)
        raise ValueError(f"{option} must be one of {', '.join(allowed)}, not {given!r}.{hint}")


def pick(options: Mapping[str, Option], key: str, given: object) -> Option:
    """The option of that name, or an error that names the key and lists the names there are."""
    try:
        check_choice(key, given, options)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return options[str(given)]
