"""The words of a command line on their way to Hydra: put in order, and a sweep's folder and names found out."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from diffuse.options.schema import plain
from diffuse.sweeps.folder import Sweep
from diffuse.sweeps.record import DONE
from diffuse.system.errors import UsageError, did_you_mean
from diffuse.system.files import OUTPUTS, RECORD, SWEEP_RECORD, check_name

MULTIRUN = {"-m", "--multirun"}
BARE_FLAGS = (
    *("--multirun", "-m", "--run", "-r", "--help", "-h", "--hydra-help", "--resolve", "--shell-completion", "-sc"),
)
CONFIGS_TO_SHOW = ("job", "hydra", "all")
THINGS_TO_SHOW = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
# Hydra's flags that take a value, and which values where there are few.
FLAGS_WITH_VALUE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("--cfg", "-c"), CONFIGS_TO_SHOW),
    **dict.fromkeys(("--info", "-i"), THINGS_TO_SHOW),
    **dict.fromkeys(("--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"), ()),
}
OVERRIDE = re.compile(r"(\+{0,2}[^=+~-][^=]*=|~[^=]+)", re.DOTALL)


def overrides_first(typed: list[str]) -> list[str]:
    """Hydra's parser wants all overrides in one block, so `schedule=cosine -m unet=tiny,small` is put in order."""
    overrides: list[str] = []
    flags: list[str] = []
    words = iter(typed)
    for word in words:
        flag, _, attached = word.partition("=")
        if not word.startswith("-"):
            if not OVERRIDE.match(word):
                raise UsageError(f"{word!r} is not of the form key=value")
            overrides.append(word)
        elif flag in FLAGS_WITH_VALUE:
            value = attached or next(words, None)
            allowed = FLAGS_WITH_VALUE[flag]
            if value is None or (allowed and value not in allowed):
                raise UsageError(f"{flag} wants {'one of ' + ', '.join(allowed) if allowed else 'a value'}")
            flags += [flag, value]
        elif word in BARE_FLAGS:
            flags.append(word)
        else:
            raise UsageError(f"there is no flag {word!r}.{did_you_mean(word, (*BARE_FLAGS, *FLAGS_WITH_VALUE))}")
    return [*overrides, *flags]


def by_key(words: Sequence[str]) -> dict[str, Override]:
    """The overrides among the words; of a key that is typed twice the last counts, as it does for Hydra."""
    overrides = OverridesParser.create().parse_overrides([word for word in words if OVERRIDE.match(word)])
    return {override.key_or_group: override for override in overrides}


def sweep_folder(words: Sequence[str]) -> Path | None:
    """The folder of a sweep: outputs/<name>, or named by the time, or where hydra.sweep.dir says; None without -m."""
    if not MULTIRUN & set(words):
        return None
    typed = by_key(words)
    if "hydra.sweep.dir" in typed:
        return Path(str(typed["hydra.sweep.dir"].value()))
    if "name" in typed and typed["name"].is_sweep_override():
        raise UsageError("a sweep has one name; in its folder the jobs' folders are named by what varies")
    if "name" in typed and typed["name"].value() is not None:
        return OUTPUTS / check_name(str(typed["name"].value()))
    now = time.time()
    return OUTPUTS / time.strftime(f"sweep-%Y-%m-%d_%H-%M-%S-{int(now % 1 * 1e6):06d}", time.localtime(now))


def with_sweep_names(words: list[str], folder: Path, command: str) -> list[str]:
    """The words of a sweep with its folder, where what is the same in all jobs is left out of their folders' names.

    Raises UsageError where the folder holds something else than this sweep.
    """
    typed = by_key(words)
    varied = {key for key, override in typed.items() if override.is_sweep_override()}
    if "name" in typed:
        refuse_other_content(folder, varied)
        if command != "train":  # whose runs say themselves what may change
            refuse_other_options(folder, typed)
    fixed = [key for key in typed if key not in varied]
    names = f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]"
    return [names, *([] if "hydra.sweep.dir" in typed else [f"hydra.sweep.dir={folder}"]), *words]


def refuse_other_content(folder: Path, varied: set[str]) -> None:
    """Raise UsageError where a sweep's folder holds something else than a sweep over the same keys."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    record = folder / SWEEP_RECORD
    if not record.exists():
        kind = "a single run" if (folder / RECORD).exists() else "not a sweep"
        raise UsageError(f"{folder} exists already and is {kind}: a sweep needs another name=")
    before = {key for key, override in recorded_overrides(record).items() if override.is_sweep_override()}
    if before != varied:
        then, now = (", ".join(sorted(keys)) or "nothing" for keys in (before, varied))
        raise UsageError(f"{folder} holds a sweep over {then}, and this one is over {now}: choose another name=")


def refuse_other_options(folder: Path, now: Mapping[str, Override]) -> None:
    """Raise UsageError where jobs in a sweep's folder were done with other options than those of all jobs now."""
    if not any(job.status == DONE for job in Sweep(folder).rows()):
        return
    before = recorded_overrides(folder / SWEEP_RECORD)
    for key in sorted({*before, *now}):
        both = [overrides[key] for overrides in (before, now) if key in overrides]
        lines = {override.input_line for override in both}
        if key.startswith("hydra") or any(override.is_sweep_override() for override in both):
            continue
        if len(lines) > 1 or len(both) < 2:
            was, wanted = (words[key].input_line if key in words else f"without {key}" for words in (before, now))
            raise UsageError(f"{folder} was made with {was}, and this line says {wanted}: choose another name=")


def recorded_overrides(record: Path) -> dict[str, Override]:
    """The overrides that a sweep was begun with."""
    return by_key(list(OmegaConf.select(OmegaConf.load(record), "hydra.overrides.task") or []))


def resumed_config(typed: list[str]) -> str:
    """The config that a training is composed from: `train`, or with resume=RUN the record of that run alone."""
    folders = [word.partition("=")[2] for word in typed if word.startswith("resume=")]
    if not folders or folders[-1] in ("", "null"):
        return "train"
    from diffuse.runs.folder import read_record  # imports torch

    record = plain(read_record(Path(folders[-1]).expanduser()))
    ConfigStore.instance().store(name="resumed", node={"defaults": ["train_schema", "common", "_self_"], **record})
    return "resumed"
