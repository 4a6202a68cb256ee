"""From errors of Hydra, OmegaConf, torch and the file system to messages: what was given, what was expected."""

import errno
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from diffuse.options.keys import all_keys
from diffuse.options.schema import PRESETS, SCHEMAS, groups, keys_that_may_change
from diffuse.system.errors import UserError, did_you_mean
from diffuse.system.files import FULL

# What a user can mend about files; anything else from the system is our mistake.
FILE_TROUBLES = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    *FULL,
}

# Hydra's plugins that sweeps can use, and the packages they come in (our extras `launchers` and `optuna`).
PLUGINS = {
    ("hydra/launcher", "joblib"): "hydra-joblib-launcher",
    ("hydra/launcher", "submitit_local"): "hydra-submitit-launcher",
    ("hydra/launcher", "submitit_slurm"): "hydra-submitit-launcher",
    ("hydra/sweeper", "optuna"): "hydra-optuna-sweeper",
}


@dataclass(frozen=True)
class Message:
    """At most four lines, and the exit code that goes with them."""

    text: str
    exit_code: int


def message_for(error: BaseException, command: str, configs: str) -> Message | None:
    """The message for an error that the user can mend; None for a mistake of ours."""
    for cause in causes(error):
        if isinstance(cause, UserError):
            return Message(str(cause), cause.exit_code)
        if isinstance(cause, OSError) and cause.errno in FILE_TROUBLES:
            if cause.errno in FULL:
                where = f"writing {cause.filename}" if cause.filename else "writing"
                again = "Make room and give the command again: what was saved is whole"
                return Message(f"the disk is full: {where} failed ({cause.strerror}).\n{again}", 1)
            mend = "run diffuse from a folder that you may write to"
            return Message(f"cannot write or read {cause.filename or 'a file'}: {cause.strerror}; {mend}", 1)
        if type(cause).__name__ == "OutOfMemoryError":
            return Message("the device has not enough memory: lower batch_size, or choose a smaller unet", 1)
    for cause in causes(error):
        if isinstance(cause, ValueError) and str(cause).startswith("Config group override must be a string"):
            return Message(f"a group ({', '.join(groups(command))}) takes the name of an option", 2)
        if isinstance(cause, HydraException | OmegaConfBaseException):
            return Message(_refusal(cause, command, configs), 2)
    if raised_in_hydra(error):
        return Message(f"Hydra cannot read this command line: {(str(error).splitlines() or [''])[0][:200]}", 2)
    return None


def raised_in_hydra(error: BaseException) -> bool:
    """Whether the error comes from inside Hydra, which does not check all of a command line."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_globals.get("__name__", "").partition(".")[0] in ("hydra", "omegaconf")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from, the newest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _refusal(cause: BaseException, command: str, configs: str) -> str:
    """What is wrong with a word of the command line that Hydra or OmegaConf refuses."""
    text = str(cause)
    if isinstance(cause, MissingConfigException):
        return _missing_option(cause)
    if isinstance(cause, MissingMandatoryValue):
        return f"{_full_key(text)} is required: diffuse {command} {_full_key(text)}=..."
    if isinstance(cause, OverrideParseException):
        return f"{cause.override!r} cannot be read; values with spaces or quotes go into quotes of their own"
    if match := re.match(r"Ambiguous value for argument '(.*)'", text):
        return f"{match[1]} names several values: add -m for a sweep, or write [a,b] for a list"
    if match := re.match(r"Could not override '(.*?)'", text):
        return _unknown_key(match[1], command, configs)
    if match := re.match(r"Key '(.*?)' (?:is )?not in", text):
        return _unknown_key(_full_key(text) or match[1], command, configs)
    if match := re.search(r"missing \d+ required positional arguments?: (.*)", text):
        return match[1].replace("'", "") + " is required and cannot be removed"
    if match := re.match(r"Error merging override ~([^=]+)", text):
        return f"{match[1]} is required and cannot be removed"
    if match := re.match(r"Error merging override \+*([^=]+)=", text):
        reason = next((str(deeper) for deeper in causes(cause.__cause__)), text)
        if inside := [key for key in sorted(keys_of(command)) if key.startswith(f"{match[1]}.")]:
            return f"{match[1]} is not a value but a group of keys, such as {inside[0]}"
        if "is not a ListConfig" in reason:
            return (
                f"{match[1]} is a list: write {text.partition('override ')[2].splitlines()[0].replace('=', '=[', 1)}]"
            )
        return f"{match[1]}: {reason.splitlines()[0]}"
    key = _full_key(text)
    return (f"{key}: " if key else "") + text.splitlines()[0]


def _missing_option(error: MissingConfigException) -> str:
    """schedule=foo, with the options there are, or with what to install for it."""
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if (group, option) in PLUGINS:
        return f"{group}={option} needs a plugin that is not installed: pip install {PLUGINS[group, option]}"
    options = list(error.options or [])
    if not options:
        return f"there is no config {error.missing_cfg_file}"
    return f"{group} must be one of {', '.join(options)}, not {option!r}.{did_you_mean(option, options)}"


def _unknown_key(key: str, command: str, configs: str) -> str:
    """A key that does not exist: it may belong to another option, or be mistyped."""
    known, options = keys_of(command), keys_of_options(command, configs)
    if key in groups(command):
        return f"a continued run keeps its {key}; what may change are {', '.join(keys_that_may_change())}"
    if command != "train" and key in keys_of("train") - known:
        return f"{key} is a key of diffuse train; diffuse {command} reads it from the checkpoint"
    if key in options:
        group = key.partition(".")[0]
        return f"{key} is a key of {' and '.join(f'{group}={option}' for option in options[key])} only"
    hint = did_you_mean(key, {*known, *options})
    return f"there is no key {key!r} in diffuse {command}." + (hint or f" See diffuse {command} --help")


def keys_of(command: str) -> set[str]:
    """The keys and groups that every config of a command has, as they are typed."""
    keys = {name for name, _, _ in all_keys(SCHEMAS[command])}
    return {*groups(command), *keys, *(name.partition(".")[0] for name in keys)}


def keys_of_options(command: str, configs: str) -> dict[str, list[str]]:
    """{"sampler.eta": ["ddim"], ...}: the keys of groups, and the options that have them."""
    keys: dict[str, list[str]] = {}
    for group in sorted({*groups(command)} - {*PRESETS}):
        for path in sorted(Path(configs, group).glob("*.yaml")):
            content = OmegaConf.load(path)
            for name in map(str, OmegaConf.select(content, group) or content):
                keys.setdefault(f"{group}.{name}", []).append(path.stem)
    return keys


def _full_key(text: str) -> str:
    """The key that OmegaConf names in the second line of its messages."""
    match = re.search(r"full_key: (\S+)", text)
    return match[1] if match else ""
