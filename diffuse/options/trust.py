"""Whose code a config may name: this package's own options, and packages that the user trusts on this command line.

A config may come with a checkpoint or a run folder from a stranger, and building what it names runs code; so does
importing the module that has it.
"""

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata

from diffuse.options.targets import PACKAGE
from diffuse.system.errors import UserError

BASE = {PACKAGE, "torch", "torchvision", "hydra-core", "omegaconf", "tensorboard", "pillow"}
REQUIRED = re.compile(r"([\w.-]+)(?!.*\bextra\s*==)")


def refuse_untrusted(target: str, group: str, trust: Sequence[str]) -> None:
    """Raise UserError unless `target`, which is not of this package, is of a package of the user's that is trusted.

    Python's library and what this package is built on are never trusted: much in them runs any code that a file or a
    string holds, and none of it is an option.
    """
    package = target.partition(".")[0]
    if package not in trust:
        raise UserError(
            f"{group}._target_ is {target}, which is not part of {PACKAGE}, and building it runs its code.\n"
            f"If you know where it comes from, add trust=[{package}]"
        )
    if package in foundations():
        raise UserError(
            f"{group}._target_ is {target}: trust= is for packages of your own, and {package} belongs to Python or to "
            f"what {PACKAGE} is built on"
        )


@cache
def foundations() -> frozenset[str]:
    """The top-level modules of Python, of this package, and of all packages that it needs, directly or not."""
    needed, new = set[str](), {as_listed(name) for name in BASE}
    while new:
        needed |= new
        new = {name for package in new for name in requirements(package)} - needed
    modules = metadata.packages_distributions().items()
    ours = {module for module, packages in modules if needed & {as_listed(name) for name in packages}}
    return frozenset({PACKAGE, *sys.stdlib_module_names, *ours})


def requirements(package: str) -> set[str]:
    """The packages that an installed package needs; without its extras."""
    with suppress(metadata.PackageNotFoundError):
        found = [REQUIRED.match(line) for line in metadata.requires(package) or []]
        return {as_listed(match[1]) for match in found if match}
    return set()


def as_listed(package: str) -> str:
    """A package's name as indexes compare it: Hydra_Core is hydra-core."""
    return re.sub(r"[-_.]+", "-", package).lower()
