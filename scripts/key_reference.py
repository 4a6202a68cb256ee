"""Write docs/keys.md: every group with its options, every key with its type, default, range and meaning.

    python scripts/key_reference.py            # writes docs/keys.md
    python scripts/key_reference.py --check    # writes nothing; exits 1 if docs/keys.md is not what would be written

Everything in it comes from where it is defined: the annotations of the schema, the YAML files of configs/, the
docstrings of what their `_target_`s name. `diffuse COMMAND --help` reads the same.
"""

import argparse
import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from diffuse.cli.task import register
from diffuse.options.build import locate
from diffuse.options.keys import About, Key, all_keys, interval_in_words
from diffuse.options.reference import SHARED, Option, options
from diffuse.options.schema import PRESETS, SCHEMAS, flat, groups, may_change
from diffuse.system.files import CONFIGS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "keys.md"


def plain_keys(command: str) -> list[Key]:
    """The keys of a command that are not groups."""
    return [key for key in all_keys(SCHEMAS[command]) if not key.about.group]


BEGINNING = """\
# Groups and keys

<!-- Written by `python scripts/key_reference.py`. Change the schema, the YAML files or docstrings, not this page. -->

An option of a group is chosen by its name, `unet=small`. A key is set by its path, `unet.dropout=0.2`.
`diffuse COMMAND --help` shows the same as this page for the line that is typed, and `--cfg job` prints the whole config
without running it. A mistyped key is refused, and the nearest one that exists is named.

In zsh, quote what has brackets: `'metrics=[fid,kid]'`. Tab completion of commands, groups, options and paths:
`eval "$(diffuse -sc install=bash)"` (or `zsh`, `fish`).

## Which value counts

Several places may set the same key of a training. From the strongest to the weakest:

1. what is **typed**;
2. the **`method`**, a paper's choice of schedule, prediction, loss, times and spacing (none unless it is typed);
3. the **`recipe`**, which the data set chooses unless it is typed: network, steps, batch size, learning rate, EMA,
   for the digits the mathematics and the sampler too;
4. the **default** in `configs/train.yaml`.

So `diffuse train dataset=cifar10 method=edm steps=1000` trains with the network of the recipe `cifar10`, the formulas
of EDM, and 1,000 steps. `sample` and `eval` take everything that is not among their own keys from the checkpoint.
"""

TRAIN = """\
The defaults are those of the default recipe; other recipes and methods have others (above). *May change*: whether the
key may differ when a run is continued ([runs.md](runs.md#what-may-change))."""


# The parts of the page


def page() -> str:
    """The whole page."""
    commands = list(SCHEMAS)
    parts = [BEGINNING, "## Groups\n"]
    names = dict.fromkeys(name for command in commands for name in groups(command))
    parts += [of_group(name, commands) for name in names]
    parts += [of_command(command) for command in commands]
    return "\n".join(parts)


def of_group(group: str, commands: Iterable[str]) -> str:
    """A group: its options, and their keys."""
    used = [command for command in commands if group in groups(command)]
    default = {command: chosen(command).get(group) for command in used}
    by_option = ", ".join(f"{option} in {join(of_it)}" for option, of_it in inverted(default).items())
    found = options(group)
    lines = [f"### `{group}`", "", f"{sentence(groups(used[0])[group])} Default: {by_option}.", ""]
    if len({option.description for option in found}) == 1:
        lines += ["Options: " + ", ".join(f"`{option.name}`" for option in found) + ".", ""]
    else:
        rows = [[f"`{option.name}`", option.description] for option in found]
        lines += [*table(["option", "what it is"], rows), ""]
    if group in PRESETS:
        lines += [*table(*choices_of(group, found)), ""]
    elif rows := keys_of_options(group, found):
        lines += [*table(["key", "of", "type", "default", "meaning"], rows), ""]
    return "\n".join(lines)


def of_command(command: str) -> str:
    """A command: its keys that belong to no group."""
    values = composed(command)
    rows = []
    for name, kind, about in plain_keys(command):
        row = [f"`{name}`", type_name(kind), default_of(values, name), range_of(about), about.help]
        rows.append([*row, "yes" if may_change(name) else ""] if command == "train" else row)
    titles = ["key", "type", "default", "values", "meaning", *(["may change"] if command == "train" else [])]
    named = ", ".join(f"`{name}`" for name in groups(command))
    said = f"`diffuse {command}`: {SCHEMAS[command].__doc__}. {f'Groups: {named}.' if named else 'It has no groups.'}"
    lines = [f"## Keys of `diffuse {command}`", "", said, ""]
    if command == "train":
        lines += [TRAIN, ""]
    return "\n".join([*lines, *table(titles, rows), ""])


def choices_of(preset: str, found: list[Option]) -> tuple[list[str], list[list[str]]]:
    """A table of what the options of `method`, or `recipe`, choose: where they differ from each other."""
    settings = {option.name: settings_of(preset, option.name) for option in found}
    names = dict.fromkeys(name for values in settings.values() for name in values)
    differing = [name for name in names if len({str(values.get(name)) for values in settings.values()}) > 1]
    rows = [[f"`{name}`", *(values.get(key, "") for key in differing)] for name, values in settings.items()]
    return [f"`{preset}=`", *(f"`{name}`" for name in differing)], rows


