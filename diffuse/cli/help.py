"""`diffuse COMMAND --help`: groups with their options, keys with their values."""

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffuse.options.keys import all_keys
from diffuse.options.reference import options
from diffuse.options.schema import SCHEMAS, groups


def help_page(command: str, config: DictConfig) -> str:
    """The help page of a command, with the options and values that the command line has chosen so far."""
    command = command if command in SCHEMAS else "train"
    chosen = OmegaConf.select(config, "hydra.runtime.choices") or {}
    return "\n".join(
        [
            f"diffuse {command}: {SCHEMAS[command].__doc__}",
            "",
            f"usage: diffuse {command} [group=option ...] [key=value ...] [-m]",
            "",
            *group_lines(command, chosen),
            "keys, with their values",
            *(f"  {key:30}{value_of(config, key):14}  {help}".rstrip() for key, help in meanings(command, chosen)),
            "",
            f"Values are those of this command line: diffuse {command} device=cpu --help shows the keys of device=cpu.",
            f"diffuse {command} --cfg job prints them as YAML. -m with values separated by commas runs a sweep;",
            "-cd DIR adds options of your own; --hydra-help shows Hydra's flags.",
            "",
        ]
    )


def group_lines(command: str, chosen: Mapping[str, Any]) -> Iterator[str]:
    """Two lines for each group, below a title; none for a command without groups."""
    if groups(command):
        yield "groups, with the chosen option, and all options"
    for group, about in groups(command).items():
        yield f"  {group:12}{chosen.get(group) or 'none':16} {about}"
        yield f"  {'':26}{', '.join(option.name for option in options(group))}"
    if groups(command):
        yield ""


def meanings(command: str, chosen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every key with its meaning, including the keys of the chosen options."""
    for name, _, about in all_keys(SCHEMAS[command]):
        if not about.group:
            yield name, f"{about.help}: {', '.join(about.choices)}" if about.choices else about.help
    for group in groups(command):
        for option in options(group):
            if option.name == chosen.get(group) and option.target:
                yield from ((f"{group}.{key}", option.meaning(key)) for key in option.values)


def value_of(config: DictConfig, name: str) -> str:
    """The value of a key, as it is typed."""
    value = OmegaConf.select(config, name, default="(required)")
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
