"""The words of a command line before Hydra gets them: their order, and the folder and the names of a sweep."""

import glob
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from omegaconf import OmegaConf
from yaml import YAMLError

from diffuse.options.reference import keys_of_options, known_keys
from diffuse.options.schema import SCHEMAS, groups, plain
from diffuse.runs.checkpoint_files import LAST
from diffuse.runs.record import read_record
from diffuse.sweeps.folder import Sweep
from diffuse.sweeps.record import DONE
from diffuse.system.errors import UsageError, did_you_mean
from diffuse.system.files import (
    AT_BEST,
    CONFIGS,
    OUTPUTS,
    RECORD,
    SWEEP_RECORD,
    as_word,
    check_name,
    refuse_aliases,
    refuse_explosions,
    run_path,
)

MULTIRUN = ("-m", "--multirun")
COMPLETION = ("-sc", "--shell-completion")
HELP = ("-h", "--help")
BARE_FLAGS = (*MULTIRUN, *COMPLETION, *HELP, "-r", "--run", "--hydra-help", "--resolve")
# Hydra's flags that take a value, with the values that each allows, if there are few.
FLAGS_WITH_VALUE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
    **dict.fromkeys(("--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"), ()),
}
# The flags with which Hydra prints something and runs nothing.
PRINTING = (*COMPLETION, *HELP, "--hydra-help", "--cfg", "-c", "--info", "-i")
OVERRIDE = re.compile(r"(\+{0,2}[^=+~-][^=]*=|~[^=]+)", re.DOTALL)
IN_FULL = "foreign."  # keys that begin so have no short form


def overrides_first(typed: list[str]) -> list[str]:
    """The words with all overrides before all flags, as Hydra needs them: not `schedule=cosine -m unet=tiny,small`."""
    overrides: list[str] = []
    flags: list[str] = []
    words = iter(typed)
    for word in words:
        flag, _, attached = word.partition("=")
        if not word.startswith("-"):
            if not OVERRIDE.match(word):
                raise UsageError(f"{word!r} does not have the form key=value")
            overrides.append(word)
        elif flag in FLAGS_WITH_VALUE:
            value = attached or next(words, None)
            allowed = FLAGS_WITH_VALUE[flag]
            if value is None or (allowed and value not in allowed):
                raise UsageError(f"{flag} needs {'one of ' + ', '.join(allowed) if allowed else 'a value'}")
            if flag in ("--config-dir", "-cd"):
                refuse_unreadable_options(Path(value))
            relative = flag in ("-cp", "--config-path")  # to us, not to a module of ours
            flags += [flag, str(Path(value).absolute()) if relative else value]
        elif word in BARE_FLAGS:
            flags.append(word)
        else:
            raise UsageError(f"there is no flag {word!r}{what_was_meant(flag)}")
    return [*overrides, *flags]


def what_was_meant(flag: str) -> str:
    """The end of a message about an unknown flag: a key without its dashes, or the most similar flag."""
    key = flag.lstrip("-")
    if any(key in known_keys(command) | keys_of_options(command).keys() for command in SCHEMAS):
        return f": keys have no dashes, {key}=VALUE"
    return f".{did_you_mean(flag, (*BARE_FLAGS, *FLAGS_WITH_VALUE))}"


def refuse_unreadable_options(folder: Path) -> None:
    """Raise UsageError where a YAML file in the folder of -cd would fill the memory."""
    for path in [*folder.glob("*.yaml"), *folder.glob("*/*.yaml")]:
        try:
            refuse_explosions(path)
        except ValueError as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
        except (OSError, YAMLError):
            continue  # Hydra says what is wrong with it, if it is chosen


def by_key(words: Sequence[str]) -> dict[str, Override]:
    """The overrides among the words; the last counts if a key is typed twice, as it does for Hydra."""
    overrides = OverridesParser.create().parse_overrides([word for word in words if OVERRIDE.match(word)])
    return {override.key_or_group: override for override in overrides}


