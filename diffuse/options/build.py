"""From the plain values of a config to objects: a mapping's `_target_` is called with the mapping's other keys."""

import importlib
import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import make_dataclass
from functools import partial
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffuse.options.keys import Node
from diffuse.options.targets import HOMES, PACKAGE, homes, own_name
from diffuse.system.errors import Refused, UsageError, UserError, did_you_mean

KEYWORD = inspect.Parameter.KEYWORD_ONLY
PLAIN = (bool, int, float, str, list, type(None))  # the types of values in a config


def build(node: Node, group: str, trust: Sequence[str] = (), **given: Any) -> Any:
    """Call node["_target_"] with the node's other keys, checked, and with `given`, which the program adds.

    A config may come with a checkpoint from a stranger, and calling what it names would run any code: what is not
    defined in the group's own modules is refused unless its top-level package is in `trust`. Where the target refuses
    an argument, the message is about the key `group.argument`.
    """
    target = locate(node, group, trust)
    with about(group):
        return target(**checked_options(target, options_of(node), group, hidden=given), **given)


def build_with(node: Node, group: str, trust: Sequence[str], **offered: Any) -> Any:
    """`build`, where the target is given those of the offered arguments that it has."""
    arguments = inspect.signature(locate(node, group, trust)).parameters
    return build(node, group, trust, **{name: value for name, value in offered.items() if name in arguments})


def bind(node: Node, group: str, trust: Sequence[str] = (), **offered: Any) -> partial[Any]:
    """The function that node["_target_"] names, with the node's other keys as its keyword-only arguments, checked.

    What comes before the keywords are the formula's variables, given at each call. The function is given those of the
    offered arguments that it has.
    """
    function = locate(node, group, trust)
    parameters = inspect.signature(function).parameters
    keywords = [name for name, parameter in parameters.items() if parameter.kind == KEYWORD]
    hidden = {name for name in parameters if name not in keywords} | set(offered)
    checked = checked_options(function, options_of(node), group, hidden)
    return partial(function, **checked, **{name: value for name, value in offered.items() if name in keywords})


@contextmanager
def about(group: str) -> Iterator[None]:
    """Put the group before the name of an argument that is refused, so that the message is about a key.

    "gamma must be ..." is about weight.gamma; what `times` says of its schedule is about both groups.
    """
    try:
        yield
    except Refused as error:
        between = ": " if error.argument in HOMES else "."
        raise UsageError(f"{group}{between}{error}") from error


def options_of(node: Node) -> Node:
    """The arguments in a node, without its `_target_`."""
    return {key: value for key, value in node.items() if key != "_target_"}


def with_defaults(node: Node, group: str, trust: Sequence[str] = ()) -> Node:
    """The node with the defaults of its target for the options that it does not mention.

    An option that a target was given later stands, by its default, for what the target did before.
    """
    parameters = inspect.signature(locate(node, group, trust)).parameters
    defaults = {name: found.default for name, found in parameters.items() if found.default is not found.empty}
    return {**{name: value for name, value in defaults.items() if isinstance(value, PLAIN)}, **node}


def locate(node: Node, group: str, trust: Sequence[str] = ()) -> Callable[..., Any]:
    """The class or function that a node's `_target_` names; refused where it is neither ours nor trusted."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str):
        raise UsageError(f"{group} must be one of its options or a mapping with a _target_, not {node!r}")
    name = own_name(group, target)
    package = target.partition(".")[0]
    if name is None and package not in trust:
        raise UserError(
            f"{group}._target_ is {target}, which is not part of {PACKAGE}, and building it runs its code.\n"
            f"If you know where it comes from, add trust=[{package}]"
        )
    modules = homes(group) if name is not None else [target.rpartition(".")[0]]
    for module in modules:
        if found := defined_in(module, name or target.rpartition(".")[2], f"{group}._target_ is {target}"):
            return found
    raise UsageError(
        f"{group}._target_ is {target}, which is not a class or function defined in {' or '.join(modules)}"
    )


def defined_in(module: str, name: str, what: str) -> Callable[..., Any] | None:
    """The class or function of that name, if the module defines it. Imports the module."""
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UsageError(f"{what}, which cannot be imported: {error}") from error
    return found if callable(found) and found.__module__ == module else None


def checked_options(
    target: Callable[..., Any], options: Node, group: str, hidden: Collection[str] = ()
) -> dict[str, Any]:
    """The options, converted to the types in the target's signature; a wrong name or type is the user's mistake.

    hidden are the arguments that the program gives, not the user.
    """
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)  # type: ignore[misc]
    known = [name for name in inspect.signature(target).parameters if name in hints and name not in hidden]
    for name in options:
        if name not in known:
            raise UsageError(f"{group} has no key {name!r}.{did_you_mean(name, known)}")
    checked = {}
    for name, value in options.items():
        schema = make_dataclass("Option", [(name, hints[name])])
        try:
            merged = OmegaConf.merge(OmegaConf.structured(schema), {name: value})
        except OmegaConfBaseException as error:
            raise UsageError(f"{group}.{name}: {str(error).splitlines()[0]}") from error
        checked.update(typing.cast("dict[str, Any]", OmegaConf.to_container(merged)))
    return checked
