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

from diffuse.data.images import Dataset, ImageKind
from diffuse.networks.unet import UNet
from diffuse.system.errors import UsageError, UserError, did_you_mean, pick
from diffuse.system.files import CONFIGS, folder_of_data

Node = Mapping[str, Any]
KEYWORD = inspect.Parameter.KEYWORD_ONLY

# Where the members of each group are defined in this package.
HOMES = {
    "dataset": ("diffuse.data.datasets",),
    "schedule": ("diffuse.mathematics.schedules", "diffuse.mathematics.continuous"),
    "prediction": ("diffuse.mathematics.predictions",),
    "loss": ("diffuse.mathematics.losses",),
    "weight": ("diffuse.mathematics.loss_weights",),
    "times": ("diffuse.mathematics.time_sampling",),
    "unet": ("diffuse.networks.unet",),
    "sampler": ("diffuse.mathematics.samplers",),
    "features": ("diffuse.scoring.features", "diffuse.scoring.feature_classifier"),
    "device": ("diffuse.system.device",),
}


def build(node: Node, group: str, trust: Sequence[str] = (), **given: Any) -> Any:
    """Call node["_target_"] with the node's other keys, checked, and with `given`, which the program adds.

    A config may come with a checkpoint from a stranger, and calling what it names would run any code: what is not
    defined in the group's own module is refused unless its top-level package is in `trust`. A ValueError of the
    target, which begins with the name of the argument, becomes a message about the key `group.argument`.
    """
    target = locate(node, group, trust)
    options = {key: value for key, value in node.items() if key != "_target_"}
    checked = checked_options(target, options, group, hidden=given)
    with about(group):
        return target(**checked, **given)


@contextmanager
def about(group: str) -> Iterator[None]:
    """A ValueError that begins with the name of an option becomes a message about that key, or about the whole choice.

    "gamma must be ..." is about weight.gamma; "=importance ..." about times=importance.
    """
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{group}{error}" if str(error).startswith("=") else f"{group}.{error}") from error


def bind(node: Node, group: str, trust: Sequence[str] = (), **given: Any) -> partial[Any]:
    """The function that node["_target_"] names, with the node's other keys as its keyword-only arguments, checked.

    What comes before the keywords is the formula's variables, given at each call. Of `given`, the function gets those
    that it asks for.
    """
    function = locate(node, group, trust)
    keywords = [name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind == KEYWORD]
    variables = set(inspect.signature(function).parameters) - set(keywords)
    options = {key: value for key, value in node.items() if key != "_target_"}
    checked = checked_options(function, options, group, hidden=variables | set(given))
    return partial(function, **checked, **{name: value for name, value in given.items() if name in keywords})


def locate(node: Node, group: str, trust: Sequence[str] = ()) -> Callable[..., Any]:
    """What a node's `_target_` names, imported; refused where it is neither ours nor trusted."""
    path = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(path, str) or "." not in path:
        raise UsageError(f"{group} must be one of its options or a mapping with a _target_, not {node!r}")
    module, _, name = path.rpartition(".")
    package = module.partition(".")[0]
    if module not in HOMES[group] and package not in trust:
        homes = " or ".join(HOMES[group])
        raise UserError(
            f"{group}._target_ is {path}, which is not defined in {homes}, and building it runs its code.\n"
            f"If you know where it comes from, add trust=[{package}]"
        )
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{group}._target_ is {path}, which cannot be imported: {error}") from error
    if not callable(target) or target.__module__ != module:
        raise UsageError(f"{group}._target_ is {path}, which is not a class or function defined there")
    return typing.cast("Callable[..., Any]", target)


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


def build_with(node: Node, group: str, trust: Sequence[str], **given: Any) -> Any:
    """`build`, where the target gets of `given` what it has arguments for."""
    wanted = inspect.signature(locate(node, group, trust)).parameters
    return build(node, group, trust, **{name: value for name, value in given.items() if name in wanted})


def build_dataset(config: Node, trust: Sequence[str]) -> Dataset:
    """The data set of a training config; its images are made ready when they are first asked for.

    A data set that keeps files has an argument data_dir, which is given the folder they are under.
    """
    data_dir = folder_of_data(config["data_dir"])
    return typing.cast(Dataset, build_with(config["dataset"], "dataset", trust, data_dir=data_dir))


def build_named_dataset(name: str, data_dir: str | None) -> Dataset:
    """The data set of that name as its YAML file has it, under data_dir or where training keeps data."""
    known = {path.stem: path for path in sorted((CONFIGS / "dataset").glob("*.yaml"))}
    node = typing.cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(pick(known, "the data set", name))))
    if "???" in node.values():
        raise UsageError(f"{name} stands for images of your own: give their path itself")
    return build_dataset({"dataset": node, "data_dir": default_data_dir() if data_dir is None else data_dir}, [])


def default_data_dir() -> str:
    """Where training keeps data sets unless told otherwise."""
    return str(OmegaConf.select(OmegaConf.load(CONFIGS / "train.yaml"), "data_dir"))


def build_network(config: Node, kind: ImageKind, trust: Sequence[str]) -> UNet:
    """The untrained network of a training config, for images of this kind."""
    learned = config["variance"] == "learned"
    sizes: dict[str, Any] = {"image_size": kind.side, "image_channels": kind.channels, "learned_variance": learned}
    if config["class_conditional"]:
        if not kind.classes:
            raise UsageError(f"class_conditional=true needs labels, and the data set {kind.name} has none")
        sizes["num_classes"] = len(kind.classes)
    refuse_sizes_that_do_not_halve(config, kind)
    return typing.cast(UNet, build(config["unet"], "unet", trust, **sizes))


def refuse_sizes_that_do_not_halve(config: Node, kind: ImageKind) -> None:
    """Raise UsageError where the network's levels do not fit the images, with the key of the data set to change."""
    levels = config["unet"].get("channel_mult")
    factor = 2 ** (len(levels) - 1) if isinstance(levels, list) and levels else 1
    if kind.side % factor == 0:
        return
    keys = config["dataset"]
    mend = "use fewer levels"
    if "size" in keys:
        mend += f" or set dataset.size={max(1, round(kind.size / factor)) * factor - 2 * kind.pad}"
    elif "pad" in keys and kind.size % 2 == 0:
        mend += f" or set dataset.pad={next(pad for pad in range(factor) if (kind.size + 2 * pad) % factor == 0)}"
    raise UsageError(
        f"unet.channel_mult has {len(levels)} levels, so images must be divisible by {factor}; "
        f"{kind.name} is {kind.side}: {mend}"
    )