def with_full_keys(words: list[str], command: str) -> list[str]:
    """The words with keys in full: `lr=` is optim.lr= where no other key of the command ends so.

    Where several do, it is that of a chosen option: `path=` is dataset.path= with dataset=folder. Raises UsageError
    where none or more than one of the chosen options has such a key. Keys about other programs' weights have the names
    of options, and are typed in full.
    """
    of_options = keys_of_options(command)
    known = known_keys(command) | of_options.keys()
    chosen = chosen_options(words, command)

    def in_full(word: str) -> str:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier() or key in known:
            return word
        found = sorted(name for name in known if name.endswith(f".{key}") and not name.startswith(IN_FULL))
        if len(found) > 1:  # of several, the one that the chosen options have
            options = {name: of_options.get(name, [None]) for name in found}  # None: no key of an option
            there = [name for name in found if chosen.get(name.partition(".")[0]) in options[name]]
            found = there if len(there) == 1 else found
        if len(found) > 1:
            raise UsageError(f"{key} is short for {', '.join(found)}: write one of them in full")
        return f"{found[0]}={value}" if found else word

    return [in_full(word) for word in words]


def chosen_options(words: Sequence[str], command: str) -> dict[str, str]:
    """The option of each group: that of the command's defaults, unless the words choose another one."""
    listed: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{command}.yaml"))
    defaults = [each for each in listed["defaults"] if isinstance(each, dict)]
    typed = dict(word.split("=", 1) for word in words if "=" in word)
    return {
        **{group: str(option) for each in defaults for group, option in each.items()},
        **{group: option for group, option in typed.items() if group in groups(command)},
    }


def with_runs(words: list[str]) -> list[str]:
    """The words with every run in place of a sweep's folder or of a pattern in ckpt=: outputs/SWEEP, outputs/SWEEP/*.

    Both may end in @best. Raises UsageError where a pattern matches nothing, or where -m is missing.
    """
    override = by_key(words).get("ckpt")
    if override is None:
        return words
    given = override.value()
    choices = given.list if isinstance(given, ChoiceSweep) else [given]
    if not all(isinstance(choice, str | QuotedString) for choice in choices):
        return words
    texts = [text_of(choice) for choice in choices]
    runs = [run for text in texts for run in runs_of(text)]
    if runs == texts:
        return words
    if len(runs) > 1 and not {*MULTIRUN} & {*words}:
        raise UsageError(f"ckpt={texts[0]} stands for {len(runs)} runs: add -m for all of them, or choose one")
    typed = ",".join(as_word("", run)[1:] for run in runs)
    return [f"ckpt={typed}" if word.startswith("ckpt=") else word for word in words]


def text_of(value: Any) -> str:
    """A value of the command line without its quotes."""
    return str(value.text if isinstance(value, QuotedString) else value)


def runs_of(ckpt: str) -> list[str]:
    """The runs that ckpt= stands for: those of a sweep in the order of its jobs, those of a pattern, or itself."""
    place = str(Path(ckpt.removesuffix(AT_BEST)).expanduser())
    best, path = AT_BEST if ckpt.endswith(AT_BEST) else "", run_path(place)
    if not path.exists() and set(place) & set("*?["):
        found = sorted(glob.glob(place) or glob.glob(str(OUTPUTS / place)), key=in_order)  # noqa: PTH207
        found = [run for run in found if Path(run).name != LAST]  # it has another name too
        found = [run for run in found if (Path(run) / RECORD).is_file() or run.endswith(".pt")]
        if not found:
            raise UsageError(f"ckpt={ckpt} matches no run and no checkpoint")
    elif (path / SWEEP_RECORD).is_file():
        found = sorted((str(record.parent) for record in path.glob(f"*/{RECORD}")), key=in_order)
        if not found:
            raise UsageError(f"ckpt={ckpt} is a sweep without runs")
    else:
        return [ckpt]
    return [run + best for run in found]


def in_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts names by the numbers in them: 2_x before 10_x."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", name)]


