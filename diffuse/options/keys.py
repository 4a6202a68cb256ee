"""The metadata of a key: what it means, which values it takes, whether it may change when a run is continued.

It stands once, in the annotation of a field. Checks, `--help`, the reference page and the rules of resuming read it
there. The values stand in configs/. This module and `schema` do not import torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from diffuse.system.errors import Refused, check, check_choice

Node = dict[str, Any]  # the chosen option of a group: a `_target_` and its arguments, checked by `build`


@dataclass(frozen=True)
class About:
    """The metadata of a key: `steps: Annotated[int, key("steps of training", "[1, inf)")]`.

    help        its meaning, in one line
    interval    the numbers that it takes, in the notation of mathematics: "[0, 1)", "(0, inf)"
    choices     the words that it takes, alone or in a list
    may_change  whether it may differ when a run is continued: True for a key or a whole group that changes no weight,
                or the names of the keys of a group for which that holds
    group       whether it is a config group, of which one option is chosen
    before      its value in configs that were stored before the key existed
    """

    help: str
    interval: str = ""
    choices: Sequence[str] = ()
    may_change: bool | Sequence[str] = False
    group: bool = False
    before: Any = ...


key, group = About, partial(About, group=True)


def lies_in(interval: str, number: float) -> bool:
    """Whether a number lies in an interval such as "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))
    return (low < number < high) or (number == low and interval[0] == "[") or (number == high and interval[-1] == "]")


def interval_in_words(interval: str) -> str:
    """ "[0, 1)" as "at least 0 and below 1"."""
    low, high = (end.strip() for end in interval[1:-1].split(","))
    closed, closed_above = interval[0] == "[", interval[-1] == "]"
    if low == "0" and not closed and high == "inf":
        return "positive" if closed_above else "positive and finite"
    if not closed and not closed_above:
        return f"between {low} and {high}"
    lowest = f"at least {low}" if closed else f"above {low}"
    return lowest if high == "inf" else f"{lowest} and {'at most' if closed_above else 'below'} {high}"


class Key(NamedTuple):
    """A key of a schema: its dotted name, its type and its metadata."""

    name: str
    type: Any
    about: About


def all_keys(schema: type, prefix: str = "") -> Iterator[Key]:
    """All keys of a schema, in the order of their declaration."""
    for name, hint in get_type_hints(schema, include_extras=True).items():
        if get_origin(hint) is Annotated:
            kind, about = get_args(hint)
            yield Key(prefix + name, kind, about)
        else:
            yield from all_keys(hint, f"{prefix}{name}.")


def check_values(config: object) -> None:
    """Raise Refused, with the dotted key, if a value of the config is out of its range or not among its choices."""
    for name, kind, about in all_keys(type(config)):
        value = attrgetter(name)(config)
        if value == "":
            raise Refused(name, f"must not be empty: {about.help}")
        if isinstance(value, list) and about.choices and not value:
            raise Refused(name, f"must be a list of {', '.join(about.choices)}, not empty")
        if value is None:
            continue
        for number in (value if isinstance(value, list) else [value]) if about.interval else ():
            or_null = " or null" if type(None) in get_args(kind) else ""
            check(lies_in(about.interval, number), name, f"{interval_in_words(about.interval)}{or_null}", number)
        for word in value if isinstance(value, list) else [value]:
            if about.choices:
                check_choice(name, word, about.choices)
