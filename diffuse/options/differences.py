"""What differs between the configs of runs, as it would be typed. This module does not import torch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from diffuse.options.reference import Option, options
from diffuse.options.schema import flat, groups
from diffuse.options.targets import own_name

# Keys of a run that say where it lies, how long it may take and whom it trusts: nothing of what it computes.
NOT_COMPARED = ("name", "resume", "data_dir", "max_hours", "trust")
LONGEST = 60  # characters of a value: it may be a table of betas


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """{key: its value in each of the configs} for every key that differs, as {"schedule": ["linear", "cosine"]}.

    An option of a group is called by its name where all its keys have the values of its YAML file; otherwise its keys
    are listed one by one. A key that a config does not have is "-".
    """
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(key for config in configs for key in config):
        if name in NOT_COMPARED:
            continue
        values = [config.get(name) for config in configs]
        if name in groups("train") and all(isinstance(value, Mapping) for value in values):
            found |= dict(_differences_of_group(name, [dict(value or {}) for value in values]))
        elif any(isinstance(value, Mapping) for value in values):
            inside = [flat(value) if isinstance(value, Mapping) else {} for value in values]
            found |= dict(_differing_keys(name, inside, list(dict.fromkeys(key for each in inside for key in each))))
        elif _differ(values):
            found[name] = [as_typed(value) for value in values]
    return found


def option_name(group: str, node: Mapping[str, Any]) -> str | None:
    """The option whose YAML file has these values (null there stands for any); None where no file has."""
    for option in options(group):
        if _has_values_of(option, group, node):
            return option.name
    return None


def _has_values_of(option: Option, group: str, node: Mapping[str, Any]) -> bool:
    if own_name(group, str(node.get("_target_"))) != own_name(group, str(option.target)):
        return False
    if node.keys() - {"_target_"} != option.values.keys():
        return False
    return all(_may_stand_for(own, node[key]) for key, own in option.values.items())


def _may_stand_for(own: Any, value: Any) -> bool:
    """Whether a value of a YAML file is this one. PyYAML takes 1e-6 for text."""
    if isinstance(own, str) and isinstance(value, float):
        with suppress(ValueError):
            return float(own) == value
    return own is None or own == "???" or own == value


def as_typed(value: Any) -> str:
    """A value as it is typed on the command line: true, null, [1,2]."""
    if isinstance(value, list | tuple):
        text = f"[{','.join(map(as_typed, value))}]"
    else:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _differences_of_group(group: str, nodes: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    if not _differ(nodes):
        return
    names = [option_name(group, node) for node in nodes]
    if None not in names and len({str(node) for node in nodes}) == len(set(names)):
        yield group, [str(name) for name in names]
        return
    targets = [own_name(group, str(node.get("_target_"))) or node["_target_"] for node in nodes]
    if _differ(targets):
        yield group, [name or target for name, target in zip(names, targets, strict=True)]
    shared = [key for key in nodes[0] if key != "_target_" and all(key in node for node in nodes)]
    of_any = list(dict.fromkeys(key for node in nodes for key in node if key != "_target_"))
    yield from _differing_keys(group, nodes, shared if _differ(targets) else of_any)


def _differing_keys(
    group: str, nodes: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    for key in keys:
        if _differ([node.get(key, ...) for node in nodes]):
            yield f"{group}.{key}", [as_typed(node[key]) if key in node else "-" for node in nodes]


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)