def sweep_folder(words: Sequence[str]) -> Path | None:
    """The folder of a sweep: hydra.sweep.dir, outputs/<name>, or one named by the time; None without -m."""
    if not {*MULTIRUN} & {*words}:
        return None
    typed = by_key(words)
    if "hydra.sweep.dir" in typed:
        if "${" in (folder := str(typed["hydra.sweep.dir"].value())):
            raise UsageError(f"hydra.sweep.dir must be a path without interpolations, not {folder}")
        return Path(folder)
    name = typed.get("name")
    if name and name.is_sweep_override():
        raise UsageError("a sweep has one name; the folders of its jobs are named by the keys that vary")
    if name and name.value() is not None:
        return OUTPUTS / check_name(str(name.value()))
    return OUTPUTS / datetime.now().strftime("sweep-%Y-%m-%d_%H-%M-%S-%f")


def with_sweep_names(words: list[str], folder: Path, command: str) -> list[str]:
    """The words of a sweep with its folder. Keys that do not vary are left out of the names of the jobs' folders.

    Raises UsageError if the folder holds something other than this sweep.
    """
    typed = by_key(words)
    if "name" in typed:
        refuse_other_sweep(folder, typed, command)
    _, fixed = varied_and_fixed(typed)
    names = f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]"
    return [names, *([] if "hydra.sweep.dir" in typed else [f"hydra.sweep.dir={folder}"]), *words]


def with_name(typed: Sequence[str], folder: Path) -> list[str]:
    """The words of a sweep with a name= that continues it in its folder."""
    known = by_key(typed)
    if "hydra.sweep.dir" in known or ("name" in known and known["name"].value() is not None):
        return list(typed)
    return [*(word for word in typed if not word.startswith("name=")), f"name={folder.name}"]


def varied_and_fixed(overrides: Mapping[str, Override]) -> tuple[list[str], dict[str, str]]:
    """The keys that a sweep varies, and the words of those that are the same for all its jobs."""
    varied = sorted(key for key, override in overrides.items() if override.is_sweep_override())
    return varied, {key: str(override.input_line) for key, override in overrides.items() if key not in varied}


def refuse_other_sweep(folder: Path, typed: Mapping[str, Override], command: str) -> None:
    """Raise UsageError if the folder holds something other than a sweep over the same keys with the same options."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    record = folder / SWEEP_RECORD
    if not record.exists():
        kind = "a single run" if (folder / RECORD).exists() else "not a sweep"
        raise UsageError(f"{folder} exists already and is {kind}: a sweep needs another name=")
    before = by_key(list(OmegaConf.select(load_yaml(record), "hydra.overrides.task") or []))
    (then, was), (now, wanted) = varied_and_fixed(before), varied_and_fixed(typed)
    if then != now:
        over = [", ".join(keys) or "nothing" for keys in (then, now)]
        raise UsageError(f"{folder} holds a sweep over {over[0]}, and this one is over {over[1]}: choose another name=")
    if command == "train" or not any(job.status == DONE for job in Sweep(folder).rows()):
        return  # a run folder itself refuses the options that may not change
    for key in sorted({*was, *wanted}):
        old, new = (words.get(key, f"without {key}") for words in (was, wanted))
        if old != new and key != "name" and not key.startswith("hydra"):
            raise UsageError(f"{folder} was made with {old}, and this line has {new}: choose another name=")


def load_yaml(path: Path) -> Any:
    """The values in a YAML file of Hydra's. Raises UsageError where it has aliases, which may stand for anything."""
    try:
        refuse_aliases(path)
        return OmegaConf.load(path)
    except Exception as error:  # a damaged file raises errors of many types
        raise UsageError(f"{path} cannot be read: {error}; choose another name=") from error


def resumed_config(typed: list[str]) -> str:
    """The config of a training for Hydra to compose: `train`, or with resume=RUN nothing but the record of that run."""
    folders = [word.partition("=")[2] for word in typed if word.startswith("resume=")]
    if not folders or folders[-1] in ("", "null"):
        return "train"
    folder = folders[-1]
    if folder[0] in "'\"":  # Hydra's quotes
        folder = text_of(by_key([f"resume={folder}"])["resume"].value())
    record = plain(read_record(run_path(folder)))
    record["trust"] = []  # what is trusted is said on the command line: the folder may come from a stranger
    ConfigStore.instance().store(name="resumed", node={"defaults": ["train_schema", "common", "_self_"], **record})
    return "resumed"
