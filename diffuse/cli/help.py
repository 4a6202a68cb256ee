"""`diffuse COMMAND --help`: groups with their options, keys with their values."""

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffuse.options.reference import options, plain_keys
from diffuse.options.schema import SCHEMAS, groups

USAGE = {
    "train": "fit a diffusion model to a data set, into outputs/<name>",
    "sample": "draw images from a trained run, into <run>/samples/<time>",
    "eval": "score a trained run, by likelihood and by its samples, into <run>/eval/<time>",
}


def help_page(command: str, config: DictConfig) -> str:
    """The page for a command, with the options and values that the command line has chosen so far."""
    command = command if command in USAGE else "train"
    chosen = OmegaConf.select(config, "hydra.runtime.choices") or {}
    keys = [f"  {name:30}{value_of(config, name):14}  {help}" for name, help in keys_of(command, chosen)]
    return "\n".join(
        [
            f"diffuse {command}: {USAGE[command]}",
            "",
            f"usage: diffuse {command} [group=option ...] [key=value ...] [-m]",
            "",
            "groups, with the chosen option, and all that there are",
            *groups_of(command, chosen),
            "",
            "keys, with their values",
            *(line.rstrip() for line in keys),
            "",
            f"Values are those of this line: diffuse {command} device=cpu --help shows the keys of that option, too.",
            f"diffuse {command} --cfg job prints them as YAML. -m with values separated by commas runs a sweep;",
            "-cd DIR adds options of your own; --hydra-help says more.",
            "",
        ]
    )


def groups_of(command: str, chosen: Mapping[str, Any]) -> Iterator[str]:
    """Two lines for each group."""
    for group, about in groups(command).items():
        yield f"  {group:12}{chosen.get(group) or 'none':14}{about}"
        yield f"  {'':26}{', '.join(option.name for option in options(group))}"


def keys_of(command: str, chosen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every key, those of the chosen options included, with what it means."""
    for name, _, about in plain_keys(SCHEMAS[command]):
        yield name, about.help
    for group in groups(command):
        for option in options(group):
            if option.name == chosen.get(group) and option.target:
                yield from ((f"{group}.{key}", option.meaning(key)) for key in option.values)


def value_of(config: DictConfig, name: str) -> str:
    """A value as it is typed."""
    holder, _, key = name.rpartition(".")
    node = OmegaConf.select(config, holder) if holder else config
    if OmegaConf.is_missing(node, key):
        return "(required)"
    value = node[key]
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
