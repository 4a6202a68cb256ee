"""From errors of Hydra, OmegaConf, torch and the file system to messages: what was given, what was expected."""

import errno
import re
import traceback
from collections.abc import Iterator

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from diffuse.options.reference import keys_of_options, known_keys, options
from diffuse.options.schema import groups, keys_that_may_change
from diffuse.options.trust import foundations
from diffuse.system.errors import UsageError, UserError, did_you_mean
from diffuse.system.files import FULL

# Errors of the system that the user can correct; every other one is our mistake.
FILE_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}

# What torch says where it cannot allocate memory on the CPU.
NO_MEMORY = ("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory")

# Hydra's plugins that sweeps can use, and the packages that contain them (our extras `launchers` and `optuna`).
PLUGINS = {"joblib": "hydra-joblib-launcher", "submitit": "hydra-submitit-launcher", "optuna": "hydra-optuna-sweeper"}


def as_user_error(error: BaseException, command: str) -> UserError | None:
    """The error with a message for the user who can correct it; None for a mistake of ours."""
    for cause in causes(error):
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, OSError) and cause.errno in FULL:
            where = f"writing {cause.filename}" if cause.filename else "writing"
            again = "Make room and give the command again: files that were saved are complete"
            return UserError(f"the disk is full: {where} failed ({cause.strerror}).\n{again}")
        if isinstance(cause, OSError) and cause.errno in FILE_ERRORS:
            advice = "choose another place (name=, data_dir=, the folder you are in) or ask for the right to it"
            return UserError(f"cannot write or read {cause.filename or 'a file'}: {cause.strerror}; {advice}")
        if isinstance(cause, FileNotFoundError) and "temporary directory" in str(cause):
            return UserError("there is no folder for temporary files: set TMPDIR to one that you may write to")
        if is_out_of_memory(cause):
            return UserError("there is not enough memory: lower batch_size, or choose a smaller unet or dataset.size")
        if isinstance(cause, RecursionError):
            return UsageError("a value on the command line, or in a file that it names, is nested too deeply")
        if isinstance(cause, RuntimeError) and "home directory" in str(cause):
            return UserError("~ stands for no folder here (no HOME, or no such user): write the path without it")
    for cause in causes(error):
        if isinstance(cause, ValueError) and str(cause).startswith("Config group override must be a string"):
            return UsageError(f"a group ({', '.join(groups(command))}) takes the name of an option")
        if isinstance(cause, HydraException | OmegaConfBaseException):
            return UsageError(_reason(cause, command))
    if raised_in_hydra(error):
        first_line = str(error).partition("\n")[0]
        return UsageError(f"Hydra cannot read this command line: {first_line[:200]}")
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, or torch on any device, has asked for more memory than there is."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def package_of_the_users(error: BaseException) -> str | None:
    """The package in which an error was raised, where it is neither ours nor one that we are built on."""
    frames = reversed(list(traceback.walk_tb(error.__traceback__)))
    names = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame, _ in frames]
    return next((name for name in names if name not in {"", "__main__", *foundations()}), None)


def raised_in_hydra(error: BaseException) -> bool:
    """Whether the error comes from inside Hydra, which does not check all of a command line."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_globals.get("__name__", "").partition(".")[0] in ("hydra", "omegaconf")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, the newest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(cause: BaseException, command: str) -> str:
    """Why Hydra or OmegaConf refuses a word of the command line."""
    text = str(cause)
    # OmegaConf names the key in the second line of its message.
    key = match[1] if (match := re.search(r"full_key: (\S+)", text)) else ""
    if isinstance(cause, MissingConfigException):
        return _missing_option(cause)
    if isinstance(cause, MissingMandatoryValue):
        return f"{key} is required: diffuse {command} {key}=..."
    if isinstance(cause, OverrideParseException):
        return f"{cause.override!r} cannot be read; put quotes around a value with spaces or quotes"
    if re.match(r"You must specify 'recipe'", text):
        return (
            "the data set names no recipe (steps, batch size, learning rate, network): add to its YAML file, as "
            "configs/dataset/digits.yaml has it,\ndefaults: [override /recipe: NAME], or type recipe=NAME, one of "
            f"{', '.join(option.name for option in options('recipe'))}"
        )
    if match := re.match(r"Ambiguous value for argument '(.*)'", text):
        return f"{match[1]} has several values: add -m for a sweep, or write [a,b] for a list"
    if match := re.match(r"Could not override '(.*?)'", text):
        return _unknown_key(match[1], command)
    if match := re.match(r"Key '(.*?)' (?:is )?not in", text):
        return _unknown_key(key or match[1], command)
    if match := re.search(r"(?:missing \d+ required positional arguments?: |^Error merging override ~)([^=\n]+)", text):
        return match[1].replace("'", "") + " is required and cannot be removed"
    if match := re.match(r"Error merging override (\+*([^=]+)=.*)", text):
        word, name = match[1], match[2]
        if inside := [known for known in sorted(known_keys(command)) if known.startswith(f"{name}.")]:
            return f"{name} is not a value but a group of keys, such as {inside[0]}"
        reason = str(next(causes(cause.__cause__), text))
        if "is not a ListConfig" in reason:
            return f"{name} is a list: write {word.replace('=', '=[', 1)}]"
        return f"{name}: {first_line(reason)}"
    return (f"{key}: " if key else "") + (first_line(text) or type(cause).__name__)


def first_line(text: str) -> str:
    """The text up to the first end of a line."""
    return text.strip().partition("\n")[0]


def _missing_option(error: MissingConfigException) -> str:
    """schedule=foo: the options of the group, or the package to install."""
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if group in ("hydra/launcher", "hydra/sweeper") and (plugin := PLUGINS.get(option.partition("_")[0])):
        return f"{group}={option} needs a plugin that is not installed: pip install {plugin}"
    known = list(error.options or [])
    if not known:
        return f"there is no config {error.missing_cfg_file or 'in that folder'}; -cd FOLDER adds options to those here"
    return f"{group} must be one of {', '.join(known)}, not {option!r}.{did_you_mean(option, known)}"


def _unknown_key(key: str, command: str) -> str:
    """A key that does not exist: it may belong to another option or command, or contain a typing mistake."""
    known, of_options = known_keys(command), keys_of_options(command)
    if key in groups(command):
        return f"a continued run keeps its {key}; these may change: {', '.join(keys_that_may_change())}"
    if command != "train" and key in known_keys("train") - known:
        return f"{key} is a key of diffuse train; diffuse {command} reads it from the checkpoint"
    if key in of_options:
        group = key.partition(".")[0]
        with_it = [f"{group}={option}" for option in of_options[key]]
        advice = f"set {with_it[0]}" if len(with_it) == 1 else "set one of them"
        return f"{key} is a key of {' and '.join(with_it)} only: {advice}"
    hint = did_you_mean(key, {*known, *of_options})
    return f"there is no key {key!r} in diffuse {command}." + (hint or f" See diffuse {command} --help")