def settings_of(preset: str, option: str) -> dict[str, str]:
    """The groups and keys of `train` as an option of a preset leaves them."""
    typed = [f"{preset}={option}"]
    if preset == "recipe" and option in {data_set.name for data_set in options("dataset")}:
        typed = [f"dataset={option}"]
    options_chosen = {name: f"`{value}`" for name, value in chosen("train", *typed).items() if name in groups("train")}
    hidden = {*PRESETS, *(["dataset"] if preset == "recipe" else [])}
    config = composed("train", *typed)
    keys = {name: default_of(config, name) for name, _, _ in plain_keys("train")}
    keys["sampler.spacing"] = default_of(config, "sampler.spacing")
    return {name: value for name, value in {**options_chosen, **keys}.items() if name not in hidden}


def keys_of_options(group: str, found: list[Option]) -> list[list[str]]:
    """The keys of a group's options, a row for those that are the same but for their defaults."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}  # (key, type, meaning) -> {option: default}
    for option in found:
        types = types_of(option)
        for key, value in option.values.items():
            row = (key, types.get(key, ""), option.meaning(key).replace(" (`rescale_to_zero_snr`)", ""))
            rows.setdefault(row, {})[option.name] = as_typed(value)
    written = []
    order = list(dict.fromkeys(key for option in found for key in option.values))
    for (key, kind, meaning), defaults in sorted(rows.items(), key=lambda item: order.index(item[0][0])):
        of = "all" if len(defaults) == len(found) else ", ".join(f"`{name}`" for name in defaults)
        values = list(dict.fromkeys(defaults.values()))
        alike = {value: [name for name in defaults if defaults[name] == value] for value in values}
        several = "; ".join(f"{value} ({', '.join(f'`{name}`' for name in alike[value])})" for value in values)
        written.append([f"`{group}.{key}`", of, kind, values[0] if len(values) == 1 else several, meaning])
    return written


# Where it comes from


def chosen(command: str, *typed: str) -> Mapping[str, str]:
    """The option of each group."""
    choices = load(command, *typed).hydra.runtime.choices
    return {str(group): str(option) for group, option in choices.items() if option not in (None, "None", "null")}


def composed(command: str, *typed: str) -> Mapping[str, Any]:
    """Every value by its dotted key."""
    config = OmegaConf.masked_copy(load(command, *typed), [name.partition(".")[0] for name in names_of(command)])
    return flat(typing.cast("dict[str, Any]", OmegaConf.to_container(config)))


def names_of(command: str) -> list[str]:
    return [name for name, _, _ in all_keys(SCHEMAS[command])]


@cache
def load(command: str, *typed: str) -> Any:
    """The config of a command line, with Hydra's part."""
    register()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(command, overrides=list(typed), return_hydra_config=True)


def types_of(option: Option) -> dict[str, str]:
    """The types of an option's keys, by the signature of what it builds."""
    shared = {name: kind for name, kind, _ in all_keys(SHARED[option.group])} if option.group in SHARED else {}
    target = locate({"_target_": option.target}, option.group)
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    # A sampler's variance is named by a string and given to the function as an object.
    named = {"variance": str | None} if option.group == "sampler" else {}
    return {name: type_name(kind) for name, kind in {**hints, **shared, **named}.items()}


# How it is written


def type_name(kind: Any) -> str:
    """int, list[str], float or null."""
    parts = typing.get_args(kind)
    if type(None) in parts:
        return " or ".join([*(type_name(part) for part in parts if part is not type(None)), "null"])
    return kind.__name__ if isinstance(kind, type) and not parts else str(kind).replace("typing.", "")


def range_of(about: About) -> str:
    if about.choices:
        return ", ".join(f"`{choice}`" for choice in about.choices)
    return interval_in_words(about.interval) if about.interval else ""


def default_of(values: Mapping[str, Any], name: str) -> str:
    return as_typed(values[name])


def as_typed(value: Any) -> str:
    """A value as it is typed."""
    if value == "???":
        return "required"
    if isinstance(value, list):
        return f"`[{','.join(map(str, value))}]`"
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def join(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def inverted(mapping: Mapping[str, str | None]) -> dict[str, list[str]]:
    """{"train": "ddim", "eval": "ddim"} becomes {"ddim": ["train", "eval"]}."""
    found: dict[str, list[str]] = {}
    for key, value in mapping.items():
        found.setdefault(f"`{value}`" if value else "none", []).append(key)
    return found


def table(titles: list[str], rows: list[list[str]]) -> Iterator[str]:
    """The lines of a Markdown table; columns without content are left out."""
    kept = [at for at in range(len(titles)) if any(row[at] for row in rows)]
    yield "| " + " | ".join(titles[at] for at in kept) + " |"
    yield "|" + "---|" * len(kept)
    for row in rows:
        yield "| " + " | ".join(row[at].replace("|", "\\|") for at in kept) + " |"


def check() -> None:
    """Raise SystemExit if docs/keys.md is not what would be written now."""
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        raise SystemExit(f"{PAGE} is out of date: python scripts/key_reference.py")


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is not up to date")
    if given.parse_args().check:
        check()
        return
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
