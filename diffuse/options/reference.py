"""What `--help` and the reference page say about groups, options and keys.

An option is described by the first comment of its YAML file, or else by the first line of its docstring, and its keys
by the docstring's lines "name  meaning". The source is parsed, not imported: help does not wait for torch.
"""

import ast
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from diffuse.options.keys import all_keys
from diffuse.options.schema import PRESETS, SCHEMAS, groups
from diffuse.options.shared_keys import DatasetKeys, SamplerKeys
from diffuse.options.targets import ROOT, homes, own_name
from diffuse.system.files import CONFIGS

# The keys that every option of the group has.
SHARED: dict[str, type] = {"sampler": SamplerKeys, "dataset": DatasetKeys}
HERE = "@_here_"
ARGUMENT = re.compile(r"(?P<names>\w+(, \w+)*) {2,}(?P<text>\S.*)")


@dataclass(frozen=True)
class Option:
    """An option of a group: its name, its description, and its keys with their values."""

    group: str
    name: str
    description: str
    target: str | None
    values: Mapping[str, Any]

    def meaning(self, key: str) -> str:
        """The meaning of one of its keys; empty if it is written nowhere."""
        shared = {name: about.help for name, _, about in all_keys(SHARED[self.group])} if self.group in SHARED else {}
        own = arguments(docstring(self.group, self.target)) if self.target else {}
        return own.get(key) or shared.get(key, "")


def options(group: str) -> list[Option]:
    """The options of a group, sorted by name."""
    return [option(group, path) for path in sorted((CONFIGS / group).glob("*.yaml"))]


@lru_cache
def option(group: str, path: Path) -> Option:
    """The option in a YAML file."""
    text = path.read_text(encoding="utf-8")
    content = with_shared_keys(yaml.safe_load(text) or {})
    node = content.get(group, content)  # files that also set other keys have the group's own below its name
    comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    target = node.get("_target_")
    description = comments[0] if comments else docstring(group, target).partition("\n")[0] if target else ""
    values = {key: value for key, value in node.items() if key not in ("_target_", "defaults")}
    return Option(group, path.stem, description, target, values)


def option_with(group: str, target: str) -> str:
    """The name of the first option with this `_target_`, ddpm for ancestral; the target itself where none has it."""
    return next((each.name for each in options(group) if each.target == own_name(group, target)), target)


def with_shared_keys(content: dict[str, Any]) -> dict[str, Any]:
    """The content of an option's file with the keys of the file that it begins with, `/sampler_keys@_here_`."""
    shared = [each for each in content.get("defaults", []) if isinstance(each, str) and each.endswith(HERE)]
    files = [CONFIGS / f"{each.removesuffix(HERE).lstrip('/')}.yaml" for each in shared]
    return {key: value for file in files for key, value in yaml.safe_load(file.read_text()).items()} | content


@lru_cache
def docstring(group: str, target: str) -> str:
    """The docstring of a `_target_`, read from its source file."""
    name = own_name(group, target)
    for module in homes(group):
        source = ROOT.parent / Path(*module.split(".")).with_suffix(".py")
        for node in ast.parse(source.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                return ast.get_docstring(node) or ""
    return ""


def arguments(text: str) -> dict[str, str]:
    """The lines "name  meaning" of a docstring, with the lines that continue them."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(text).splitlines():
        if match := ARGUMENT.fullmatch(line):
            names = match["names"].split(", ")
            found |= dict.fromkeys(names, match["text"])
        elif names and line.startswith("  "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found


def known_keys(command: str) -> set[str]:
    """The keys and groups that every config of a command has, as they are typed."""
    keys = {name for name, _, _ in all_keys(SCHEMAS[command])}
    return {*groups(command), *keys, *(name.partition(".")[0] for name in keys)}


def keys_of_options(command: str) -> dict[str, list[str]]:
    """{"sampler.eta": ["ddim"], ...}: the keys of groups, and the options that have them."""
    keys: dict[str, list[str]] = {}
    for group in groups(command).keys() - PRESETS.keys():
        for option in options(group):
            for key in option.values:
                keys.setdefault(f"{group}.{key}", []).append(option.name)
    return keys
