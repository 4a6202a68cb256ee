"""Tab completion: commands, groups, options, keys and their values, and paths. Neither Hydra nor torch is imported.

The shell function that `diffuse -sc install=SHELL` prints is Hydra's; it gives the line in COMP_LINE.
"""

import glob
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from diffuse.options.keys import Key, all_keys
from diffuse.options.reference import options
from diffuse.options.schema import PRESETS, SCHEMAS, groups
from diffuse.system.files import CONFIGS, OUTPUTS

FLAGS = ("--help", "--multirun", "--cfg", "--info", "--config-dir", "--hydra-help")
# Keys whose values are paths, and those that name a run.
PATHS = ("data_dir", "dataset.path", "dataset.test_path", "samples", "reference", "features.weights", "features.path")
RUNS = ("ckpt", "resume")


def completions(command: str, words: Sequence[str], last: str) -> list[str]:
    """What the last word of a line may become; `words` are those before it, after the command."""
    if command not in SCHEMAS:  # ls and diff take folders
        return paths("", last, of_runs=True)
    if last.startswith("-"):
        return [flag for flag in FLAGS if flag.startswith(last)]
    key, equals, begun = last.partition("=")
    if not equals:
        return names(command, words, last)
    if key in (*PATHS, *RUNS):
        return paths(f"{key}=", begun, of_runs=key in RUNS)
    value = re.split(r"[,\[]", begun)[-1]  # the last of a sweep, or of a list
    before = begun[: len(begun) - len(value)]
    return [f"{key}={before}{found}" for found in values(command, words, key) if found.startswith(value)]


def paths(prefix: str, begun: str, of_runs: bool) -> list[str]:
    """Files and folders that begin so; runs also by their names in outputs/."""
    found = sorted(glob.glob(glob.escape(begun) + "*"))  # noqa: PTH207  (pathlib would shorten what was typed)
    listed = [f"{prefix}{path}{'/' if Path(path).is_dir() else ''}" for path in found]
    if of_runs and not begun.startswith((".", "/", "~", str(OUTPUTS))):
        runs = OUTPUTS.glob(glob.escape(begun) + "*") if begun else OUTPUTS.glob("*")
        listed += [f"{prefix}{run.relative_to(OUTPUTS)}" for run in sorted(runs)]
    return listed


def names(command: str, words: Sequence[str], begun: str) -> list[str]:
    """Groups and keys, up to the next dot: "optim." stands for all its keys."""
    keys = [key.name for key in plain_keys(command)]
    inside = [f"{group}.{key}" for group in groups(command) for key in chosen_values(command, words, group)]
    found = dict.fromkeys(f"{name}=" for name in (*groups(command), *keys, *inside) if name.startswith(begun))
    deeper = {name: name.find(".", len(begun)) for name in found}
    return list(dict.fromkeys(name if deeper[name] < 0 else name[: deeper[name] + 1] for name in found))


def values(command: str, words: Sequence[str], key: str) -> list[str]:
    """The values that a group or a key takes, where there are few."""
    if key in groups(command):
        return sorted({option.name for option in options(key)} | {path.stem for path in own_options(words, key)})
    for name, kind, about in plain_keys(command):
        if name == key:
            choices = [*about.choices] if about.choices else ["true", "false"] if bool in types_in(kind) else []
            return [*choices, *(["null"] if type(None) in types_in(kind) else [])]
    group, _, option_key = key.partition(".")
    default = chosen_values(command, words, group).get(option_key) if group in groups(command) else None
    return ["true", "false"] if isinstance(default, bool) else []


def plain_keys(command: str) -> Iterator[Key]:
    """The keys of a command that are not groups."""
    return (key for key in all_keys(SCHEMAS[command]) if not key.about.group)


def chosen_values(command: str, words: Sequence[str], group: str) -> dict[str, Any]:
    """The keys of the option of a group that the line chooses, or else of all its options."""
    if group in PRESETS:
        return {}
    typed = [word.partition("=")[2] for word in words if word.startswith(f"{group}=")]
    found = [option for option in options(group) if not typed or option.name == typed[-1]]
    return {key: value for option in found for key, value in option.values.items()}


def own_options(words: Sequence[str], group: str) -> list[Path]:
    """The user's own options of a group, in the folder of -cd."""
    folders = [after for word, after in pairwise(words) if word in ("-cd", "--config-dir")]
    return [path for folder in folders if Path(folder) != CONFIGS for path in Path(folder, group).glob("*.yaml")]


def types_in(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the type alone."""
    return get_args(kind) or (kind,)
