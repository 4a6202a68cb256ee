"""What is said of a key beside its name and type: what it means, which values it takes, whether it may change later.

All of it stands in the annotation of a field, once; the checks, `--help`, the reference page and the rules of resuming
are made from it. Values stand in configs/, once. This module and `schema` import no torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from diffuse.system.errors import Refused, check, check_choice

Node = dict[str, Any]  # the chosen option of a group: a `_target_` and its arguments, checked by `build`


@dataclass(frozen=True)
class Interval:
    """The values that a number may have, in the notation of mathematics: "[0, 1)", "(0, inf)"."""

    text: str

    def __contains__(self, number: float) -> bool:
        low, high = map(float, self.text[1:-1].split(","))
        above = number >= low if self.text[0] == "[" else number > low
        return above and (number <= high if self.text[-1] == "]" else number < high)

    def __str__(self) -> str:
        """In words: "at least 0 and below 1", "positive and finite"."""
        low, high = (part.strip() for part in self.text[1:-1].split(","))
        closed, closed_above = self.text[0] == "[", self.text[-1] == "]"
        if low == "0" and not closed and high == "inf":
            return "positive" if closed_above else "positive and finite"
        if not closed and not closed_above:
            return f"between {low} and {high}"
        lowest = f"at least {low}" if closed else f"above {low}"
        return lowest if high == "inf" else f"{lowest} and {'at most' if closed_above else 'below'} {high}"


@dataclass(frozen=True)
class About:
    """What is said of a key.

    help        what it means, in a line
    interval    which numbers it takes
    choices     which words it takes, alone or in a list
    may_change  whether it may differ when a run is continued, since it changes no weight of the steps already done: a
                key or a whole group, or the names of those options of the group that may
    group       whether it is a group, of which an option is chosen
    before      the value of configs that were stored before the key existed
    """

    help: str
    interval: Interval | None = None
    choices: Sequence[str] = ()
    may_change: bool | Sequence[str] = False
    group: bool = False
    before: Any = ...


def key(help: str, interval: str | None = None, **facts: Any) -> About:
    """What is said of a key: `steps: Annotated[int, key("steps of training", "[1, inf)")]`."""
    return About(help, Interval(interval) if interval else None, **facts)


def group(help: str, may_change: bool | Sequence[str] = False) -> About:
    """What is said of a group, whose field holds the option that was chosen."""
    return About(help, may_change=may_change, group=True)


class Key(NamedTuple):
    """A key of a schema: its dotted name, its type, what is said of it."""

    name: str
    type: Any
    about: About


def all_keys(schema: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a schema, in the order in which they are declared."""
    for name, hint in get_type_hints(schema, include_extras=True).items():
        if get_origin(hint) is Annotated:
            kind, about = get_args(hint)
            yield Key(prefix + name, kind, about)
        else:
            yield from all_keys(hint, f"{prefix}{name}.")


def check_values(config: object) -> None:
    """Raise Refused, with the dotted key, where a value of a config is not one that its key takes."""
    for name, kind, about in all_keys(type(config)):
        value = attrgetter(name)(config)
        if value == "":
            raise Refused(name, f"must not be empty: {about.help}")
        if isinstance(value, list) and about.choices and not value:
            raise Refused(name, f"must be a list of {', '.join(about.choices)}, not empty")
        if value is None:
            continue
        if about.interval:
            or_null = " or null" if type(None) in get_args(kind) else ""
            check(value in about.interval, name, f"{about.interval}{or_null}", value)
        for word in value if isinstance(value, list) else [value]:
            if about.choices:
                check_choice(name, word, about.choices)
