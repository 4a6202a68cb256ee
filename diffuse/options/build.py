"""From the plain values of a config to objects: a mapping's `_target_` is called with the mapping's other keys."""

import importlib
import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import make_dataclass
from functools import partial, reduce
from operator import or_
from types import UnionType
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffuse.options.keys import Node
from diffuse.options.targets import HOMES, homes, own_name
from diffuse.options.trust import refuse_untrusted
from diffuse.system.errors import Refused, UsageError, did_you_mean

KEYWORD = inspect.Parameter.KEYWORD_ONLY
PLAIN = (bool, int, float, str, list, type(None))  # the types of values in a config


def build(node: Node, group: str, trust: Sequence[str] = (), **given: Any) -> Any:
    """Call node["_target_"] with the node's other keys, checked, and with `given`, which the program adds.

    A config may come with a stranger's checkpoint, and a `_target_` could run any code. Therefore only functions and
    classes of the group's own modules are called, and those of packages in `trust`. If the target refuses an argument,
    the message names the key `group.argument`.
    """
    target = locate(node, group, trust)
    with about(group):
        return target(**checked_options(target, node, group, hidden=given), **given)


def build_with(node: Node, group: str, trust: Sequence[str], **offered: Any) -> Any:
    """`build` with those of the offered arguments that the target has."""
    arguments = inspect.signature(locate(node, group, trust)).parameters
    return build(node, group, trust, **{name: value for name, value in offered.items() if name in arguments})


def bind(node: Node, group: str, trust: Sequence[str] = (), **offered: Any) -> partial[Any]:
    """The function node["_target_"] with the node's other keys, checked, as its keyword-only arguments.

    Its positional arguments are the formula's variables, given at each call. Offered arguments are passed if the
    function has them.
    """
    function = locate(node, group, trust)
    parameters = inspect.signature(function).parameters
    keywords = [name for name, parameter in parameters.items() if parameter.kind == KEYWORD]
    hidden = {name for name in parameters if name not in keywords} | set(offered)
    checked = checked_options(function, node, group, hidden)
    return partial(function, **checked, **{name: value for name, value in offered.items() if name in keywords})


@contextmanager
def about(group: str) -> Iterator[None]:
    """Turn the refusal of an argument into a message about a key: "gamma must be ..." is about weight.gamma.

    A refusal of an argument that is itself a group, as the schedule of `times` is, names both groups.
    """
    try:
        yield
    except Refused as error:
        between = ": " if error.argument in HOMES else "."
        raise UsageError(f"{group}{between}{error}") from error


def with_defaults(node: Node, group: str, trust: Sequence[str] = ()) -> Node:
    """The node, with the default values of its target for missing options.

    The default of an option that was added later means what the target did before.
    """
    parameters = inspect.signature(locate(node, group, trust)).parameters
    defaults = {name: found.default for name, found in parameters.items() if found.default is not found.empty}
    return {**{name: value for name, value in defaults.items() if isinstance(value, PLAIN)}, **node}


def locate(node: Node, group: str, trust: Sequence[str] = ()) -> Callable[..., Any]:
    """The class or function of a node's `_target_`. Raises UserError if it is neither of this package nor trusted."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str):
        raise UsageError(f"{group} must be one of its options or a mapping with a _target_, not {node!r}")
    name = own_name(group, target)
    if name is None:
        refuse_untrusted(target, group, trust)
    modules = homes(group) if name is not None else [target.rpartition(".")[0]]
    for module in modules:
        if found := defined_in(module, name or target.rpartition(".")[2], f"{group}._target_ is {target}"):
            return found
    raise UsageError(
        f"{group}._target_ is {target}, which is not a class or function defined in {' or '.join(modules)}"
    )


def defined_in(module: str, name: str, what: str) -> Callable[..., Any] | None:
    """The class or function that the module, which is imported, defines under that name, or None."""
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UsageError(f"{what}, which cannot be imported: {error}") from error
    return found if callable(found) and found.__module__ == module else None


def fitting(hint: Any, value: Any) -> Any:
    """Of a type such as int | list[int] the part that a value is checked against: OmegaConf has no such unions."""
    kinds = typing.get_args(hint) if isinstance(hint, UnionType) else ()
    lists = [kind for kind in kinds if typing.get_origin(kind) is list]
    others = [kind for kind in kinds if kind not in lists]
    if not lists or not {*others} - {type(None)}:
        return hint
    return lists[0] if isinstance(value, list) else reduce(or_, others)


def checked_options(target: Callable[..., Any], node: Node, group: str, hidden: Collection[str] = ()) -> dict[str, Any]:
    """The options of a node, converted to the types in the target's signature.

    hidden are arguments that the program gives, not the user. Raises UsageError for a wrong name or type.
    """
    options = {name: value for name, value in node.items() if name != "_target_"}
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)  # type: ignore[misc]
    known = [name for name in inspect.signature(target).parameters if name in hints and name not in hidden]
    for name in options:
        if name not in known:
            raise UsageError(f"{group} has no key {name!r}.{did_you_mean(name, known)}")
    schema = make_dataclass("Options", [(name, fitting(hints[name], value)) for name, value in options.items()])
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), options)
    except OmegaConfBaseException as error:
        name = f"{group}.{error.full_key}"
        if "is not a ListConfig" in str(error):
            raise UsageError(f"{name} is a list: write {name}=[{options.get(str(error.full_key))}]") from error
        raise UsageError(f"{name}: {str(error).splitlines()[0]}") from error
    return typing.cast("dict[str, Any]", OmegaConf.to_container(merged))
