"""What differs between the configs of runs, as it would be typed. This module does not import torch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from diffuse.mathematics.beta_ends import END_KEYS, ENDS, usual_ends
from diffuse.options.reference import Option, options
from diffuse.options.schema import flat, groups
from diffuse.options.targets import own_name

# Keys of a run that say where it lies, how long it may take and whom it trusts: nothing of what it computes.
NOT_COMPARED = ("name", "resume", "data_dir", "max_hours", "trust")
UNIFORM = "uniform"  # what a null spacing of a training means


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
    """The option whose YAML file has these values; None where no file has.

    A null there is null, or what a run fills in for it.
    """
    for option in options(group):
        if _has_values_of(option, group, node):
            return option.name
    return None


def _has_values_of(option: Option, group: str, node: Mapping[str, Any]) -> bool:
    if own_name(group, str(node.get("_target_"))) != own_name(group, str(option.target)):
        return False
    if not node.keys() - {"_target_"} <= option.values.keys():
        return False
    # A key that came later, with null for what was done without it, is not in an older config.
    values = {key: node.get(key) if own is None else node.get(key, ...) for key, own in option.values.items()}
    return all(own == "???" or _same(own, values[key], _filled_in(key, node)) for key, own in option.values.items())


def _same(own: Any, value: Any, filled: Any) -> bool:
    """Whether a value of a YAML file is this one. PyYAML takes 1e-6 for text."""
    if isinstance(own, str) and isinstance(value, float):
        with suppress(ValueError):
            return float(own) == value
    return bool(own == value or (own is None and value == filled))


def _filled_in(key: str, node: Mapping[str, Any]) -> Any:
    """What `diffuse train` writes into config.yaml for a null, as far as it does."""
    name, levels = str(node.get("_target_")).rpartition(".")[2], node.get("levels")
    if key in END_KEYS and name in ENDS and isinstance(levels, int) and levels > 0:
        return usual_ends(name, levels)[END_KEYS.index(key)]
    return UNIFORM if key == "spacing" else None


def as_typed(value: Any) -> str:
    """A value as it is typed on the command line: true, null, [1,2]."""
    if isinstance(value, list | tuple):
        text = f"[{','.join(map(as_typed, value))}]"
    else:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text


def _differences_of_group(group: str, nodes: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    if not _differ(nodes):
        return
    names = [option_name(group, node) for node in nodes]
    if None not in names and len({str(node) for node in nodes}) == len(set(names)):
        yield group, [str(name) for name in names]
        return
    written = [str(node.get("_target_", "-")) for node in nodes]
    targets = [own_name(group, target) or target for target in written]
    if _differ(targets):
        yield group, [name or target for name, target in zip(names, targets, strict=True)]
    # Keys that one target has and the other has not say nothing new, unless runs with the same target differ in them.
    of_any = list(dict.fromkeys(key for node in nodes for key in node if key != "_target_"))
    yield from _differing_keys(group, nodes, [key for key in of_any if _is_telling(key, nodes, targets)])


def _is_telling(key: str, nodes: Sequence[Mapping[str, Any]], targets: Sequence[str]) -> bool:
    """Whether all nodes have the key, or those of one target differ in it."""
    if all(key in node for node in nodes):
        return True
    by_target = [
        [node.get(key, ...) for node, own in zip(nodes, targets, strict=True) if own == target]
        for target in set(targets)
    ]
    return any(_differ(values) for values in by_target)


def _differing_keys(
    group: str, nodes: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    for key in keys:
        if _differ([node.get(key, ...) for node in nodes]):
            yield f"{group}.{key}", [as_typed(node[key]) if key in node else "-" for node in nodes]


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)
