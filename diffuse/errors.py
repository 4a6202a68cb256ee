"""Two kinds of failure: the user's, worded in at most four lines, and ours, which keeps its traceback."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Option = TypeVar("Option")


class UserError(Exception):
    """Something the user can mend. The message names what was given, what was expected and the key to change."""

    exit_code = 1


class UsageError(UserError):
    """The command line itself is wrong: an unknown key, option or value."""

    exit_code = 2


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' where one of the known words is close to the given one, and nothing otherwise."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def pick(options: Mapping[str, Option], key: str, given: str) -> Option:
    """The option of that name, or an error that names the key and lists the names there are."""
    if given not in options:
        hint = did_you_mean(given, options)
        raise UsageError(f"{key} must be one of {', '.join(options)}, not {given!r}.{hint}")
    return options[given]
